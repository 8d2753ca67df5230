import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from more4d_backend.files import FileFormatError, OutputError
from more4d_backend.geometry import project, transform_points
from more4d_backend.scene_files.tapvid import load_tapvid3d, save_tapvid3d


def released_like(**changes) -> dict[str, np.ndarray]:
    """Arrays as the released files have them: 2 frames, 3 points, a moving camera."""
    pictures = []
    for grey in (60, 200):
        stream = io.BytesIO()
        Image.new("RGB", (32, 24), (grey, 30, 30)).save(stream, "JPEG", quality=95)
        pictures.append(stream.getvalue())
    extrinsics = np.stack([np.eye(4), np.eye(4)])
    extrinsics[1, 2, 3] = 1.0
    tracks = np.array([[[0, 0, 2], [0.1, 0, 4], [0, 0.2, 3]]] * 2, dtype=np.float64)
    arrays = {
        "tracks_XYZ": tracks,
        "visibility": np.array([[True, True, False], [True, False, True]]),
        "queries_xyt": np.array([[16, 12, 0], [17, 12, 0], [16, 13, 1]], dtype=np.float32),
        "fx_fy_cx_cy": np.array([20.0, 21.0, 16.0, 12.0]),
        "extrinsics_w2c": extrinsics,
        "images_jpeg_bytes": np.array(pictures),
    }
    arrays |= changes
    return {name: array for name, array in arrays.items() if array is not None}


def test_positions_become_world_coordinates_and_colors_come_from_the_queries(tmp_path):
    np.savez(tmp_path / "a.npz", **released_like())
    scene = load_tapvid3d(tmp_path / "a.npz")
    assert scene.points.positions[:, 0].tolist() == [[0, 0, 2], [0, 0, 1]]
    assert scene.points.visibility.tolist() == [[True, True, False], [True, False, True]]
    assert (scene.cameras.height, scene.cameras.width, scene.fps) == (24, 32, 30.0)
    K = [[20.0, 0, 16], [0, 21, 12], [0, 0, 1]]
    assert scene.cameras.intrinsics.tolist() == [K, K]
    expected = torch.tensor([[60.0, 30, 30], [60, 30, 30], [200, 30, 30]]) / 255
    assert torch.allclose(scene.points.colors, expected, atol=0.02)  # JPEG


def test_a_scene_comes_back(tmp_path, tracks_scene):
    scene = tracks_scene(frames=4)
    save_tapvid3d(tmp_path / "a.npz", scene)
    back = load_tapvid3d(tmp_path / "a.npz")
    assert torch.allclose(back.points.positions, scene.points.positions, atol=1e-5)
    assert torch.equal(back.points.visibility, scene.points.visibility)
    assert torch.allclose(back.points.colors, scene.points.colors, atol=1e-6)
    assert torch.equal(back.cameras.world_to_camera, scene.cameras.world_to_camera)
    assert torch.equal(back.cameras.intrinsics, scene.cameras.intrinsics)
    assert (back.cameras.height, back.cameras.width) == (60, 70)
    assert back.fps == pytest.approx(scene.fps)


def test_convention_tapvid_tracks_are_in_camera_space_and_queries_in_pixels(tmp_path, tracks_scene):
    scene = tracks_scene(frames=4)
    frames = torch.rand(4, 60, 70, 3)
    save_tapvid3d(tmp_path / "a.npz", scene, frames=frames)
    arrays = np.load(tmp_path / "a.npz", allow_pickle=False)
    w2c, K = scene.cameras.world_to_camera, scene.cameras.intrinsics[0]
    in_camera = transform_points(scene.points.positions[2], w2c[2])
    assert np.allclose(arrays["tracks_XYZ"][2], in_camera.numpy(), atol=1e-6)
    for point in range(5):
        frame = int(arrays["queries_xyt"][point, 2])
        seen = scene.points.visibility[:, point]
        assert frame == (int(seen.nonzero()[0]) if seen.any() else 0)
        pixel, _ = project(transform_points(scene.points.positions[frame, point], w2c[frame]), K)
        assert np.allclose(arrays["queries_xyt"][point, :2], pixel.numpy(), rtol=1e-4, atol=1e-2)
    picture = np.array(Image.open(io.BytesIO(arrays["images_jpeg_bytes"][3])))
    assert np.abs(picture / 255 - frames[3].numpy()).mean() < 0.02


@pytest.mark.parametrize(
    ("changes", "logged"),
    [
        ({"extrinsics_w2c": None}, "camera is taken to stand still"),
        ({"images_jpeg_bytes": None}, "principal point is taken as its middle"),
        ({"images_jpeg_bytes": np.array([b"a", b"b"], dtype=object)}, "which are not read"),
        ({"queries_xyt": None}, "points are grey"),
    ],
)
def test_what_is_assumed_is_logged(tmp_path, caplog, changes, logged):
    np.savez(tmp_path / "a.npz", **released_like(**changes))
    with caplog.at_level("INFO"):
        scene = load_tapvid3d(tmp_path / "a.npz", fps=10)
    assert logged in caplog.text
    assert (scene.cameras.height, scene.cameras.width, scene.fps) == (24, 32, 10)


def test_the_names_of_the_readme_are_read_too(tmp_path):
    arrays = released_like()
    arrays["tracks_xyz"], arrays["intrinsics"] = arrays.pop("tracks_XYZ"), arrays.pop("fx_fy_cx_cy")
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    assert load_tapvid3d(tmp_path / "a.npz").num_frames == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tracks_XYZ": None}, "and not tracks_XYZ as arrays of numbers; expected a TAPVid-3D npz"),
        ({"visibility": np.ones((2, 2), bool)}, r"visibility has shape \(2, 2\)"),
        ({"tracks_XYZ": np.full((2, 3, 3), np.nan)}, None),
        ({"extrinsics_w2c": np.ones((2, 4, 4))}, "is not rigid"),
        ({"extrinsics_w2c": np.full((2, 4, 4), np.nan)}, "NaN"),
        ({"fx_fy_cx_cy": np.array([0.5, 0.5, 0.5, 0.5])}, "looks normalised"),
        ({"tracks_XYZ": np.array([[["a"]]], "S1")}, "tracks_XYZ holds"),
        ({"images_jpeg_bytes": np.array([b"no", b"jpeg"])}, "Frame 0 of .* cannot be read"),
        ({"queries_xyt": np.full((3, 3), 7.0)}, "no JPEG of frame 7"),
        ({"fps": np.array(-1.0)}, "fps is -1"),
        ({"size_hw": np.array([1e9, 2])}, "image size is"),
    ],
)
def test_damaged_files_are_refused_by_what_is_wrong(tmp_path, as_users_run_it, changes, message):
    np.savez(tmp_path / "a.npz", **released_like(**changes))
    if message is None:  # no point is seen: valid, and all are invisible
        assert not load_tapvid3d(tmp_path / "a.npz").points.visibility.any()
        return
    with pytest.raises(FileFormatError, match=message):
        load_tapvid3d(tmp_path / "a.npz")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, little_memory):
    path = tmp_path / "a.npz"
    np.savez(path, **released_like(tracks_XYZ=None))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (12500, 1000, 3)}
    )
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("tracks_XYZ.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(300):
                member.write(bytes(2**20))
    assert path.stat().st_size < 2e6
    with pytest.raises(FileFormatError, match=r"tracks_XYZ.npy expands to 300000000 bytes"):
        load_tapvid3d(path)


def test_scenes_that_the_format_cannot_hold_are_refused(tmp_path, tracks_scene, point_maps_scene):
    with pytest.raises(ValueError, match=r"holds point maps.*TAPVid-3D holds tracks"):
        save_tapvid3d(tmp_path / "a.npz", point_maps_scene())
    scene = tracks_scene()
    zooming = scene.cameras.intrinsics.clone()
    zooming[2, 0, 0] += 1
    with pytest.raises(ValueError, match="intrinsics change over frames"):
        save_tapvid3d(
            tmp_path / "a.npz",
            replace(scene, cameras=replace(scene.cameras, intrinsics=zooming)),
        )
    with pytest.raises(ValueError, match=r"frames has shape .* expected \(5, 60, 70, 3\)"):
        save_tapvid3d(tmp_path / "a.npz", scene, frames=torch.rand(5, 6, 7, 3))
    with pytest.raises(OutputError, match=r"expected \.npz"):
        save_tapvid3d(tmp_path / "a.zip", scene)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_mutation_raises_anything_but_the_documented_error(
    tmp_path, as_users_run_it, little_memory, mutate, save
):
    path = tmp_path / "a.npz"
    save(path, **released_like())
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    refused = 0
    for number in range(2000):
        if number % 2:  # damage an array inside an archive that is itself whole
            arrays = {name: io.BytesIO() for name in released_like()}
            for name, array in released_like().items():
                np.lib.format.write_array(arrays[name], array)
            chosen = str(rng.choice(list(arrays)))
            with zipfile.ZipFile(path, "w") as archive:
                for name, stream in arrays.items():
                    data = stream.getvalue()
                    archive.writestr(f"{name}.npy", mutate(data, rng) if name == chosen else data)
        else:
            path.write_bytes(mutate(whole, rng))
        try:
            load_tapvid3d(path)
        except FileFormatError as e:
            assert str(path) in str(e)  # noqa: PT017
            refused += 1
    assert 800 < refused < 2000
