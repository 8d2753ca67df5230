import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend import Cameras
from more4d_backend.camera_paths import PathSettings, make_path
from more4d_backend.camera_paths.edits import EASES, CameraPathError
from more4d_backend.camera_paths.keyframes import (
    CameraKeyframes,
    Keyframe,
    cameras_from_keyframes,
    keyframes_from_cameras,
    keyframes_from_json,
    keyframes_to_json,
    load_keyframes,
    save_keyframes,
)
from more4d_backend.camera_paths.presets import CAMERA_PRESETS
from more4d_backend.files import FileFormatError, OutputError
from more4d_backend.geometry import (
    invert_rigid,
    matrix_from_quaternion_wxyz,
    rigid,
)

DOCS = Path(__file__).parents[2] / "docs" / "camera-keyframes.md"
IDENTITY = (1.0, 0.0, 0.0, 0.0)


def key(time, x=0.0, quaternion_wxyz=IDENTITY, **more):
    return Keyframe(time=time, position=(x, 0.0, 0.0), quaternion_wxyz=quaternion_wxyz, **more)


def input_view(pose=None, dtype=torch.float64):
    intrinsics = torch.tensor([[[50.0, 0, 30], [0, 60, 25], [0, 0, 1]]])  # off-centre, not square
    return Cameras(
        world_to_camera=(torch.eye(4) if pose is None else pose)[None].to(dtype),
        intrinsics=intrinsics.to(dtype),
        height=48,
        width=64,
    )


def path(*keyframes, num_frames=9, start=None, **more):
    return cameras_from_keyframes(
        CameraKeyframes(keyframes=keyframes), start or input_view(), num_frames, **more
    )


def x_of(cameras):
    return cameras.camera_to_world[:, 0, 3].tolist()


def random_keyframes(seed, count=5):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    time = draw(count).cumsum(0) + 0.05 * torch.arange(count)
    time = (time / time[-1]).tolist()
    position = (4 * draw(count, 3) - 2).tolist()
    quaternion = torch.nn.functional.normalize(2 * draw(count, 4) - 1, dim=-1).tolist()
    zoom = (0.5 + 2 * draw(count)).tolist()
    ease = [list(EASES)[int(4 * d)] for d in draw(count).tolist()]
    return CameraKeyframes(
        keyframes=tuple(
            Keyframe(time=t, position=tuple(p), quaternion_wxyz=tuple(q), zoom=z, ease=e)
            for t, p, q, z, e in zip(time, position, quaternion, zoom, ease, strict=True)
        ),
        scene_scale=float(draw(1)) + 0.5,
    )


# The path


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_the_path_passes_exactly_through_every_keyframe(seed):
    keyframes = random_keyframes(seed, 4)
    frames = [
        Keyframe(time=i / 3, position=k.position, quaternion_wxyz=k.quaternion_wxyz, zoom=k.zoom,
                 ease=k.ease)
        for i, k in enumerate(keyframes.keyframes)
    ]  # fmt: skip
    cameras = path(*frames, num_frames=13)
    for i, frame in enumerate(frames):
        pose, K = cameras.camera_to_world[4 * i], cameras.intrinsics[4 * i]
        rotation = matrix_from_quaternion_wxyz(
            torch.tensor(frame.quaternion_wxyz, dtype=torch.float64)
        )
        assert pose[:3, 3].tolist() == pytest.approx(frame.position, abs=1e-12)
        torch.testing.assert_close(pose[:3, :3], rotation, rtol=0, atol=1e-9)
        assert (K[0, 0], K[1, 1]) == (
            pytest.approx(50 * frame.zoom),
            pytest.approx(60 * frame.zoom),
        )
        assert K[:2, 2].tolist() == [30, 25]


def test_positions_follow_catmull_rom_rotations_slerp_and_focal_lengths_equal_factors():
    quarter = (math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0)
    cameras = path(key(0.0), key(0.5, 1.0), key(1.0, 4.0, quarter, zoom=4.0), num_frames=5)
    # Velocities in time: 2 (straight), (1*2 + 1*6) / 2 = 4, 6; then Hermite at the middles.
    assert x_of(cameras) == pytest.approx([0, 0.5 + (2 - 4) / 16, 1, 2.5 + (4 - 6) / 16, 4])
    forward = cameras.camera_to_world[3, :3, 2].tolist()
    assert forward == pytest.approx([math.sin(math.pi / 4), 0, math.cos(math.pi / 4)])
    assert cameras.intrinsics[:, 0, 0].tolist() == pytest.approx([50, 50, 50, 100, 200])


def test_uneven_times_give_one_velocity_at_the_keyframe_from_both_sides():
    cameras = path(key(0.0), key(0.25, 1.0), key(1.0, 2.0), num_frames=4001)
    x = torch.tensor(x_of(cameras))
    before, after = (x[1000] - x[999]) * 4000, (x[1001] - x[1000]) * 4000
    # The velocities 4 and 4/3, weighted by the other segment's time: 10/3.
    assert before == pytest.approx(10 / 3, rel=1e-2)
    assert after == pytest.approx(10 / 3, rel=1e-2)


def test_a_camera_that_rests_between_two_keyframes_does_not_swing():
    cameras = path(key(0.0), key(0.25, 1.0), key(0.75, 1.0), key(1.0, 0.0), num_frames=101)
    assert x_of(cameras)[25:76] == pytest.approx([1.0] * 51, abs=1e-12)


def test_two_keyframes_make_a_straight_even_path():
    assert x_of(path(key(0.0), key(1.0, 8.0))) == pytest.approx(list(range(9)))


def test_nothing_moves_before_the_first_and_after_the_last_keyframe():
    assert x_of(path(key(0.25, 1.0), key(0.75, 2.0), num_frames=5)) == [1, 1, 1.5, 2, 2]
    assert x_of(path(key(0.5, 3.0), num_frames=3)) == [3, 3, 3]
    assert x_of(path(key(0.0, 1.0), key(1.0, 2.0), num_frames=1)) == [1]


def test_each_keyframe_eases_its_own_segment():
    cameras = path(key(0.0, ease="in"), key(0.5, 1.0, ease="out"), key(1.0, 2.0), num_frames=9)
    assert x_of(cameras) == pytest.approx([0, 1 / 16, 1 / 4, 9 / 16, 1, 1.4375, 1.75, 1.9375, 2])


def test_an_identity_keyframe_is_the_input_view_bit_for_bit():
    pose = rigid(
        matrix_from_quaternion_wxyz(torch.tensor([0.3, 0.5, -0.2, 0.7])), torch.tensor([1.0, 2, 3])
    )
    start = input_view(pose, torch.float32)
    cameras = path(key(0.0), key(1.0, 1.0), start=start)
    assert torch.equal(cameras.world_to_camera[0], start.world_to_camera[0])
    assert torch.equal(cameras.intrinsics[0], start.intrinsics[0])
    assert cameras.world_to_camera.dtype == torch.float32


def test_keyframes_render_at_any_size_of_the_input_view():
    keyframes = random_keyframes(3)
    small = cameras_from_keyframes(keyframes, input_view(), 7)
    large = cameras_from_keyframes(keyframes, input_view().resized(480, 640), 7)
    torch.testing.assert_close(small.resized(480, 640).intrinsics, large.intrinsics)
    assert torch.equal(small.world_to_camera, large.world_to_camera)


def test_positions_fit_another_scene_by_the_ratio_of_the_scales(caplog):
    keyframes = CameraKeyframes(keyframes=(key(0.0), key(1.0, 6.0)), scene_scale=3.0)
    cameras = cameras_from_keyframes(keyframes, input_view(), 2, scene_scale=5.0)
    assert x_of(cameras) == pytest.approx([0, 10])
    assert x_of(cameras_from_keyframes(keyframes, input_view(), 2)) == pytest.approx([0, 6])
    with caplog.at_level("INFO"):
        unknown = CameraKeyframes(keyframes=keyframes.keyframes)
        assert x_of(cameras_from_keyframes(unknown, input_view(), 2, scene_scale=5.0)) == [0, 6]
    assert "state no scene_scale" in caplog.text


def test_a_path_needs_one_start_and_frames():
    with pytest.raises(CameraPathError, match="start has 2 cameras"):
        path(key(0.0), start=input_view().repeated(2))
    with pytest.raises(CameraPathError, match="num_frames is 0"):
        path(key(0.0), num_frames=0)


# From a path to keyframes


@pytest.mark.parametrize("name", sorted(CAMERA_PRESETS))
def test_a_preset_becomes_few_keyframes_that_follow_it(name):
    pose = rigid(
        matrix_from_quaternion_wxyz(torch.tensor([0.3, 0.5, -0.2, 0.7])), torch.tensor([1.0, 2, 3])
    )
    start = input_view(pose)
    wanted = make_path(name, start, 49, settings=PathSettings(pivot_distance=3.0, ease="in-out"))
    keyframes = keyframes_from_cameras(wanted)
    got = cameras_from_keyframes(keyframes, start, 49)
    poses, wanted_poses = got.camera_to_world, wanted.camera_to_world
    extent = (wanted_poses[:, :3, 3] - wanted_poses[:, :3, 3].mean(0)).norm(dim=-1).max()
    off = (poses[:, :3, 3] - wanted_poses[:, :3, 3]).norm(dim=-1).max()
    assert off <= 0.01 * extent + 1e-9
    assert (poses[:, :3, :3] - wanted_poses[:, :3, :3]).abs().max() <= 0.0101
    torch.testing.assert_close(got.intrinsics, wanted.intrinsics, rtol=0.0101, atol=0)
    assert len(keyframes.keyframes) < (49 if name == "handheld" else 30)


def test_a_straight_even_path_needs_two_keyframes_and_a_still_one_too():
    dolly = make_path("dolly-in", input_view(), 49)
    assert len(keyframes_from_cameras(dolly).keyframes) == 2
    assert len(keyframes_from_cameras(dolly.frames([0] * 9)).keyframes) == 2
    assert len(keyframes_from_cameras(dolly.frames([0])).keyframes) == 1


def test_keyframes_of_a_path_from_elsewhere_are_relative_to_the_given_input_view():
    dolly = make_path("truck-right", input_view(), 9)
    keyframes = keyframes_from_cameras(dolly.frames(slice(4, None)), input_view())
    assert keyframes.keyframes[0].position == pytest.approx((0.15, 0, 0))


# JSON


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**31),
    extra=st.dictionaries(
        st.text(max_size=5).filter(lambda name: name not in {"time", "zoom", "ease", "format"}),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5)
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=3,
    ),
)  # fmt: skip
def test_json_keeps_everything_and_what_it_does_not_know(seed, extra):
    plain = random_keyframes(seed)
    first = Keyframe(time=0.0, position=(0, 0, 0), quaternion_wxyz=IDENTITY, extra=extra)
    keyframes = CameraKeyframes(
        keyframes=(first, *plain.keyframes[1:]), scene_scale=plain.scene_scale, extra=extra
    )
    assert keyframes_from_json(keyframes_to_json(keyframes)) == keyframes


def test_a_foreign_field_never_overwrites_ours():
    keyframes = CameraKeyframes(keyframes=(key(0.0, extra={"time": 0.7}),), extra={"version": 9})
    read = keyframes_from_json(keyframes_to_json(keyframes))
    assert read.keyframes[0].time == 0.0
    assert read.extra == {}


def test_a_file_is_read_as_it_was_written_and_named_in_errors(tmp_path):
    keyframes = random_keyframes(1)
    save_keyframes(tmp_path / "new" / "path.json", keyframes)
    assert load_keyframes(tmp_path / "new" / "path.json") == keyframes
    (tmp_path / "bad.json").write_text("{]")
    with pytest.raises(FileFormatError, match=r"bad\.json is not JSON: .* line 1, column 2"):
        load_keyframes(tmp_path / "bad.json")
    with pytest.raises(FileFormatError, match="is not a file"):
        load_keyframes(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_keyframes(tmp_path / "none.json")
    with pytest.raises(OutputError):
        save_keyframes(tmp_path, keyframes)


def documents_in_the_docs():
    return re.findall(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_of_the_documentation_are_valid():
    documents = documents_in_the_docs()
    assert documents
    for document in documents:
        cameras = cameras_from_keyframes(keyframes_from_json(document), input_view(), 49)
        assert torch.equal(cameras.world_to_camera[0], torch.eye(4).double())


def valid_document():
    return json.loads(keyframes_to_json(CameraKeyframes(keyframes=(key(0.0), key(1.0, 2.0)))))


def changed(place, value):
    document = valid_document()
    *parents, last = place
    target = document
    for step in parents:
        target = target[step]
    target[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["format"], "other", 'has no "format": "more4d-camera-keyframes"'),
        (["version"], 2, "version 2; this release reads version 1"),
        (["version"], "1", 'version is "1"; expected a number'),
        (["version"], True, "version is true; expected a number"),
        (["scene_scale"], 0, "scene_scale is 0.0; expected a positive"),
        (["scene_scale"], [1], "scene_scale is an array of 1; expected a number"),
        (["keyframes"], {}, r"keyframes is an object; expected an array"),
        (["keyframes"], [], "0 keyframes; expected 1 to"),
        (["keyframes", 1], 7, r"keyframes\[1\] is 7; expected an object"),
        (["keyframes", 0, "time"], None, r"keyframes\[0\]\.time is missing or null"),
        (["keyframes", 0, "time"], 1.5, r"keyframes\[0\]\.time is 1\.5; expected 0"),
        (["keyframes", 1, "time"], 0, r"keyframes\[1\]\.time is 0\.0 after 0\.0; .*increasing"),
        (["keyframes", 1, "position"], [1, 2], r"\[1\]\.position is an array of 2; .* 3 numbers"),
        (["keyframes", 1, "position", 2], "z", r'\[1\]\.position\[2\] is "z"; expected a number'),
        (["keyframes", 1, "position", 2], 1e300, r"\[1\]\.position\[2\] is 1e\+300"),
        (["keyframes", 1, "position", 2], 10**400, "an integer of more than 20 digits"),
        (["keyframes", 0, "quaternion_wxyz"], [2, 0, 0, 0], r"quaternion_wxyz .*of length 2"),
        (["keyframes", 0, "quaternion_wxyz"], "q", r'quaternion_wxyz is "q"; .* 4 numbers'),
        (["keyframes", 0, "zoom"], 0, r"keyframes\[0\]\.zoom is 0\.0; expected 0\.001 to 1000"),
        (["keyframes", 0, "ease"], "slow", r'keyframes\[0\]\.ease is "slow"; expected one of'),
        (["keyframes", 0, "ease"], ["in"], r"keyframes\[0\]\.ease is an array of 1"),
    ],
)
def test_a_wrong_field_is_refused_by_name(place, value, message):
    with pytest.raises(FileFormatError, match=message):
        keyframes_from_json(changed(place, value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("3", "The keyframes is 3; expected an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": ' + "9" * 5000 + "}", "too long to be read"),
        ('{"format": NaN}', "holds NaN"),
        ('{"format": -Infinity}', "holds -Infinity"),
        ("null", "missing or null"),
    ],
)
def test_what_is_no_keyframe_json_is_refused(text, message):
    with pytest.raises(FileFormatError, match=message):
        keyframes_from_json(text)


def test_zoom_and_ease_may_be_left_out():
    document = valid_document()
    for keyframe in document["keyframes"]:
        del keyframe["zoom"], keyframe["ease"]
    read = keyframes_from_json(json.dumps(document))
    assert [(k.zoom, k.ease) for k in read.keyframes] == [(1.0, "linear")] * 2


def test_a_keyframe_made_in_python_is_checked_too():
    with pytest.raises(CameraPathError, match=r"position is .*three finite"):
        Keyframe(time=0.0, position=(math.nan, 0.0, 0.0), quaternion_wxyz=IDENTITY)
    with pytest.raises(CameraPathError, match=r"ease is 'inout'; .*Did you mean in-out"):
        key(0.0, ease="inout")
    with pytest.raises(CameraPathError, match="zoom is nan"):
        key(0.0, zoom=math.nan)


def test_no_mutation_raises_anything_but_the_documented_error(as_users_run_it, tmp_path, mutate):
    rng = np.random.default_rng(0)
    whole = keyframes_to_json(random_keyframes(2)).encode()
    file, refused = tmp_path / "fuzz.json", 0
    for _ in range(2000):
        file.write_bytes(mutate(whole, rng))
        try:
            cameras = cameras_from_keyframes(load_keyframes(file), input_view(), 5)
        except FileFormatError:
            refused += 1
        else:
            assert cameras.world_to_camera.isfinite().all()
    assert 1000 < refused < 2000  # both sides of the fence are visited


def test_the_inverse_of_a_pose_is_not_confused_with_the_pose():
    quarter = (math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0)  # +z turns to +x
    cameras = path(Keyframe(time=0.0, position=(1.0, 2.0, 3.0), quaternion_wxyz=quarter))
    pose = invert_rigid(cameras.world_to_camera[0])
    assert pose[:3, 3].tolist() == pytest.approx([1, 2, 3])
    assert pose[:3, 2].tolist() == pytest.approx([1, 0, 0], abs=1e-12)


def test_intrinsics_stay_those_of_the_input_view_but_for_the_zoom():
    cameras = path(key(0.0, zoom=2.0), num_frames=1)
    assert cameras.intrinsics[0].tolist() == [[100, 0, 30], [0, 120, 25], [0, 0, 1]]
