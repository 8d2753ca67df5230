import io
import json
import math
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from more4d_backend.camera_files import (
    CAMERA_FORMATS,
    guess_camera_format,
    load_cameras,
    save_cameras,
)
from more4d_backend.camera_files.json_formats import (
    cameras_from_load3d,
)
from more4d_backend.files import FileFormatError

HEIGHT, WIDTH = 48, 64
SQUARE = torch.tensor([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]])
SUFFIX = {"transforms": ".json", "colmap": "", "realestate10k": ".txt", "tum": ".tum",
          "load3d": ".json", "npz": ".npz"}  # fmt: skip
# The camera of the fixture `along_x`.
ALONG_X = torch.tensor(
    [[0.0, 0, -1, 3], [0, 1, 0, -2], [1, 0, 0, -1], [0, 0, 0, 1]], dtype=torch.float64
)
# Our quaternion of its rotation, half a turn between x and z, is (1, 0, -1, 0) / sqrt(2).
HALF = math.sqrt(0.5)


# transforms.json


@pytest.fixture
def transforms(tmp_path, transforms_along_x, write_text):
    def write(**changes):
        document = {k: v for k, v in (transforms_along_x | changes).items() if v is not None}
        return write_text(tmp_path / "transforms.json", json.dumps(document))

    return write


def test_a_frames_own_lens_goes_before_that_of_the_file(transforms, transforms_along_x):
    (frame,) = transforms_along_x["frames"]
    file = transforms(frames=[frame, frame | {"fl_x": 50, "fl_y": 60, "cx": 30}])
    K = load_cameras(file).intrinsics
    assert K[0].tolist() == SQUARE.tolist()
    assert K[1].tolist() == [[50, 0, 30], [0, 60, 24], [0, 0, 1]]


def test_missing_numbers_of_the_lens_are_filled_in_as_nerfstudio_does(transforms):
    file = transforms(fl_y=None, cx=None, cy=None)
    assert load_cameras(file).intrinsics[0].tolist() == SQUARE.tolist()
    file = transforms(fl_x=None, fl_y=None)
    with pytest.raises(FileFormatError, match="has no intrinsics"):
        load_cameras(file)
    assert torch.equal(load_cameras(file, intrinsics=SQUARE).intrinsics[0], SQUARE)


def test_lens_distortion_is_left_out_with_a_warning_and_fisheyes_are_refused(
    assert_is_along_x, transforms, caplog
):
    assert_is_along_x(load_cameras(transforms(camera_model="OPENCV", k1=0.1)))
    assert "has lens distortion" in caplog.text
    with pytest.raises(FileFormatError, match='camera_model is "OPENCV_FISHEYE"; expected one of'):
        load_cameras(transforms(camera_model="OPENCV_FISHEYE"))


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
def test_a_wrong_transforms_field_is_refused_by_name(transforms, changes, message):
    with pytest.raises(FileFormatError, match=message):
        load_cameras(transforms(**changes))


def test_images_of_several_sizes_are_refused(transforms, transforms_along_x):
    (frame,) = transforms_along_x["frames"]
    with pytest.raises(FileFormatError, match="several sizes"):
        load_cameras(transforms(frames=[frame, frame | {"w": 32}]))


# COLMAP


@pytest.fixture
def colmap(tmp_path, write_text):
    def write(cameras="1 PINHOLE 64 48 100 100 32 24", images=None):
        if images is None:
            images = f"1 {HALF} 0 {-HALF} 0 3 -2 -1 1 a.png\n\n"
        write_text(tmp_path / "cameras.txt", cameras)
        write_text(tmp_path / "images.txt", images)
        return tmp_path

    return write


def test_colmap_images_are_ordered_by_name_with_numbers_as_numbers(colmap):
    names = ["frame_10.png", "frame_2.png", "frame_0001.png", "my frame.png"]
    lines = [f"{i} 1 0 0 0 {i} 0 0 1 {name}\n" for i, name in enumerate(names)]
    cameras = load_cameras(colmap(images="\n".join([*lines, ""])))
    assert cameras.world_to_camera[:, 0, 3].tolist() == [2, 1, 0, 3]


def test_each_colmap_image_may_have_its_own_camera(colmap):
    lenses = "1 PINHOLE 64 48 100 100 32 24\n9 SIMPLE_RADIAL 64 48 50 32 24 0\n"
    images = "1 1 0 0 0 0 0 0 9 b.png\n\n2 1 0 0 0 0 0 0 1 a.png\n\n"
    cameras = load_cameras(colmap(lenses, images))
    assert cameras.intrinsics[:, 0, 0].tolist() == [100, 50]


def test_colmap_distortion_is_left_out_with_a_warning(assert_is_along_x, colmap, caplog):
    assert_is_along_x(load_cameras(colmap("1 OPENCV 64 48 100 100 32 24 0 0.1 0 0")))
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
def test_a_wrong_colmap_line_is_refused_by_number(colmap, changes, message):
    with pytest.raises(FileFormatError, match=message):
        load_cameras(colmap(**changes))


def test_a_file_that_only_has_the_name_of_a_colmap_file_is_told_by_its_contents(along_x, tmp_path):
    save_cameras(tmp_path / "cameras.txt", along_x(), file_format="tum")
    assert guess_camera_format(tmp_path / "cameras.txt") == "tum"


def test_a_binary_or_half_colmap_model_is_refused_with_advice(write_text, tmp_path):
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
def test_damaged_files_say_what_is_wrong(write_text, tmp_path, name, text, message):
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
def test_a_wrong_npz_array_is_refused_by_name(assert_is_along_x, tmp_path, changes, message):
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
def test_too_many_cameras_are_refused(carried, hints_for, tmp_path, name, monkeypatch):
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
def test_hostile_json_is_refused(write_text, tmp_path, name, text, message):
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
    carried, hints_for, as_users_run_it, little_memory, tmp_path, mutate, name
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
def test_no_mutation_confuses_the_guess_of_the_format(
    carried, as_users_run_it, tmp_path, mutate, name
):
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
