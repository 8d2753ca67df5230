from dataclasses import replace

import numpy as np
import pytest
import torch
from plyfile import PlyData

from more4d_backend.files import OutputError
from more4d_backend.geometry import (
    intrinsics_from_focal,
    matrix_from_quaternion_wxyz,
    pixel_centers,
    unproject,
)
from more4d_backend.rendering.gaussians import gaussians_of
from more4d_backend.rendering.surface import first_spacing, surface_of
from more4d_backend.rendering.view import point_frames
from more4d_backend.scene import Cameras, PointTracks, Scene4D
from more4d_backend.scene_files.points import (
    GAUSSIAN_OPACITY,
    SH_DEGREE_0,
    SIGMA_PER_SPACING,
    THINNEST,
    frame_points,
    point_spacing,
    save_gaussian_ply,
    save_gaussian_ply_sequence,
    save_ply,
    save_ply_sequence,
)


@pytest.fixture
def wall() -> Scene4D:
    """Every pixel of a 20x30 image at depth 2, so neighbours are 2 / 15 apart; it then recedes."""
    depth = torch.full((20, 30), 2.0)
    K = intrinsics_from_focal(torch.tensor([15.0]), 20, 30)
    first = unproject(pixel_centers(20, 30), depth, K[0]).flatten(0, 1)
    return Scene4D(
        points=PointTracks(
            positions=torch.stack([first, first + torch.tensor([0.0, 0.0, 4.0])]),
            colors=torch.rand(600, 3, generator=torch.Generator().manual_seed(0)),
            visibility=torch.ones(2, 600, dtype=torch.bool),
            grid_hw=(20, 30),
        ),
        cameras=Cameras(
            world_to_camera=torch.eye(4)[None], intrinsics=K, height=20, width=30
        ).repeated(2),
        fps=24.0,
    )


def test_an_independent_reader_finds_the_visible_points_of_each_frame(tmp_path, tracks_scene):
    scene = tracks_scene(frames=3)
    save_ply_sequence(tmp_path / "points", scene)
    files = sorted((tmp_path / "points").iterdir())
    assert [f.name for f in files] == ["frame_0000.ply", "frame_0001.ply", "frame_0002.ply"]
    for frame, path in enumerate(files):
        ply = PlyData.read(path)
        assert (ply.text, ply.byte_order) == (False, "<")
        vertex = ply["vertex"]
        declared = [(p.name, p.val_dtype) for p in vertex.properties]
        assert declared == [("x", "f4"), ("y", "f4"), ("z", "f4"),
                            ("red", "u1"), ("green", "u1"), ("blue", "u1")]  # fmt: skip
        shown = scene.points.visibility[frame]
        positions = np.stack([vertex[name] for name in "xyz"], axis=-1)
        assert np.array_equal(positions, scene.points.positions[frame][shown].numpy())
        colors = np.stack([vertex[name] for name in ("red", "green", "blue")], axis=-1)
        assert np.array_equal(colors, (scene.points.colors[shown] * 255).round().byte().numpy())


def test_point_maps_are_written_with_the_colors_of_their_frame(tmp_path, point_maps_scene):
    scene = point_maps_scene()
    save_ply(tmp_path / "a.ply", scene, frame=2)
    vertex = PlyData.read(tmp_path / "a.ply")["vertex"]
    valid = scene.points.valid[2]
    assert np.array_equal(vertex["z"], scene.points.positions[2][valid][:, 2].numpy())
    expected = (scene.points.colors[2][valid][:, 1] * 255).round().byte().numpy()
    assert np.array_equal(vertex["green"], expected)


def test_a_gaussian_file_has_the_properties_of_3d_gaussian_splatting_in_its_order(tmp_path, wall):
    save_gaussian_ply(tmp_path / "a.ply", wall)
    vertex = PlyData.read(tmp_path / "a.ply")["vertex"]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(45)]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert [p.name for p in vertex.properties] == names
    assert {p.val_dtype for p in vertex.properties} == {"f4"}
    # As splat viewers decode them.
    colors = 0.5 + SH_DEGREE_0 * np.stack([vertex[f"f_dc_{i}"] for i in range(3)], axis=-1)
    assert np.allclose(colors, wall.points.colors.numpy(), atol=1e-6)
    assert np.allclose(1 / (1 + np.exp(-vertex["opacity"])), GAUSSIAN_OPACITY, atol=1e-6)
    scales = np.exp(np.stack([vertex[f"scale_{i}"] for i in range(3)], axis=-1))
    # The wall faces the camera: sheets as wide as high, and thin along z.
    expected = SIGMA_PER_SPACING * 2 / 15 * np.array([THINNEST, 1, 1])
    assert np.allclose(np.sort(scales, axis=1), expected, rtol=1e-4)
    wxyz = torch.from_numpy(np.stack([vertex[f"rot_{i}"] for i in range(4)], axis=-1))
    rotation = matrix_from_quaternion_wxyz(wxyz)
    assert torch.allclose(rotation[:, :, 0].abs(), torch.tensor([0.0, 0, 1]), atol=1e-3)
    assert not any(vertex[name].any() for name in ("nx", "f_rest_0", "f_rest_44"))


def test_gaussians_of_a_slope_are_those_of_the_renderer(tmp_path, wall):
    slope = wall.points.positions * torch.linspace(1, 3, 600)[None, :, None]
    scene = replace(wall, points=replace(wall.points, positions=slope))
    save_gaussian_ply(tmp_path / "a.ply", scene, frame=1)
    vertex = PlyData.read(tmp_path / "a.ply")["vertex"]
    scales = np.exp(np.stack([vertex[f"scale_{i}"] for i in range(3)], axis=-1))
    wxyz = torch.from_numpy(np.stack([vertex[f"rot_{i}"] for i in range(4)], axis=-1))
    axes = matrix_from_quaternion_wxyz(wxyz.double()) * torch.from_numpy(scales)[:, None]
    covariances = axes @ axes.transpose(1, 2)
    points = point_frames(scene, slice(1, 2), torch.device("cpu"), draw_unseen=False)
    surface = surface_of(points, first_spacing(scene, torch.device("cpu")))
    expected = gaussians_of(points, surface, SIGMA_PER_SPACING).covariances[0].double()
    thickness = torch.from_numpy(scales).amin(1).square().max()
    assert (covariances - expected).abs().max() < 1.1 * thickness


def test_neighbouring_gaussians_cover_what_is_behind_them():
    to_four_neighbours = GAUSSIAN_OPACITY * np.exp(-0.5 / (2 * SIGMA_PER_SPACING**2))
    assert 1 - (1 - to_four_neighbours) ** 4 > 0.93


def test_the_spacing_of_points_is_the_distance_of_neighbours(wall):
    first = wall.points.positions[0].view(20, 30, 3)
    assert torch.allclose(
        point_spacing(wall, 0).view(20, 30)[:, 1:], (first[:, 1:] - first[:, :-1]).norm(dim=-1)
    )
    # The points of a track keep their size when they move away.
    assert torch.equal(point_spacing(wall, 1), point_spacing(wall, 0))


def test_points_that_appear_later_have_a_size_and_unseen_ones_are_left_out(wall):
    positions = wall.points.positions.clone()
    positions[0, 3] = torch.nan
    visibility = wall.points.visibility.clone()
    visibility[0, 3] = visibility[1, 5] = False
    scene = replace(wall, points=replace(wall.points, positions=positions, visibility=visibility))
    assert point_spacing(scene, 0)[3] == 0
    assert point_spacing(scene, 1)[3] == pytest.approx(6 / 15)
    assert point_spacing(scene, 1)[5] == 0
    for frame, left_out in ((0, 3), (1, 5)):
        points = frame_points(scene, frame)
        assert (~points.shown).nonzero().tolist() == [[left_out]]
        assert points.positions.isfinite().all()
        assert len(points.positions) == len(points.colors) == 599


def test_progress_is_told_and_an_interrupted_sequence_leaves_the_older_one(tmp_path, tracks_scene):
    folder = tmp_path / "points"
    steps = []
    save_gaussian_ply_sequence(
        folder, tracks_scene(frames=3), progress=lambda *step: steps.append(step)
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    before = {f.name: f.read_bytes() for f in folder.iterdir()}

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_ply_sequence(folder, tracks_scene(seed=1, frames=3), progress=interrupt)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["points"]


def test_a_shorter_sequence_leaves_no_frame_of_a_longer_one(tmp_path, tracks_scene):
    save_ply_sequence(tmp_path / "points", tracks_scene(frames=5))
    save_ply_sequence(tmp_path / "points", tracks_scene(frames=2))
    assert len(list((tmp_path / "points").iterdir())) == 2


def test_a_folder_with_other_files_is_not_replaced(tmp_path, tracks_scene):
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "thesis.doc").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds thesis\.doc, which is not one of frame_\*\.ply"):
        save_ply_sequence(tmp_path / "points", tracks_scene(frames=2))
    assert [f.name for f in tmp_path.rglob("*")] == ["points", "thesis.doc"]
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(OutputError, match="is a file; expected the name of a folder"):
        save_ply_sequence(tmp_path / "a.txt", tracks_scene(frames=2))
