import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend import Cameras
from more4d_backend.camera_files import (
    CAMERA_FORMATS,
    guess_camera_format,
    load_cameras,
    save_cameras,
)
from more4d_backend.camera_files.json_formats import (
    cameras_from_load3d,
    is_keyframe_file,
    load3d_from_cameras,
)
from more4d_backend.files import FileFormatError, OutputError

SEEDS = st.integers(0, 2**31)
HEIGHT, WIDTH = 48, 64
SQUARE = torch.tensor([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]])
SUFFIX = {"transforms": ".json", "colmap": "", "realestate10k": ".txt", "tum": ".tum",
          "load3d": ".json", "npz": ".npz"}  # fmt: skip
NEEDS_SIZE = [name for name, form in CAMERA_FORMATS.items() if "size_hw" in form.lacks]


# Conventions, with exact numbers


def test_convention_nerfstudio_transforms(
    along_x, assert_is_along_x, transforms_along_x, write_text, tmp_path
):
    file = write_text(tmp_path / "transforms.json", json.dumps(transforms_along_x))
    assert_is_along_x(load_cameras(file))
    save_cameras(tmp_path / "out.json", along_x())
    written = json.loads((tmp_path / "out.json").read_text())
    wanted = transforms_along_x["frames"][0]["transform_matrix"]
    assert written["frames"][0]["transform_matrix"] == wanted
    assert (written["fl_x"], written["cx"], written["h"]) == (100, 32, 48)
    assert written["camera_angle_x"] == pytest.approx(2 * math.atan(0.32))
    assert "fl_x" not in written["frames"][0]


def test_convention_blender_camera_angle_x(
    assert_is_along_x, transforms_along_x, write_text, tmp_path
):
    document = {"camera_angle_x": 2 * math.atan(0.32), "frames": transforms_along_x["frames"]}
    file = write_text(tmp_path / "transforms_train.json", json.dumps(document))
    assert_is_along_x(load_cameras(file, size_hw=(HEIGHT, WIDTH)))
    with pytest.raises(FileFormatError, match=r"does not say the size .*size_hw=\(height, width\)"):
        load_cameras(file)


# Half a turn between x and z: our quaternion of ALONG_X's rotation is (1, 0, -1, 0) / sqrt(2).
HALF = math.sqrt(0.5)


def test_convention_colmap(along_x, assert_is_along_x, write_text, tmp_path):
    write_text(tmp_path / "cameras.txt", "# comment\n7 PINHOLE 64 48 100 100 32 24\n")
    write_text(
        tmp_path / "images.txt",
        f"# comment\n1 {HALF} 0 {-HALF} 0 3 -2 -1 7 a.png\n12.5 3.5 -1 4 5 17\n",
    )
    assert_is_along_x(load_cameras(tmp_path))
    assert_is_along_x(load_cameras(tmp_path / "images.txt"))
    save_cameras(tmp_path / "out", along_x())
    written = (tmp_path / "out" / "images.txt").read_text().splitlines()
    numbers = [float(word) for word in written[2].split()[:9]]
    assert numbers == pytest.approx([1, HALF, 0, -HALF, 0, 3, -2, -1, 1], abs=1e-6)
    assert written[3] == ""  # no 2D points, yet their line is there
    camera = (tmp_path / "out" / "cameras.txt").read_text().splitlines()[1]
    assert camera == "1 PINHOLE 64 48 100.0 100.0 32.0 24.0"
    assert (tmp_path / "out" / "points3D.txt").is_file()


def test_convention_simple_pinhole(assert_is_along_x, write_text, tmp_path):
    write_text(tmp_path / "cameras.txt", "1 SIMPLE_PINHOLE 64 48 100 32 24\n")
    write_text(tmp_path / "images.txt", f"1 {HALF} 0 {-HALF} 0 3 -2 -1 1 a.png\n\n")
    assert_is_along_x(load_cameras(tmp_path))


def test_convention_realestate10k(along_x, assert_is_along_x, write_text, tmp_path):
    row = f"5005 {100 / 64} {100 / 48} 0.5 0.5 0 0 0 0 -1 3 0 1 0 -2 1 0 0 -1"
    file = write_text(tmp_path / "a.txt", f"https://www.youtube.com/watch?v=0\n{row}\n")
    assert_is_along_x(load_cameras(file, size_hw=(HEIGHT, WIDTH)))
    assert_is_along_x(load_cameras(write_text(file, row), size_hw=(HEIGHT, WIDTH)))
    save_cameras(tmp_path / "b.txt", along_x().repeated(3), file_format="realestate10k", fps=8)
    lines = (tmp_path / "b.txt").read_text().splitlines()
    assert len(lines) == 4
    numbers = [float(word) for word in lines[2].split()]
    assert numbers == pytest.approx([125_000, *map(float, row.split()[1:])], abs=1e-6)


def test_convention_tum_is_camera_to_world_with_the_quaternion_last_number_w(
    along_x, assert_is_along_x, write_text, tmp_path
):
    # Camera-to-world turns the other way than world-to-camera.
    row = f"1.5 1 2 3 0 {HALF} 0 {HALF}"
    file = write_text(tmp_path / "a.txt", f"# timestamp tx ty tz qx qy qz qw\n{row}\n")
    assert_is_along_x(load_cameras(file, size_hw=(HEIGHT, WIDTH), intrinsics=SQUARE))
    save_cameras(tmp_path / "b.tum", along_x().repeated(4), fps=2)
    lines = (tmp_path / "b.tum").read_text().splitlines()
    numbers = [float(word) for word in lines[4].split()]
    assert numbers == pytest.approx([float(word) for word in row.split()], abs=1e-6)


def test_convention_load3d_camera_is_y_up_and_looks_down_minus_z(along_x, assert_is_along_x):
    # In the host's world: position (1, -2, -3), looking along +x, up is +y: a turn of -90
    # degrees about y. Vertical field of view: 2 atan(24 / 100).
    info = {
        "position": {"x": 1, "y": -2, "z": -3},
        "target": {"x": 2, "y": -2, "z": -3},
        "quaternion": {"x": 0, "y": -HALF, "z": 0, "w": HALF},
        "zoom": 1,
        "fov": math.degrees(2 * math.atan(0.24)),
        "cameraType": "perspective",
    }
    assert_is_along_x(cameras_from_load3d(info, (HEIGHT, WIDTH)))
    for quaternion in ({}, {"quaternion": None}):
        by_target = {name: value for name, value in info.items() if name != "quaternion"}
        assert_is_along_x(cameras_from_load3d(by_target | quaternion, (HEIGHT, WIDTH)))
    (written,) = load3d_from_cameras(along_x())
    assert written["cameraType"] == "perspective"
    assert written["fov"] == pytest.approx(info["fov"], abs=1e-5)
    assert written["aspect"] == pytest.approx(64 / 48)
    for name in ("position", "target", "quaternion"):
        assert written[name] == pytest.approx(info[name], abs=1e-6)


def test_convention_the_hosts_default_camera_is_ours_behind_the_scene():
    # three.js: a camera on +z looking at the origin. Our z is its -z.
    info = {"position": {"x": 0, "y": 0, "z": 5}, "target": {"x": 0, "y": 0, "z": 0}, "fov": 90}
    cameras = cameras_from_load3d([info], (48, 64))
    wanted = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 5], [0, 0, 0, 1]]
    assert cameras.world_to_camera[0].tolist() == wanted
    assert cameras.intrinsics[0, 1, 1] == pytest.approx(24)


def test_the_zoom_of_a_load3d_camera_multiplies_the_focal_length():
    info = {"position": {"x": 0, "y": 0, "z": 5}, "target": {"x": 0, "y": 0, "z": 0}, "zoom": 2}
    cameras = cameras_from_load3d(info | {"fov": 90}, (48, 64))
    assert cameras.intrinsics[0, 0, 0] == pytest.approx(48)
    cameras = cameras_from_load3d(info, (HEIGHT, WIDTH), intrinsics=SQUARE)
    assert cameras.intrinsics[0].tolist() == [[200, 0, 32], [0, 200, 24], [0, 0, 1]]
    with pytest.raises(FileFormatError, match=r"has no intrinsics\. Pass intrinsics="):
        cameras_from_load3d(info, (48, 64))


# Round trips


@pytest.mark.parametrize("name", CAMERA_FORMATS)
@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, num_frames=st.integers(1, 12), same_lens=st.booleans())
def test_what_is_written_is_read_back(
    hints_for, random_cameras, tmp_path_factory, name, seed, num_frames, same_lens
):
    cameras = random_cameras(
        seed, num_frames, square=name == "load3d", one_lens=same_lens or name == "tum"
    )
    path = tmp_path_factory.mktemp(name) / f"cameras{SUFFIX[name]}"
    save_cameras(path, cameras, file_format=name)
    assert guess_camera_format(path) == name
    read = load_cameras(path, **hints_for(name, cameras))
    # Measured: 6e-6 (a float32 rotation's transpose is its inverse to 1e-7, times 20 units).
    tolerance = 0 if name == "npz" else 1e-5
    for field in ("world_to_camera", "intrinsics"):
        got, wanted = getattr(read, field), getattr(cameras, field)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    assert (read.height, read.width) == (HEIGHT, WIDTH)


def test_a_written_file_replaces_an_older_one_of_its_kind(carried, hints_for, tmp_path):
    for name in CAMERA_FORMATS:
        path = tmp_path / f"{name}{SUFFIX[name]}"
        for seed in (1, 2):
            save_cameras(path, carried(name, seed), file_format=name)
        read = load_cameras(path, **hints_for(name, carried(name, 2)))
        torch.testing.assert_close(
            read.world_to_camera, carried(name, 2).world_to_camera, rtol=1e-5, atol=1e-5
        )
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_folder_with_other_things_is_never_replaced(along_x, write_text, tmp_path):
    write_text(tmp_path / "out" / "thesis.txt", "years of work")
    with pytest.raises(OutputError, match=r"holds thesis\.txt"):
        save_cameras(tmp_path / "out", along_x(), file_format="colmap")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


# Which format


def test_the_ending_chooses_the_format_to_write(along_x, tmp_path):
    for name, wanted in (
        ("a.npz", "npz"),
        ("b.json", "transforms"),
        ("c.tum", "tum"),
        ("d", "colmap"),
    ):
        save_cameras(tmp_path / name, along_x())
        assert guess_camera_format(tmp_path / name) == wanted
    with pytest.raises(OutputError, match=r"ending of e\.txt does not tell .*realestate10k"):
        save_cameras(tmp_path / "e.txt", along_x())


def test_unknown_formats_suggest_the_nearest(along_x, tmp_path):
    for call in (load_cameras, lambda p, **more: save_cameras(p, along_x(), **more)):
        with pytest.raises(
            ValueError, match=r"no camera format 'colmpa'; .* Did you mean colmap\?"
        ):
            call(tmp_path / "x", file_format="colmpa")


def test_what_is_no_camera_file_is_refused_with_the_list_of_formats(write_text, tmp_path):
    for name, text in (("a.txt", "one two three"), ("b.json", '{"a": 1}'), ("c.json", "[]")):
        file = write_text(tmp_path / name, text)
        with pytest.raises(
            FileFormatError, match=r"not a camera file of a known format.*transforms"
        ):
            load_cameras(file)
    with pytest.raises(FileFormatError, match="known format"):
        load_cameras(tmp_path)
    with pytest.raises(FileNotFoundError, match="no camera file at"):
        load_cameras(tmp_path / "nothing.npz")


def test_keyframes_are_told_apart_and_their_reader_is_named(along_x, write_text, tmp_path):
    file = write_text(tmp_path / "k.json", '{"format": "more4d-camera-keyframes", "keyframes": []}')
    with pytest.raises(FileFormatError, match="use load_keyframes"):
        load_cameras(file)
    assert is_keyframe_file(file)
    save_cameras(tmp_path / "t.json", along_x())
    save_cameras(tmp_path / "t.npz", along_x())
    for other in ("t.json", "t.npz", "none.json", "."):
        assert not is_keyframe_file(tmp_path / other)


@pytest.mark.parametrize("name", NEEDS_SIZE)
def test_what_a_format_cannot_carry_is_asked_for(carried, hints_for, tmp_path, name):
    cameras = carried(name, 0)
    path = tmp_path / f"a{SUFFIX[name]}"
    save_cameras(path, cameras, file_format=name)
    hints = hints_for(name, cameras)
    with pytest.raises(
        FileFormatError, match=r"does not say the size of the images\. Pass size_hw"
    ):
        load_cameras(path, **(hints | {"size_hw": None}))
    if "intrinsics" in CAMERA_FORMATS[name].lacks:
        with pytest.raises(FileFormatError, match=r"has no intrinsics\. Pass intrinsics="):
            load_cameras(path, **(hints | {"intrinsics": None}))


@pytest.mark.parametrize("name", CAMERA_FORMATS)
def test_a_camera_like_it_fills_in_what_a_format_does_not_carry_and_nothing_else(
    along_x, assert_is_along_x, write_text, tmp_path, name
):
    path = tmp_path / f"a{SUFFIX[name]}"
    save_cameras(path, along_x(), file_format=name)
    like = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=2 * SQUARE[None] - torch.diag(torch.tensor([0.0, 0, 1])),
        height=2 * HEIGHT,
        width=2 * WIDTH,
    )
    read = load_cameras(path, like=like)
    if name in NEEDS_SIZE:
        assert (read.height, read.width) == (2 * HEIGHT, 2 * WIDTH)
    assert_is_along_x(read.resized(HEIGHT, WIDTH))
    if name == "transforms":
        document = json.loads(path.read_text())
        for field in ("fl_x", "fl_y", "camera_angle_x"):
            del document[field]
        write_text(path, json.dumps(document))
        assert_is_along_x(load_cameras(path, like=like))


@pytest.mark.parametrize("name", ["transforms", "colmap", "npz"])
def test_a_size_that_contradicts_the_file_is_refused_with_a_way_out(along_x, tmp_path, name):
    path = tmp_path / f"a{SUFFIX[name]}"
    save_cameras(path, along_x(), file_format=name)
    assert load_cameras(path, size_hw=(HEIGHT, WIDTH)).height == HEIGHT
    with pytest.raises(
        FileFormatError, match=r"48x64 and size_hw is \(96, 128\).*cameras\.resized"
    ):
        load_cameras(path, size_hw=(96, 128))


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ({"size_hw": (0, 64)}, r"size_hw is \(0, 64\)"),
        ({"size_hw": (48, 10**9)}, "size_hw is"),
        ({"intrinsics": torch.eye(4)}, r"intrinsics has shape \(4, 4\)"),
        ({"intrinsics": SQUARE / 100, "size_hw": (48, 64)}, "fx=1"),
        ({"intrinsics": torch.zeros(3, 3), "size_hw": (48, 64)}, "intrinsics"),
    ],
)
def test_hints_that_are_no_size_or_intrinsics_are_refused(
    along_x, as_users_run_it, tmp_path, hints, message
):
    save_cameras(tmp_path / "a.tum", along_x())
    with pytest.raises(ValueError, match=message):
        load_cameras(tmp_path / "a.tum", **hints)


def test_a_frame_rate_that_is_none_is_refused(along_x, tmp_path):
    with pytest.raises(ValueError, match="fps is 0; expected a positive"):
        save_cameras(tmp_path / "a.tum", along_x(), fps=0)


def test_what_a_format_leaves_out_is_logged(along_x, tmp_path, caplog):
    skewed, off, squeezed = SQUARE.clone(), SQUARE.clone(), SQUARE.clone()
    skewed[0, 1], off[0, 2], squeezed[0, 0] = 1.0, 40.0, 80.0
    for intrinsics, message in (
        (skewed, "cannot carry skew"),
        (off, "a principal point off the middle"),
        (squeezed, "fx different from fy"),
    ):
        caplog.clear()
        load3d_from_cameras(along_x(intrinsics))
        assert message in caplog.text
    caplog.clear()
    load3d_from_cameras(along_x())
    assert not caplog.text
