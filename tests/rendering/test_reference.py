import dataclasses
import logging

import pytest
import torch

from more4d_backend.geometry import intrinsics_from_focal, pixel_centers, rigid, unproject
from more4d_backend.rendering import (
    RenderError,
    RenderOutput,
    RenderSettings,
    check_renderable,
    render,
)
from more4d_backend.scene import Cameras, PointMaps, PointTracks, Scene4D

HEIGHT, WIDTH = 24, 32
MODES = ["nearest", "splat", "gaussian"]


def cameras(num_frames: int = 1, move=(0.0, 0.0, 0.0), height=HEIGHT, width=WIDTH) -> Cameras:
    """Cameras that have moved by `move` times the frame number, without turning."""
    steps = torch.arange(num_frames, dtype=torch.float32)[:, None]
    position = steps * torch.tensor(move)
    return Cameras(
        world_to_camera=rigid(torch.eye(3), -position),
        intrinsics=intrinsics_from_focal(torch.tensor(30.0), height, width).expand(
            num_frames, 3, 3
        ),
        height=height,
        width=width,
    )


def picture(num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_frames, HEIGHT, WIDTH, 3, generator=generator)


def point_maps(depth: torch.Tensor, valid: torch.Tensor | None = None) -> Scene4D:
    """A picture of random colours, lifted by a depth map per frame."""
    source = cameras(len(depth))
    positions = unproject(pixel_centers(HEIGHT, WIDTH), depth, source.intrinsics[:, None, None])
    valid = torch.ones_like(depth, dtype=torch.bool) if valid is None else valid
    maps = PointMaps(positions=positions, colors=picture(len(depth)), valid=valid)
    return Scene4D(points=maps, cameras=source, fps=8.0)


def rough_depth(num_frames: int = 1) -> torch.Tensor:
    """A slanted wall with a box in front."""
    depth = 3 + 0.02 * torch.arange(WIDTH, dtype=torch.float32).expand(num_frames, HEIGHT, WIDTH)
    depth = depth.clone()
    depth[:, 6:16, 10:20] = 1.5
    return depth


def tracks_of(scene: Scene4D, visibility: torch.Tensor, grid: bool = True) -> Scene4D:
    positions = scene.points.positions.flatten(1, 2)
    positions = positions.expand(len(visibility), -1, -1)
    tracks = PointTracks(
        positions=positions,
        colors=scene.points.colors[0].flatten(0, 1),
        visibility=visibility,
        grid_hw=(HEIGHT, WIDTH) if grid else None,
    )
    return Scene4D(points=tracks, cameras=scene.cameras.repeated(len(visibility)), fps=8.0)


def assert_same(first: RenderOutput, second: RenderOutput) -> None:
    for field in dataclasses.fields(RenderOutput):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name


def test_nearest_gives_the_input_view_back_bit_for_bit():
    scene = point_maps(rough_depth(2))
    output = render(scene, scene.cameras, RenderSettings(mode="nearest"))
    assert torch.equal(output.rgb, scene.points.colors)
    torch.testing.assert_close(output.depth, rough_depth(2), atol=0, rtol=1e-6)
    assert output.alpha.eq(1).all()


def test_splat_gives_the_input_view_back():
    scene = point_maps(rough_depth(2))
    output = render(scene, scene.cameras)
    # The worst pixel: positions are float32, so a pixel is found again to 1e-5 of its size.
    torch.testing.assert_close(output.rgb, scene.points.colors, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.depth, rough_depth(2), atol=1e-4, rtol=0)
    assert output.alpha.eq(1).all()


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_valid_is_not_drawn_and_black_is_no_hole(mode):
    valid = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    valid[:, 8:16, 8:20] = False
    scene = point_maps(torch.full((1, HEIGHT, WIDTH), 2.0), valid)
    scene.points.colors[:, :, 24:] = 0.0
    output = render(scene, scene.cameras, RenderSettings(mode=mode))
    assert output.alpha[:, 11:13, 13:15].max() < 0.1
    assert output.rgb[:, 10:14, 12:16].max() < 1e-5 or mode == "gaussian"
    assert output.alpha[:, 2:-2, 26:].min() > 0.9
    assert output.rgb[:, :, 26:].max() < 1e-5


@pytest.mark.parametrize("mode", ["nearest", "splat"])
def test_nothing_seen_means_zero_everywhere(mode):
    scene = point_maps(torch.full((1, HEIGHT, WIDTH), 2.0))
    behind = dataclasses.replace(scene.cameras, world_to_camera=torch.diag(torch.tensor(
        [-1.0, 1.0, -1.0, 1.0]))[None])  # fmt: skip
    output = render(scene, behind, RenderSettings(mode=mode))
    assert output.rgb.eq(0).all()
    assert output.depth.eq(0).all()
    assert output.alpha.eq(0).all()


@pytest.mark.parametrize("mode", MODES)
def test_nearer_points_cover_farther_ones(mode):
    near = torch.full((1, HEIGHT, WIDTH), 2.0)
    scene = point_maps(near)
    doubled = tracks_of(scene, torch.ones(1, HEIGHT * WIDTH, dtype=torch.bool), grid=False)
    behind = doubled.points.positions * 1.5
    tracks = PointTracks(
        positions=torch.cat([behind, doubled.points.positions], dim=1),
        colors=torch.cat([torch.zeros(HEIGHT * WIDTH, 3), torch.ones(HEIGHT * WIDTH, 3)]),
        visibility=torch.ones(1, 2 * HEIGHT * WIDTH, dtype=torch.bool),
    )
    scene = dataclasses.replace(scene, points=tracks)
    output = render(scene, scene.cameras, RenderSettings(mode=mode))
    # A Gaussian's picture has soft borders and lets 1 per cent through.
    assert output.rgb[:, 2:-2, 2:-2].min() > (0.98 if mode == "gaussian" else 1 - 1e-5)
    torch.testing.assert_close(output.depth[:, 2:-2, 2:-2], near[:, 2:-2, 2:-2], rtol=0.02, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_tracks_are_drawn_in_the_frames_where_they_are_visible(mode):
    visibility = torch.ones(3, HEIGHT * WIDTH, dtype=torch.bool)
    visibility[1] = False
    scene = tracks_of(point_maps(torch.full((1, HEIGHT, WIDTH), 2.0)), visibility)
    seen = render(scene, scene.cameras, RenderSettings(mode=mode)).alpha.mean((1, 2))
    assert seen[1] == 0
    assert seen[[0, 2]].min() > 0.95
    unseen_too = render(scene, scene.cameras, RenderSettings(mode=mode, draw_unseen=True))
    assert unseen_too.alpha.mean((1, 2)).min() > 0.95


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_positions_that_are_not_finite_are_never_drawn(mode, value):
    visibility = torch.ones(1, HEIGHT * WIDTH, dtype=torch.bool)
    visibility[:, : 8 * WIDTH] = False
    scene = tracks_of(point_maps(torch.full((1, HEIGHT, WIDTH), 2.0)), visibility)
    positions = scene.points.positions.clone()
    positions[:, : 4 * WIDTH] = value
    positions[:, 4 * WIDTH : 8 * WIDTH, 1] = value
    scene = dataclasses.replace(
        scene, points=dataclasses.replace(scene.points, positions=positions)
    )
    output = render(scene, scene.cameras, RenderSettings(mode=mode, draw_unseen=True))
    for values in (output.rgb, output.depth, output.alpha):
        assert values.isfinite().all()
    assert output.alpha[:, :6].max() < 0.1
    assert output.alpha[:, 10:].mean() > 0.95


@pytest.mark.parametrize("mode", MODES)
def test_one_frame_is_seen_by_any_number_of_cameras(mode):
    scene = point_maps(rough_depth())
    path = cameras(4, move=(0.05, 0.02, 0.1))
    together = render(scene, path, RenderSettings(mode=mode))
    for frame in range(4):
        alone = render(scene, path.frames([frame]), RenderSettings(mode=mode))
        assert torch.equal(together.rgb[frame], alone.rgb[0])
        assert torch.equal(together.depth[frame], alone.depth[0])
    frozen = render(scene.frames([0] * 4), path, RenderSettings(mode=mode))
    assert_same(together, frozen)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["maps", "tracks", "cloud"])
def test_chunking_changes_no_bit_of_the_result(mode, kind):
    if kind == "maps":
        scene = point_maps(rough_depth(5) + torch.arange(5)[:, None, None] * 0.1)
    else:
        generator = torch.Generator().manual_seed(1)
        visibility = torch.rand(5, HEIGHT * WIDTH, generator=generator) > 0.1
        scene = tracks_of(point_maps(rough_depth()), visibility, grid=kind == "tracks")
    path = cameras(5, move=(0.05, 0.02, 0.1))
    calls = []
    whole = render(scene, path, RenderSettings(mode=mode, chunk_frames=5))
    parts = render(
        scene, path, RenderSettings(mode=mode, chunk_frames=2), lambda *call: calls.append(call)
    )
    assert_same(whole, parts)
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_raising_from_progress_interrupts():
    scene = point_maps(rough_depth(3))

    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(scene, scene.cameras, RenderSettings(chunk_frames=1), cancel)


def test_the_output_has_the_size_of_the_path_and_not_of_the_scene():
    scene = point_maps(rough_depth())
    output = render(scene, cameras(2, height=10, width=14))
    assert output.rgb.shape == (2, 10, 14, 3)
    assert output.depth.shape == output.alpha.shape == (2, 10, 14)


@pytest.mark.parametrize("mode", MODES)
def test_a_camera_among_the_points_renders(mode):
    scene = point_maps(rough_depth())
    path = cameras(8, move=(0.0, 0.0, 0.25))  # through the box and on, to points at depth 0
    output = render(scene, path, RenderSettings(mode=mode))
    for values in (output.rgb, output.depth, output.alpha):
        assert values.isfinite().all()
    assert output.depth.min() >= 0
    assert output.alpha[3].mean() > 0.2


def test_differing_frame_counts_are_refused_with_both_numbers():
    with pytest.raises(RenderError, match="3 frames and the camera path has 2"):
        render(point_maps(rough_depth(3)), cameras(2))


@pytest.mark.parametrize("draw_unseen", [False, True])
def test_an_empty_scene_is_refused(draw_unseen):
    settings = RenderSettings(draw_unseen=draw_unseen)
    nothing = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    with pytest.raises(RenderError, match="empty"):
        check_renderable(point_maps(rough_depth(), nothing), cameras(), settings)
    scene = tracks_of(point_maps(rough_depth()), nothing.flatten(1))
    points = dataclasses.replace(
        scene.points, positions=torch.full_like(scene.points.positions, torch.nan)
    )
    with pytest.raises(RenderError, match="empty"):
        render(dataclasses.replace(scene, points=points), cameras(), settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "splats"}, "Did you mean 'splat'"),
        ({"mode": "Gaussians"}, "Did you mean 'gaussian'"),
        ({"mode": "zzz"}, "expected one of nearest, splat, gaussian"),
        ({"gaussian_backend": "gsplatt"}, "Did you mean 'gsplat'"),
        ({"max_footprint_px": 0.5}, "max_footprint_px is 0.5"),
        ({"gaussian_sigma": float("nan")}, "gaussian_sigma is nan"),
        ({"chunk_frames": 0}, "chunk_frames is 0"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_bad_settings_are_refused_with_what_is_right(settings, message):
    with pytest.raises(RenderError, match=message):
        RenderSettings(**settings)


def test_the_choice_of_gaussian_backend_is_logged(caplog):
    scene = point_maps(rough_depth())
    with caplog.at_level(logging.INFO, logger="more4d_backend.rendering"):
        render(scene, cameras(), RenderSettings(mode="gaussian"))
        render(scene, cameras(), RenderSettings(mode="gaussian", gaussian_backend="torch"))
    assert "gsplat needs CUDA" in caplog.messages[0]
    assert "as asked" in caplog.messages[1]


def test_asking_for_gsplat_without_cuda_is_refused():
    with pytest.raises(RenderError, match="the device is cpu"):
        render(
            point_maps(rough_depth()),
            cameras(),
            RenderSettings(mode="gaussian", gaussian_backend="gsplat"),
        )
