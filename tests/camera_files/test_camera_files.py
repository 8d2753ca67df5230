import io
import json
import math
import tracemalloc
import zipfile

import numpy as np
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
from more4d_backend.geometry import (
    intrinsics_from_focal,
    matrix_from_quaternion_wxyz,
    rigid,
)

SEEDS = st.integers(0, 2**31)
HEIGHT, WIDTH = 48, 64
SQUARE = torch.tensor([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]])
SUFFIX = {"transforms": ".json", "colmap": "", "realestate10k": ".txt", "tum": ".tum",
          "load3d": ".json", "npz": ".npz"}  # fmt: skip
NEEDS_SIZE = [name for name, form in CAMERA_FORMATS.items() if "size_hw" in form.lacks]

# One known camera: at (1, 2, 3), looking along +x of our world with its own down pointing down.
# Its right is our -z. So camera x = 3 - z, camera y = y - 2, camera z = x - 1.
ALONG_X = torch.tensor(
    [[0.0, 0, -1, 3], [0, 1, 0, -2], [1, 0, 0, -1], [0, 0, 0, 1]], dtype=torch.float64
)


def along_x(intrinsics=SQUARE):
    return Cameras(
        world_to_camera=ALONG_X.float()[None],
        intrinsics=intrinsics[None],
        height=HEIGHT,
        width=WIDTH,
    )


def random_cameras(seed, num_frames=3, *, square=False, one_lens=False):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(num_frames, 7, generator=generator)
    lens = torch.rand(1 if one_lens else num_frames, 4, generator=generator).expand(num_frames, 4)
    K = intrinsics_from_focal(40 + 60 * lens[:, 0], HEIGHT, WIDTH)
    if not square:
        K[:, 1, 1] += 10 * lens[:, 1]
        K[:, 0, 2] += 8 * lens[:, 2] - 4
        K[:, 1, 2] += 8 * lens[:, 3] - 4
    return Cameras(
        world_to_camera=rigid(matrix_from_quaternion_wxyz(numbers[:, :4]), 5 * numbers[:, 4:]),
        intrinsics=K,
        height=HEIGHT,
        width=WIDTH,
    )


def hints_for(name, cameras):
    """What this format does not carry."""
    size = {"size_hw": (cameras.height, cameras.width)} if name in NEEDS_SIZE else {}
    needs_lens = "intrinsics" in CAMERA_FORMATS[name].lacks
    return size | ({"intrinsics": cameras.intrinsics[0]} if needs_lens else {})


def carried(name, seed, num_frames=3):
    """Random cameras of the kind that this format carries whole."""
    return random_cameras(seed, num_frames, square=name == "load3d", one_lens=name == "tum")


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# Conventions, with exact numbers


def assert_is_along_x(cameras):
    torch.testing.assert_close(cameras.world_to_camera[0], ALONG_X.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(cameras.intrinsics[0], SQUARE, rtol=0, atol=1e-4)
    assert (cameras.num_frames, cameras.height, cameras.width) == (1, HEIGHT, WIDTH)


TRANSFORMS_ALONG_X = {
    "fl_x": 100, "fl_y": 100, "cx": 32, "cy": 24, "w": 64, "h": 48,
    # Columns: right (0, 0, -1), up (0, -1, 0), back (-1, 0, 0), position.
    "frames": [{"file_path": "a.png", "transform_matrix":
                [[0, 0, -1, 1], [0, -1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]]}],
}  # fmt: skip


def test_convention_nerfstudio_transforms(tmp_path):
    file = write_text(tmp_path / "transforms.json", json.dumps(TRANSFORMS_ALONG_X))
    assert_is_along_x(load_cameras(file))
    save_cameras(tmp_path / "out.json", along_x())
    written = json.loads((tmp_path / "out.json").read_text())
    wanted = TRANSFORMS_ALONG_X["frames"][0]["transform_matrix"]
    assert written["frames"][0]["transform_matrix"] == wanted
    assert (written["fl_x"], written["cx"], written["h"]) == (100, 32, 48)
    assert written["camera_angle_x"] == pytest.approx(2 * math.atan(0.32))
    assert "fl_x" not in written["frames"][0]


def test_convention_blender_camera_angle_x(tmp_path):
    document = {"camera_angle_x": 2 * math.atan(0.32), "frames": TRANSFORMS_ALONG_X["frames"]}
    file = write_text(tmp_path / "transforms_train.json", json.dumps(document))
    assert_is_along_x(load_cameras(file, size_hw=(HEIGHT, WIDTH)))
    with pytest.raises(FileFormatError, match=r"does not say the size .*size_hw=\(height, width\)"):
        load_cameras(file)


# Half a turn between x and z: our quaternion of ALONG_X's rotation is (1, 0, -1, 0) / sqrt(2).
HALF = math.sqrt(0.5)


def test_convention_colmap(tmp_path):
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


def test_convention_simple_pinhole(tmp_path):
    write_text(tmp_path / "cameras.txt", "1 SIMPLE_PINHOLE 64 48 100 32 24\n")
    write_text(tmp_path / "images.txt", f"1 {HALF} 0 {-HALF} 0 3 -2 -1 1 a.png\n\n")
    assert_is_along_x(load_cameras(tmp_path))


def test_convention_realestate10k(tmp_path):
    row = f"5005 {100 / 64} {100 / 48} 0.5 0.5 0 0 0 0 -1 3 0 1 0 -2 1 0 0 -1"
    file = write_text(tmp_path / "a.txt", f"https://www.youtube.com/watch?v=0\n{row}\n")
    assert_is_along_x(load_cameras(file, size_hw=(HEIGHT, WIDTH)))
    assert_is_along_x(load_cameras(write_text(file, row), size_hw=(HEIGHT, WIDTH)))
    save_cameras(tmp_path / "b.txt", along_x().repeated(3), file_format="realestate10k", fps=8)
    lines = (tmp_path / "b.txt").read_text().splitlines()
    assert len(lines) == 4
    numbers = [float(word) for word in lines[2].split()]
    assert numbers == pytest.approx([125_000, *map(float, row.split()[1:])], abs=1e-6)


def test_convention_tum_is_camera_to_world_with_the_quaternion_last_number_w(tmp_path):
    # Camera-to-world turns the other way than world-to-camera.
    row = f"1.5 1 2 3 0 {HALF} 0 {HALF}"
    file = write_text(tmp_path / "a.txt", f"# timestamp tx ty tz qx qy qz qw\n{row}\n")
    assert_is_along_x(load_cameras(file, size_hw=(HEIGHT, WIDTH), intrinsics=SQUARE))
    save_cameras(tmp_path / "b.tum", along_x().repeated(4), fps=2)
    lines = (tmp_path / "b.tum").read_text().splitlines()
    numbers = [float(word) for word in lines[4].split()]
    assert numbers == pytest.approx([float(word) for word in row.split()], abs=1e-6)


def test_convention_load3d_camera_is_y_up_and_looks_down_minus_z():
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
def test_what_is_written_is_read_back(tmp_path_factory, name, seed, num_frames, same_lens):
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


def test_a_written_file_replaces_an_older_one_of_its_kind(tmp_path):
    for name in CAMERA_FORMATS:
        path = tmp_path / f"{name}{SUFFIX[name]}"
        for seed in (1, 2):
            save_cameras(path, carried(name, seed), file_format=name)
        read = load_cameras(path, **hints_for(name, carried(name, 2)))
        torch.testing.assert_close(
            read.world_to_camera, carried(name, 2).world_to_camera, rtol=1e-5, atol=1e-5
        )
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    write_text(tmp_path / "out" / "thesis.txt", "years of work")
    with pytest.raises(OutputError, match=r"holds thesis\.txt"):
        save_cameras(tmp_path / "out", along_x(), file_format="colmap")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


# Which format


def test_the_ending_chooses_the_format_to_write(tmp_path):
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


def test_unknown_formats_suggest_the_nearest(tmp_path):
    for call in (load_cameras, lambda p, **more: save_cameras(p, along_x(), **more)):
        with pytest.raises(
            ValueError, match=r"no camera format 'colmpa'; .* Did you mean colmap\?"
        ):
            call(tmp_path / "x", file_format="colmpa")


def test_what_is_no_camera_file_is_refused_with_the_list_of_formats(tmp_path):
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


def test_keyframes_are_told_apart_and_their_reader_is_named(tmp_path):
    file = write_text(tmp_path / "k.json", '{"format": "more4d-camera-keyframes", "keyframes": []}')
    with pytest.raises(FileFormatError, match="use load_keyframes"):
        load_cameras(file)
    assert is_keyframe_file(file)
    save_cameras(tmp_path / "t.json", along_x())
    save_cameras(tmp_path / "t.npz", along_x())
    for other in ("t.json", "t.npz", "none.json", "."):
        assert not is_keyframe_file(tmp_path / other)


@pytest.mark.parametrize("name", NEEDS_SIZE)
def test_what_a_format_cannot_carry_is_asked_for(tmp_path, name):
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
def test_a_camera_like_it_fills_in_what_a_format_does_not_carry_and_nothing_else(tmp_path, name):
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
def test_a_size_that_contradicts_the_file_is_refused_with_a_way_out(tmp_path, name):
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
    as_users_run_it, tmp_path, hints, message
):
    save_cameras(tmp_path / "a.tum", along_x())
    with pytest.raises(ValueError, match=message):
        load_cameras(tmp_path / "a.tum", **hints)


def test_a_frame_rate_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="fps is 0; expected a positive"):
        save_cameras(tmp_path / "a.tum", along_x(), fps=0)


def test_what_a_format_leaves_out_is_logged(tmp_path, caplog):
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


# transforms.json


def transforms(tmp_path, **changes):
    document = {k: v for k, v in (TRANSFORMS_ALONG_X | changes).items() if v is not None}
    return write_text(tmp_path / "transforms.json", json.dumps(document))


def test_a_frames_own_lens_goes_before_that_of_the_file(tmp_path):
    (frame,) = TRANSFORMS_ALONG_X["frames"]
    file = transforms(tmp_path, frames=[frame, frame | {"fl_x": 50, "fl_y": 60, "cx": 30}])
    K = load_cameras(file).intrinsics
    assert K[0].tolist() == SQUARE.tolist()
    assert K[1].tolist() == [[50, 0, 30], [0, 60, 24], [0, 0, 1]]


def test_missing_numbers_of_the_lens_are_filled_in_as_nerfstudio_does(tmp_path):
    file = transforms(tmp_path, fl_y=None, cx=None, cy=None)
    assert load_cameras(file).intrinsics[0].tolist() == SQUARE.tolist()
    file = transforms(tmp_path, fl_x=None, fl_y=None)
    with pytest.raises(FileFormatError, match="has no intrinsics"):
        load_cameras(file)
    assert torch.equal(load_cameras(file, intrinsics=SQUARE).intrinsics[0], SQUARE)


def test_lens_distortion_is_left_out_with_a_warning_and_fisheyes_are_refused(tmp_path, caplog):
    assert_is_along_x(load_cameras(transforms(tmp_path, camera_model="OPENCV", k1=0.1)))
    assert "has lens distortion" in caplog.text
    with pytest.raises(FileFormatError, match='camera_model is "OPENCV_FISHEYE"; expected one of'):
        load_cameras(transforms(tmp_path, camera_model="OPENCV_FISHEYE"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": []}, "has no cameras"),
        ({"frames": 3}, "frames is 3; expected an array"),
        ({"frames": [[]]}, r"frames\[0\] is an array of 0; expected an object"),
        ({"frames": [{}]}, r"frames\[0\]\.transform_matrix is missing"),
        ({"frames": [{"transform_matrix": [[1, 0, 0, 0]] * 2}]}, "has 2 rows; expected 4"),
        ({"frames": [{"transform_matrix": [[1, 0, 0]] * 4}]}, r"\[0\] is an array of 3"),
        ({"frames": [{"transform_matrix": np.diag([2, 2, 2, 1]).tolist()}]},
         "camera-to-world pose of frame 0 is not rigid"),
        ({"w": 64.5}, r"w is 64\.5; expected whole pixels"),
        ({"w": 0}, "w is 0; expected whole pixels"),
        ({"w": 1e8}, "expected whole pixels"),
        ({"fl_x": 0}, "fl_x is 0; expected a number from 1e-06"),
        ({"fl_x": None, "camera_angle_x": 4}, "camera_angle_x is 4; expected a number from"),
        ({"cx": "middle"}, 'cx is "middle"; expected a number'),
        ({"fl_x": 1.5, "fl_y": 2, "cx": 0.5, "cy": 0.5}, "looks normalised by the image size"),
    ],
)  # fmt: skip
def test_a_wrong_transforms_field_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(FileFormatError, match=message):
        load_cameras(transforms(tmp_path, **changes))


def test_images_of_several_sizes_are_refused(tmp_path):
    (frame,) = TRANSFORMS_ALONG_X["frames"]
    with pytest.raises(FileFormatError, match="several sizes"):
        load_cameras(transforms(tmp_path, frames=[frame, frame | {"w": 32}]))


# COLMAP


def colmap(tmp_path, cameras="1 PINHOLE 64 48 100 100 32 24", images=None):
    if images is None:
        images = f"1 {HALF} 0 {-HALF} 0 3 -2 -1 1 a.png\n\n"
    write_text(tmp_path / "cameras.txt", cameras)
    write_text(tmp_path / "images.txt", images)
    return tmp_path


def test_colmap_images_are_ordered_by_name_with_numbers_as_numbers(tmp_path):
    names = ["frame_10.png", "frame_2.png", "frame_0001.png", "my frame.png"]
    lines = [f"{i} 1 0 0 0 {i} 0 0 1 {name}\n" for i, name in enumerate(names)]
    cameras = load_cameras(colmap(tmp_path, images="\n".join([*lines, ""])))
    assert cameras.world_to_camera[:, 0, 3].tolist() == [2, 1, 0, 3]


def test_each_colmap_image_may_have_its_own_camera(tmp_path):
    lenses = "1 PINHOLE 64 48 100 100 32 24\n9 SIMPLE_RADIAL 64 48 50 32 24 0\n"
    images = "1 1 0 0 0 0 0 0 9 b.png\n\n2 1 0 0 0 0 0 0 1 a.png\n\n"
    cameras = load_cameras(colmap(tmp_path, lenses, images))
    assert cameras.intrinsics[:, 0, 0].tolist() == [100, 50]


def test_colmap_distortion_is_left_out_with_a_warning(tmp_path, caplog):
    assert_is_along_x(load_cameras(colmap(tmp_path, "1 OPENCV 64 48 100 100 32 24 0 0.1 0 0")))
    assert "has lens distortion" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": "1 FISHEYE 64 48 1 2 3"}, "model is 'FISHEYE'; .*image_undistorter"),
        ({"cameras": "1 PINHOLE 64"}, "line 1 has 3 words"),
        ({"cameras": "1 PINHOLE 64 48 100 100 32"}, "PINHOLE has 3 parameters; expected 4"),
        ({"cameras": "1 PINHOLE 64 48 100 nan 32 24"}, "'nan' is not a number"),
        ({"cameras": "1 PINHOLE 64.5 48 100 100 32 24"}, r"width is 64\.5; expected whole"),
        ({"cameras": "1 PINHOLE 64 48 -100 100 32 24"}, "negative focal length"),
        ({"cameras": ""}, "is empty"),
        ({"images": "# nothing\n"}, "has no cameras"),
        ({"images": "1 1 0 0 0 0 0 0 5 a.png\n\n"}, "camera '5' is not in cameras"),
        ({"images": "1 1 0 0 0 0 0 0\n\n"}, "line 1 has 8 words"),
        ({"images": "1 2 0 0 0 0 0 0 1 a.png\n\n"}, "quaternion of camera 0 has length 2"),
        ({"images": "1 0 0 0 0 0 0 0 1 a.png\n\n"}, "quaternion of camera 0 has length 0"),
        ({"images": "1 1 0 0 0 0 0 1e99 1 a.png\n\n"}, "'1e99' is not a number from"),
        ({"images": "1 1 0 0 0 0 0 0 1 a.png\n2 1 0 0 0 0 0 0 1 b.png\n"}, "line 2 should hold"),
        ({"images": "1 1 0 0 0 0 0 0 1 a\n2 1 0 0 0 0 0 0 1 b b.png\n"}, "line 2 should hold"),
    ],
)  # fmt: skip
def test_a_wrong_colmap_line_is_refused_by_number(tmp_path, changes, message):
    with pytest.raises(FileFormatError, match=message):
        load_cameras(colmap(tmp_path, **changes))


def test_a_file_that_only_has_the_name_of_a_colmap_file_is_told_by_its_contents(tmp_path):
    save_cameras(tmp_path / "cameras.txt", along_x(), file_format="tum")
    assert guess_camera_format(tmp_path / "cameras.txt") == "tum"


def test_a_binary_or_half_colmap_model_is_refused_with_advice(tmp_path):
    write_text(tmp_path / "cameras.txt", "1 PINHOLE 64 48 100 100 32 24")
    with pytest.raises(
        FileFormatError, match=r"has cameras\.txt and images\.txt\. .*model_converter"
    ):
        load_cameras(tmp_path, file_format="colmap")


# Other damage


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tum", "0 0 0 0 0 0 0 1\n1 0 0 0 0 0 1", "line 2 has 7 numbers; expected 8"),
        ("tum", "0 0 0 0 0 0 0 0", "quaternion of camera 0 has length 0"),
        ("tum", "0 0 0 0 1 1 1 1", "quaternion of camera 0 has length 2"),
        ("tum", "0 0 inf 0 0 0 0 1", "line 1: 'inf' is not a number"),
        ("tum", "# only a comment\n", "has no cameras"),
        ("realestate10k", "url\n", "has no cameras"),
        ("realestate10k", "url\n" + " ".join(["0"] * 19), "not rigid"),
        ("realestate10k", "url\n1 2\n", "line 2 has 2 numbers; expected 19"),
        ("load3d", "3", "is 3; expected an array"),
        ("load3d", "[]", "has no cameras"),
        ("load3d", "[{}]", r"\[0\]\.position is missing"),
        ("load3d", '{"position": {"x": 0, "y": 0}}', r"position\.z is missing"),
        ("npz", "not a zip", "cannot be read as an npz file"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path, name, text, message):
    file = write_text(tmp_path / f"a{SUFFIX[name]}", text)
    hints = {} if name == "npz" else {"size_hw": (HEIGHT, WIDTH), "intrinsics": SQUARE}
    with pytest.raises(FileFormatError, match=message):
        load_cameras(file, file_format=name, **hints)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameraType": "orthographic"}, 'cameraType is "orthographic"; expected one of persp'),
        ({"fov": 180}, "fov is 180; expected a number"),
        ({"fov": "35"}, 'fov is "35"; expected a number'),
        ({"zoom": 0}, "zoom is 0; expected a number from 0.001"),
        ({"quaternion": {"x": 0, "y": 0, "z": 0, "w": 2}}, "quaternion has length 2; expected 1"),
        ({"quaternion": [0, 0, 0, 1]}, "quaternion is an array of 4; expected an object"),
        ({"target": {"x": 1, "y": 2, "z": 3}}, "target does not do: .*at the camera's position"),
        ({"target": {"x": 1, "y": 9, "z": 3}}, "target does not do: .*parallel to the view"),
        ({"position": {"x": True, "y": 2, "z": 3}}, r"position\.x is true; expected a number"),
    ],
)
def test_a_wrong_load3d_field_is_refused_by_name(changes, message):
    info = {
        "position": {"x": 1, "y": 2, "z": 3},
        "target": {"x": 0, "y": 0, "z": 0},
        "fov": 35,
        "zoom": 1,
    }
    assert cameras_from_load3d(info, (48, 64)).num_frames == 1
    with pytest.raises(FileFormatError, match=message):
        cameras_from_load3d(info | changes, (48, 64))


def npz_bytes(**changes):
    values = {"world_to_camera": ALONG_X.numpy()[None], "intrinsics": SQUARE.numpy()[None],
              "height": 48, "width": 64} | changes  # fmt: skip
    stream = io.BytesIO()
    np.savez(stream, **{k: v for k, v in values.items() if v is not None})
    return stream.getvalue()


class Trap:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": None}, "no array height"),
        ({"intrinsics": None}, "no array intrinsics"),
        ({"intrinsics": SQUARE.numpy()[None].repeat(2, 0)}, "1 poses and 2 intrinsics"),
        ({"intrinsics": SQUARE.numpy()}, "intrinsics has shape"),
        ({"world_to_camera": ALONG_X.numpy()[None].astype("S8")}, "world_to_camera has shape .*S8"),
        ({"world_to_camera": np.array([Trap()])}, "world_to_camera has shape .*object"),
        ({"world_to_camera": np.zeros((0, 4, 4)), "intrinsics": np.zeros((0, 3, 3))}, "no cameras"),
        ({"world_to_camera": np.full((1, 4, 4), np.nan)}, "NaN or infinite"),
        ({"world_to_camera": np.full((1, 4, 4), 1e200)}, "numbers above 1e9"),
        ({"height": math.nan}, "height is nan"),
        ({"height": 48.5}, r"height is 48\.5"),
        ({"height": np.zeros(3)}, r"height has shape \(3,\)"),
    ],
)
def test_a_wrong_npz_array_is_refused_by_name(tmp_path, changes, message):
    (tmp_path / "a.npz").write_bytes(npz_bytes())
    assert_is_along_x(load_cameras(tmp_path / "a.npz"))
    (tmp_path / "a.npz").write_bytes(npz_bytes(**changes))
    with pytest.raises(FileFormatError, match=message):
        load_cameras(tmp_path / "a.npz")


def forged_npz(header, data, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        padded = header.encode().ljust(117) + b"\n"
        start = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded
        archive.writestr("world_to_camera.npy", start + data)
        for name, value in (("intrinsics", SQUARE.numpy()[None]), ("height", 48), ("width", 64)):
            member = io.BytesIO()
            np.save(member, value)
            archive.writestr(f"{name}.npy", member.getvalue())
    return stream.getvalue()


def test_an_npz_that_promises_or_unpacks_to_gigabytes_is_refused(tmp_path, little_memory):
    lies = "{'descr': '<f8', 'fortran_order': False, 'shape': (900000000, 4, 4), }"
    (tmp_path / "lies.npz").write_bytes(forged_npz(lies, b"\x00" * 128))
    with pytest.raises(FileFormatError, match="world_to_camera has shape"):
        load_cameras(tmp_path / "lies.npz")
    fits = "{'descr': '<f8', 'fortran_order': False, 'shape': (99999, 4, 4), }"
    (tmp_path / "short.npz").write_bytes(forged_npz(fits, b"\x00" * 128))
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_cameras(tmp_path / "short.npz")
    bomb = forged_npz(lies, bytes(2**27), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**20
    (tmp_path / "bomb.npz").write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(FileFormatError, match="world_to_camera has shape"):
        load_cameras(tmp_path / "bomb.npz")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**26  # the limit of one array is 13 MB


@pytest.mark.parametrize("name", ["tum", "realestate10k", "colmap"])
def test_too_many_cameras_are_refused(tmp_path, name, monkeypatch):
    monkeypatch.setattr("more4d_backend.camera_files.text_formats.MAX_FRAMES", 5)
    cameras = carried(name, 0, 8)
    path = tmp_path / f"a{SUFFIX[name]}"
    save_cameras(path, cameras, file_format=name)
    with pytest.raises(FileFormatError, match="more than 5 cameras"):
        load_cameras(path, file_format=name, **hints_for(name, cameras))


@pytest.mark.parametrize("name", ["tum", "realestate10k", "load3d", "transforms"])
def test_files_that_are_not_text_are_refused(tmp_path, name):
    (tmp_path / "a.json").write_bytes(b"\x00\xff\xfe" * 50)
    with pytest.raises(FileFormatError, match="is not text in UTF-8"):
        load_cameras(tmp_path / "a.json", file_format=name, size_hw=(48, 64), intrinsics=SQUARE)


@pytest.mark.parametrize("name", ["load3d", "transforms"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"frames": ' + "9" * 5000 + "}", "too long to be read"),
        ('{"frames": [NaN]}', "holds NaN"),
    ],
)
def test_hostile_json_is_refused(tmp_path, name, text, message):
    file = write_text(tmp_path / "a.json", text)
    with pytest.raises(FileFormatError, match=message):
        load_cameras(file, file_format=name, size_hw=(48, 64))


# Fuzzing: the damage of `mutate`, and for text also forged words


def forge_word(data, rng):
    words = data.split(b" ")
    forged = [b"nan", b"-inf", b"1e999", b"-1", b"0", b"1e300", b"9" * 400, b'"', b"[", b"{}",
              b"null", b"1_0", b"0x10", b"\xc2\xb2", b"true", b"#", b"\n", b""]  # fmt: skip
    words[rng.integers(len(words))] = forged[rng.integers(len(forged))]
    return b" ".join(words)


@pytest.mark.parametrize("name", CAMERA_FORMATS)
def test_no_mutation_raises_anything_but_the_documented_error(
    as_users_run_it, little_memory, tmp_path, mutate, name
):
    rng = np.random.default_rng(0)
    cameras = carried(name, 5, 2)
    path = tmp_path / f"a{SUFFIX[name]}"
    save_cameras(path, cameras, file_format=name)
    files = [path / "cameras.txt", path / "images.txt"] if name == "colmap" else [path]
    wholes = [file.read_bytes() for file in files]
    refused = 0
    for number in range(2000):
        for file, whole in zip(files, wholes, strict=True):
            forged = forge_word(whole, rng) if number % 3 == 0 and name != "npz" else None
            file.write_bytes(forged or mutate(whole, rng))
        try:
            read = load_cameras(path, file_format=name, **hints_for(name, cameras))
        except FileFormatError:
            refused += 1
        else:
            assert read.world_to_camera.isfinite().all()
            assert read.intrinsics.isfinite().all()
    assert 500 < refused < 2000  # both sides of the fence are visited


@pytest.mark.parametrize("name", ["transforms", "load3d", "tum", "realestate10k", "npz"])
def test_no_mutation_confuses_the_guess_of_the_format(as_users_run_it, tmp_path, mutate, name):
    rng = np.random.default_rng(1)
    path = tmp_path / f"a{SUFFIX[name]}"
    save_cameras(path, carried(name, 5, 1), file_format=name)
    whole, guesses = path.read_bytes(), set()
    for _ in range(500):
        path.write_bytes(mutate(whole, rng))
        try:
            guesses.add(guess_camera_format(path))
        except FileFormatError:
            continue
    assert guesses == {name}
