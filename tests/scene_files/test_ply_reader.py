import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from more4d_backend.files import FileFormatError
from more4d_backend.geometry import project, transform_points
from more4d_backend.scene_files.ply_reader import load_ply, load_ply_scene
from more4d_backend.scene_files.points import save_gaussian_ply, save_ply

POINTS = np.array(
    [(1.5, -2, 3, 255, 0, 51), (4, 5, 6, 0, 255, 0), (np.nan, 8, 9, 1, 2, 3)],
    dtype=[("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")],
)


def write(path, rows, **options) -> None:
    PlyData([PlyElement.describe(rows, "vertex")], **options).write(path)


@pytest.mark.parametrize(
    "options", [{"text": True}, {"byte_order": "<"}, {"byte_order": ">"}], ids=str
)
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_files_of_an_independent_writer_are_read(tmp_path, options, kind):
    rows = POINTS.astype([(n, kind if n in "xyz" else "u1") for n in POINTS.dtype.names])
    write(tmp_path / "a.ply", rows, **options)
    tracks = load_ply(tmp_path / "a.ply")
    assert tracks.positions[0, :2].tolist() == [[1.5, -2, 3], [4, 5, 6]]
    assert torch.allclose(tracks.colors[:2], torch.tensor([[1, 0, 0.2], [0, 1, 0]]))
    assert tracks.visibility.tolist() == [[True, True, False]]


def test_our_own_files_are_read(tmp_path, tracks_scene):
    scene = tracks_scene()
    shown = scene.points.visibility[0]
    for save in (save_ply, save_gaussian_ply):
        save(tmp_path / "a.ply", scene)
        tracks = load_ply(tmp_path / "a.ply")
        assert torch.equal(tracks.positions[0], scene.points.positions[0][shown])
        assert torch.allclose(tracks.colors, scene.points.colors[shown], atol=1e-6)


def test_float_colors_are_read_and_points_without_colors_are_grey(tmp_path):
    kinds = [(n, "f4") for n in ("x", "y", "z", "red", "green", "blue")]
    write(tmp_path / "a.ply", np.array([(1, 2, 3, 0.25, 0.5, 1.0)], kinds))
    assert load_ply(tmp_path / "a.ply").colors.tolist() == [[0.25, 0.5, 1.0]]
    write(tmp_path / "b.ply", np.array([(1, 2, 3)], kinds[:3]))
    assert load_ply(tmp_path / "b.ply").colors.tolist() == [[0.5, 0.5, 0.5]]


def test_a_mesh_is_read_as_its_vertices(tmp_path):
    faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
    elements = [PlyElement.describe(POINTS, "vertex"), PlyElement.describe(faces, "face")]
    PlyData(elements).write(tmp_path / "a.ply")
    assert load_ply(tmp_path / "a.ply").positions.shape == (1, 3, 3)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_a_point_cloud_becomes_a_scene_that_its_camera_sees(tmp_path, size):
    positions = np.random.default_rng(0).normal(size=(500, 3)) * size + 100 * size
    rows = np.array([tuple(p) for p in positions], [("x", "f4"), ("y", "f4"), ("z", "f4")])
    write(tmp_path / "a.ply", rows)
    scene = load_ply_scene(tmp_path / "a.ply")
    assert scene.num_frames == 1
    in_camera = transform_points(scene.points.positions[0], scene.cameras.world_to_camera[0])
    pixels, depth = project(in_camera, scene.cameras.intrinsics[0])
    size_wh = torch.tensor([scene.cameras.width, scene.cameras.height])
    inside = (depth > 0) & ((pixels >= 0) & (pixels <= size_wh)).all(-1)
    assert inside.float().mean() > 0.97


def test_a_given_camera_is_kept(tmp_path, tracks_scene):
    write(tmp_path / "a.ply", POINTS)
    cameras = tracks_scene().cameras.frames([0])
    assert load_ply_scene(tmp_path / "a.ply", cameras).cameras is cameras


HEADER = "ply\nformat binary_little_endian 1.0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("solid cube\nfacet normal", "has no header of a PLY file"),
        (HEADER + "element vertex 3\nproperty float x\n", "has no header of a PLY file"),
        (HEADER + "element face 0\nend_header\n", "another element before the vertices"),
        (HEADER + "element vertex 0\nproperty float x\nend_header\n", "has no vertices"),
        (HEADER + "element vertex 1\nproperty float x\nend_header\n1234", "have no y, z"),
        (HEADER + "element vertex 1\nend_header\n1234", "header ends early"),
        (
            HEADER + "element vertex 99999999999\nproperty float x\nend_header\n12",
            "claims 99999999999 vertices, and has 2 bytes for them: it is truncated",
        ),
        (
            HEADER + "element vertex 1\nproperty list uchar int x\nend_header\n1234",
            "have a property 'list uchar int x'",
        ),
        (
            "ply\nformat ascii 1.0\nelement vertex 2\nproperty int x\nproperty int y\n"
            "property int z\nend_header\n1 2 3\n    \n     \n",
            "it has 1 vertices of the 2",
        ),
    ],
)
def test_foreign_and_damaged_files_are_refused(tmp_path, text, message):
    (tmp_path / "a.ply").write_text(text)
    with pytest.raises(FileFormatError, match=message):
        load_ply(tmp_path / "a.ply")


@pytest.mark.parametrize("options", [{"text": True}, {"byte_order": "<"}], ids=str)
def test_no_mutation_raises_anything_but_the_documented_error(
    tmp_path, as_users_run_it, little_memory, mutate, options
):
    path = tmp_path / "a.ply"
    write(path, np.tile(POINTS, 5), **options)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(2000):
        path.write_bytes(mutate(whole, rng))
        try:
            load_ply_scene(path)
        except FileFormatError as e:
            assert str(path) in str(e)  # noqa: PT017
            refused += 1
    assert 500 < refused < 2000
