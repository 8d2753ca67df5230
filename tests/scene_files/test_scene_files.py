import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from more4d_backend.files import FileFormatError, OutputError
from more4d_backend.geometry import pixel_centers, transform_points, unproject
from more4d_backend.scene import PointTracks, Scene4D
from more4d_backend.scene_files import load_scene, save_scene

seeds = st.integers(0, 2**32 - 1)


def keys(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}


@settings(deadline=None, max_examples=30)
@given(seed=seeds, exponent=st.integers(-12, 12), frames=st.integers(1, 9))
def test_tracks_come_back_within_the_stated_error_in_any_unit(
    tmp_path_factory, seed, exponent, frames, tracks_scene
):
    scene = tracks_scene(seed, frames, size=10.0**exponent)
    path = tmp_path_factory.mktemp("scene") / "scene.safetensors"
    save_scene(path, scene)
    back = load_scene(path)
    points, points_back = scene.points, back.points
    assert torch.equal(points_back.positions[0], points.positions[0])
    motion = points.motion.abs()
    bound = 2**-11 * motion + 2**-40 * motion.max() + 2**-22 * points.positions.abs()
    assert ((points_back.positions - points.positions).abs() <= bound).all()
    assert torch.equal(points_back.visibility, points.visibility)
    assert (points_back.colors - points.colors).abs().max() <= 4e-6
    assert points_back.grid_hw == points.grid_hw
    assert torch.equal(back.cameras.world_to_camera, scene.cameras.world_to_camera)
    assert torch.equal(back.cameras.intrinsics, scene.cameras.intrinsics)
    assert (back.cameras.height, back.cameras.width) == (60, 70)
    assert back.fps == scene.fps


@settings(deadline=None, max_examples=30)
@given(seed=seeds, exponent=st.integers(-6, 6), frames=st.integers(1, 4))
def test_point_maps_on_their_rays_come_back_within_the_stated_error(
    tmp_path_factory, seed, exponent, frames, point_maps_scene
):
    scene = point_maps_scene(seed, frames, size=10.0**exponent)
    path = tmp_path_factory.mktemp("scene") / "scene.safetensors"
    save_scene(path, scene)
    assert keys(path)["point_maps.log_depth"] == "F16"
    assert "point_maps.positions" not in keys(path)
    back, maps = load_scene(path).points, scene.points
    assert torch.equal(back.valid, maps.valid)
    assert back.positions[~maps.valid].isnan().all()
    depth = transform_points(maps.positions, scene.cameras.world_to_camera[:, None, None])[..., 2]
    from_camera = maps.positions - scene.cameras.camera_to_world[:, None, None, :3, 3]
    spread = (depth / depth[maps.valid].median()).log().abs()
    # The second part is float32 rounding of world coordinates of this size.
    bound = (2**-11 * spread + 1e-6)[..., None] * from_camera.norm(dim=-1, keepdim=True)
    bound = bound + 2e-6 * maps.positions.abs().nan_to_num(0).amax()
    error = (back.positions - maps.positions).abs()
    assert (error <= bound)[maps.valid].all()
    assert (back.colors - maps.colors).abs().max() <= 2**-12
    relative = (back.confidence - maps.confidence).abs() / maps.confidence.clamp_min(1e-3)
    assert relative.max() <= 2**-11


def test_point_maps_off_their_rays_come_back_exactly(tmp_path, point_maps_scene):
    scene = point_maps_scene()
    positions = scene.points.positions.clone()
    where = scene.points.valid.nonzero()[0]
    positions[tuple(where)] += 0.1
    scene = replace(scene, points=replace(scene.points, positions=positions, confidence=None))
    save_scene(tmp_path / "a.safetensors", scene)
    assert keys(tmp_path / "a.safetensors")["point_maps.positions"] == "F32"
    back = load_scene(tmp_path / "a.safetensors").points
    assert torch.equal(back.positions.nan_to_num(7), positions.nan_to_num(7))
    assert back.confidence is None


def test_point_maps_behind_the_camera_or_of_another_size_keep_their_positions(
    tmp_path, point_maps_scene
):
    scene = point_maps_scene()
    behind = replace(scene.points, positions=2 * scene.cameras.camera_to_world[:, None, None, :3, 3]
                     - scene.points.positions)  # fmt: skip
    larger = replace(scene.cameras, height=18)
    for number, other in enumerate([replace(scene, points=behind), replace(scene, cameras=larger)]):
        path = tmp_path / f"{number}.safetensors"
        save_scene(path, other)
        assert "point_maps.positions" in keys(path)
        assert torch.equal(
            load_scene(path).points.positions.nan_to_num(7), other.points.positions.nan_to_num(7)
        )


def test_a_point_that_appears_later_keeps_its_positions(tmp_path, tracks_scene):
    scene = tracks_scene()
    positions = scene.points.positions.clone()
    positions[:3, 4] = torch.nan
    positions[:, 5] = torch.inf
    visibility = torch.ones_like(scene.points.visibility)
    visibility[:3, 4] = visibility[:, 5] = False
    points = replace(scene.points, positions=positions, visibility=visibility)
    save_scene(tmp_path / "a.safetensors", replace(scene, points=points))
    back = load_scene(tmp_path / "a.safetensors").points
    assert torch.equal(back.positions.isfinite(), positions.isfinite())
    assert torch.equal(back.positions[3, 4], positions[3, 4])
    assert torch.allclose(back.positions[visibility], positions[visibility], rtol=0, atol=2e-3)


def test_one_point_that_flies_off_does_not_spoil_the_others(tmp_path, tracks_scene):
    scene = tracks_scene()
    positions = scene.points.positions.clone()
    positions[2, 0, 1] = 1e9
    save_scene(
        tmp_path / "a.safetensors",
        replace(scene, points=replace(scene.points, positions=positions)),
    )
    assert keys(tmp_path / "a.safetensors")["tracks.motion"] == "F32"
    back = load_scene(tmp_path / "a.safetensors").points.positions
    assert torch.allclose(back[:, 1:], positions[:, 1:], rtol=1e-6, atol=1e-6)


def test_convention_keys_and_bytes_of_a_tracks_file(tmp_path, tracks_scene):
    """The layout that docs/scene-files.md promises to other programs, with exact numbers."""
    scene = Scene4D(
        points=PointTracks(
            positions=torch.tensor([[[1.0, 2.0, 3.0]] * 9, [[1.0, 2.0, 7.0]] * 9]),
            colors=torch.tensor([[1.0, 0.0, 0.2]]).repeat(9, 1),
            visibility=torch.tensor([[True] + [False] * 8, [False] * 8 + [True]]),
        ),
        cameras=tracks_scene(frames=2).cameras,
        fps=24.0,
    )
    save_scene(tmp_path / "a.safetensors", scene)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "more4d-scene", "version": "1", "fps": "24.0", "height": "60",
            "width": "70", "motion_scale": repr(2.0**-12),
        }  # fmt: skip
        assert file.get_tensor("tracks.first_positions")[0].tolist() == [1, 2, 3]
        motion = file.get_tensor("tracks.motion")
        assert motion.dtype == torch.float16
        assert motion[:, 0].tolist() == [[0, 0, 0], [0, 0, 4 * 2.0**12]]
        assert file.get_tensor("tracks.visibility").tolist() == [[1, 0], [0, 1]]
        assert file.get_tensor("tracks.colors")[0].tolist() == [255, 0, 51]


def test_a_loaded_scene_does_not_change_with_its_file(tmp_path, point_maps_scene):
    path = tmp_path / "a.safetensors"
    scene = point_maps_scene()
    positions = scene.points.positions + 1
    save_scene(path, replace(scene, points=replace(scene.points, positions=positions)))
    back = load_scene(path)
    with path.open("r+b") as file:
        file.seek(0)
        file.write(bytes(path.stat().st_size))
    assert torch.equal(back.points.positions.nan_to_num(7), positions.nan_to_num(7))
    assert torch.equal(back.cameras.world_to_camera, scene.cameras.world_to_camera)


def test_visible_points_that_are_not_finite_are_not_saved(tmp_path, tracks_scene):
    scene = tracks_scene()
    positions = scene.points.positions.clone()
    visibility = torch.ones_like(scene.points.visibility)
    positions[1, 3, 0] = torch.nan
    points = replace(scene.points, positions=positions, visibility=visibility)
    with pytest.raises(ValueError, match="Frame 1 has 1 visible points that are NaN"):
        save_scene(tmp_path / "a.safetensors", replace(scene, points=points))
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_the_older_file(tmp_path, monkeypatch, tracks_scene):
    path = tmp_path / "a.safetensors"
    save_scene(path, tracks_scene())
    before = path.read_bytes()

    def half_written(tensors, temporary, metadata):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("more4d_backend.scene_files.save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_scene(path, tracks_scene(seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_empty_scenes_and_other_suffixes_are_refused(tmp_path, tracks_scene):
    scene = tracks_scene()
    with pytest.raises(OutputError, match=r"does not end in \.safetensors"):
        save_scene(tmp_path / "a.npz", scene)
    nothing = PointTracks(
        positions=torch.zeros(5, 0, 3), colors=torch.zeros(0, 3),
        visibility=torch.zeros(5, 0, dtype=torch.bool),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"scene is empty.*\(5, 0, 3\)"):
        save_scene(tmp_path / "a.safetensors", replace(scene, points=nothing))
    nan_color = replace(scene.points, colors=torch.full_like(scene.points.colors, torch.nan))
    with pytest.raises(ValueError, match="colors has entries that are NaN"):
        save_scene(tmp_path / "a.safetensors", replace(scene, points=nan_color))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b""), "truncated or of another format"),
        (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(500)), "of another format"),
        (lambda p: p.write_bytes(struct.pack("<Q", 2**62) + b"{}"), "of another format"),
        (lambda p: p.write_bytes(struct.pack("<Q", 2) + b"[]"), "header of another kind"),
        (lambda p: p.write_bytes(struct.pack("<Q", 9) + b"[" * 9), "cannot be read as"),
        (
            lambda p: p.write_bytes(struct.pack("<Q", 200000) + b'{"a":' * 40000),
            "cannot be read as",
        ),
        (
            lambda p: save_file({"blocks.0.attn.weight": torch.zeros(3), "b": torch.zeros(1)}, p),
            r"holds 2 tensors such as b, blocks\.0\.attn\.weight; it is not a More4D scene",
        ),
    ],
    ids=["empty", "zip", "huge-header", "list", "broken-json", "deep-json", "weights"],
)
def test_foreign_files_are_refused_by_what_they_are(tmp_path, write, message):
    path = tmp_path / "a.safetensors"
    write(path)
    with pytest.raises(FileFormatError, match=message):
        load_scene(path)


def rewritten(path, change) -> None:
    """Save the file again with tensors and metadata changed by `change(tensors, metadata)`."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    change(tensors, metadata)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


def put(name, value):
    def change(tensors, metadata):
        tensors[name] = value(tensors[name]) if callable(value) else value

    return change


def say(name, value):
    return lambda tensors, metadata: metadata.__setitem__(name, value)


def nan_at(tensor):
    tensor.view(-1)[5] = torch.nan
    return tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("cameras.world_to_camera", nan_at), "world_to_camera has a NaN"),
        (put("cameras.world_to_camera", lambda t: 2 * t), "not rigid"),
        (put("cameras.intrinsics", torch.zeros_like), "camera 0"),
        (put("cameras.intrinsics", lambda t: t[:2]), "intrinsics has shape"),
        (put("tracks.motion", lambda t: t.double()), "has dtype 'F64'; expected F16 or F32"),
        (put("tracks.motion", nan_at), "Frame 0 has 1 visible points"),
        (put("tracks.first_positions", lambda t: t[:1]), "expected"),
        (put("tracks.visibility", lambda t: t[:, :2]), "Packed flags have shape"),
        (put("tracks.colors", lambda t: t.half() * torch.nan), "colors has entries"),
        (put("tracks.extra", torch.zeros(1)), r"unexpected tensors \['tracks.extra'\]"),
        (lambda t, m: t.pop("tracks.colors"), r"missing tensors \['tracks.colors'\]"),
        (say("fps", "nan"), "fps='nan'; expected a finite number"),
        (say("fps", "-3"), "fps is -3"),
        (say("fps", "fast"), "fps='fast'; expected a number"),
        (lambda t, m: m.pop("fps"), "metadata lacks fps"),
        (say("height", "10000000000"), "expected 1 to 65536 pixels"),
        (say("height", "1.5"), "height is 1.5"),
        (say("grid_height", "5"), "grid_hw"),
        (say("motion_scale", "1e300"), "motion_scale='1e300'"),
        (say("version", "2"), "of version '2'; this is version 1. Update"),
        (say("format", "pt"), "is not a More4D scene"),
    ],
)  # fmt: skip
def test_damaged_scenes_are_refused_by_what_is_wrong(
    tmp_path, as_users_run_it, change, message, tracks_scene
):
    path = tmp_path / "a.safetensors"
    scene = tracks_scene()
    visible = torch.ones_like(scene.points.visibility)
    save_scene(path, replace(scene, points=replace(scene.points, visibility=visible)))
    rewritten(path, change)
    with pytest.raises(FileFormatError, match=message):
        load_scene(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("point_maps.log_depth", nan_at), "valid points that are NaN"),
        (put("point_maps.log_depth", lambda t: t[:, :-1]), "height"),
        (say("log_depth_center", "1e6"), "valid points that are NaN or infinite"),
        (say("width", "12"), "log_depth is 9x11 pixels; its cameras are 9x12"),
        (lambda t, m: m.pop("confidence_scale"), "metadata lacks confidence_scale"),
        (lambda t, m: t.pop("point_maps.log_depth"), "missing tensors"),
    ],
)
def test_damaged_point_maps_are_refused(
    tmp_path, as_users_run_it, change, message, point_maps_scene
):
    path = tmp_path / "a.safetensors"
    scene = point_maps_scene()
    everywhere = replace(
        scene.points,
        valid=torch.ones_like(scene.points.valid),
        positions=load_all_valid(scene),
    )
    save_scene(path, replace(scene, points=everywhere))
    rewritten(path, change)
    with pytest.raises(FileFormatError, match=message):
        load_scene(path)


def load_all_valid(scene: Scene4D) -> torch.Tensor:
    """Return positions at depth 2 for every pixel."""
    cameras = scene.cameras
    in_camera = unproject(
        pixel_centers(9, 11), torch.full((3, 9, 11), 2.0), cameras.intrinsics[:, None, None]
    )
    return transform_points(in_camera, cameras.camera_to_world[:, None, None])


def forged_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one entry of the JSON header and keep the lengths right."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = str(rng.choice(list(header)))
    entry = header[name]
    field = str(rng.choice(list(entry)))
    odd = [0, -1, 1, 2**31, 2**63, 10**30, 1.5, None, "", "F64", "U8", "F32", "nan", "1e400",
           [], [2**40, 0], [2**32, 2**32], [1] * 70, {}, True]  # fmt: skip
    value = odd[rng.integers(len(odd))]
    if isinstance(entry[field], list) and rng.random() < 0.6:
        entry[field][rng.integers(len(entry[field]))] = value
    elif rng.random() < 0.2:
        header[name] = value
    elif rng.random() < 0.1:
        del header[name]
    else:
        entry[field] = value
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.parametrize("kind", ["tracks_scene", "point_maps_scene"])
def test_no_mutation_raises_anything_but_the_documented_error(
    tmp_path, as_users_run_it, little_memory, mutate, request, kind
):
    path = tmp_path / "a.safetensors"
    save_scene(path, request.getfixturevalue(kind)(frames=3))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(2400):
        damaged = forged_header(whole, rng) if number % 3 == 0 else mutate(whole, rng)
        path.write_bytes(damaged)
        try:
            load_scene(path)
        except FileFormatError as e:
            assert str(path) in str(e)  # noqa: PT017
            refused += 1
    assert 1200 < refused < 2400


def test_a_repeated_camera_and_float64_positions_are_saved(tmp_path, tracks_scene):
    scene = tracks_scene()
    scene = replace(
        scene,
        cameras=scene.cameras.frames([0]).repeated(5),
        points=replace(scene.points, positions=scene.points.positions.double()),
    )
    save_scene(tmp_path / "a.safetensors", scene)
    back = load_scene(tmp_path / "a.safetensors")
    assert torch.equal(back.cameras.world_to_camera, scene.cameras.world_to_camera)
    assert back.points.positions.dtype == torch.float32
    assert torch.equal(back.points.positions[0], scene.points.positions[0].float())
