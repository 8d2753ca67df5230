"""The plain-torch Gaussian rasteriser against the formulas, pixel by pixel and in float64."""

import math
from dataclasses import replace

import pytest
import torch

from more4d_backend.geometry import intrinsics_from_focal, matrix_from_quaternion_wxyz, rigid
from more4d_backend.rendering import RenderSettings, render
from more4d_backend.rendering.gaussian_torch import rasterize
from more4d_backend.rendering.gaussians import LOW_PASS_PX2, Gaussians, blended, gaussians_of
from more4d_backend.rendering.surface import surface_of
from more4d_backend.rendering.view import point_frames
from more4d_backend.scene import Cameras, Scene4D
from more4d_backend.synthetic import make_world

HEIGHT, WIDTH, FOCAL = 20, 26, 25.0


def cameras(num_frames: int = 1) -> Cameras:
    generator = torch.Generator().manual_seed(5)
    quaternions = torch.randn(num_frames, 4, generator=generator) * 0.05
    quaternions[:, 0] = 1
    return Cameras(
        world_to_camera=rigid(matrix_from_quaternion_wxyz(quaternions), torch.tensor([0.1, 0, 0])),
        intrinsics=intrinsics_from_focal(torch.tensor(FOCAL), HEIGHT, WIDTH).expand(
            num_frames, 3, 3
        ),
        height=HEIGHT,
        width=WIDTH,
    )


def random_gaussians(frames: int, points: int, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(frames, points, 3, generator=generator) * torch.tensor([2.4, 1.8, 3])
    axes = torch.randn(frames, points, 3, 3, generator=generator) * 0.06
    return Gaussians(
        means=means + torch.tensor([-1.2, -0.9, 1.0]),
        covariances=axes @ axes.transpose(-1, -2),
        opacities=torch.rand(frames, points, generator=generator),
        colors=torch.rand(frames, points, 3, generator=generator),
    )


def by_the_formulas(gaussians: Gaussians, cameras: Cameras, frame: int):
    """Every Gaussian at every pixel, no bounds, no cut-offs but that of alpha; float64."""
    to_camera = cameras.world_to_camera[frame].double()
    means = gaussians.means[frame].double() @ to_camera[:3, :3].T + to_camera[:3, 3]
    color, alpha = torch.zeros(HEIGHT, WIDTH, 4).double(), torch.zeros(HEIGHT, WIDTH).double()
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    for i in means[:, 2].argsort().tolist():
        px, py, pz = means[i].tolist()
        center = [FOCAL * px / pz + WIDTH / 2, FOCAL * py / pz + HEIGHT / 2]
        jacobian = torch.tensor([[1, 0, -px / pz], [0, 1, -py / pz]]).double() * FOCAL / pz
        local = jacobian @ to_camera[:3, :3]
        covariance = local @ gaussians.covariances[frame, i].double() @ local.T
        inverse = torch.linalg.inv(covariance + LOW_PASS_PX2 * torch.eye(2))
        offset = torch.stack([x - center[0], y - center[1]], -1).double()
        power = torch.einsum("hwi,ij,hwj->hw", offset, inverse, offset)
        own = (gaussians.opacities[frame, i] * torch.exp(-power / 2)).clamp(max=0.999)
        own = own.where(own >= 1 / 255, 0.0) * (1 - alpha)
        value = torch.cat([gaussians.colors[frame, i].double(), torch.tensor([pz]).double()])
        color, alpha = color + own[..., None] * value, alpha + own
    return color, alpha


def test_it_is_the_sum_of_the_formulas():
    gaussians, path = random_gaussians(3, 40), cameras(3)
    picture, alpha = rasterize(gaussians, path)
    assert alpha.max() > 0.9
    for frame in range(3):
        expected, expected_alpha = by_the_formulas(gaussians, path, frame)
        # Measured 2e-6: float32. Transmittance is cut off at 1e-4.
        torch.testing.assert_close(alpha[frame].double(), expected_alpha, atol=2e-4, rtol=0)
        torch.testing.assert_close(picture[frame].double(), expected, atol=1e-3, rtol=0)


def test_one_gaussian_has_its_analytic_profile():
    sigma, depth = 0.2, 2.0
    single = Gaussians(
        means=torch.tensor([[[0.5 * depth / FOCAL, 0.5 * depth / FOCAL, depth]]]),
        covariances=(torch.eye(3) * sigma**2)[None, None],
        opacities=torch.tensor([[0.8]]),
        colors=torch.tensor([[[1.0, 0.5, 0.25]]]),
    )
    path = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([FOCAL]), HEIGHT, WIDTH),
        height=HEIGHT,
        width=WIDTH,
    )
    output = blended(*rasterize(single, path))
    row, column = HEIGHT // 2, WIDTH // 2  # its centre is that of this pixel
    variance = (sigma * FOCAL / depth) ** 2 + LOW_PASS_PX2
    for offset in range(4):
        expected = 0.8 * math.exp(-(offset**2) / (2 * variance))
        assert float(output.alpha[0, row, column + offset]) == pytest.approx(expected, abs=1e-3)
    seen = output.alpha[0] > 0
    torch.testing.assert_close(
        output.rgb[0][seen], torch.tensor([1.0, 0.5, 0.25]).expand(int(seen.sum()), 3)
    )
    torch.testing.assert_close(output.depth[0][seen], torch.full((int(seen.sum()),), depth))
    assert output.rgb[0][~seen].eq(0).all()
    assert output.depth[0][~seen].eq(0).all()


def test_what_is_behind_the_camera_or_transparent_is_not_drawn():
    gaussians = random_gaussians(1, 30)
    behind = Gaussians(
        means=gaussians.means * torch.tensor([1.0, 1.0, -1.0]),
        covariances=gaussians.covariances,
        opacities=gaussians.opacities,
        colors=gaussians.colors,
    )
    transparent = Gaussians(
        means=gaussians.means,
        covariances=gaussians.covariances,
        opacities=torch.zeros_like(gaussians.opacities),
        colors=gaussians.colors,
    )
    for nothing in (behind, transparent):
        picture, alpha = rasterize(nothing, cameras())
        assert alpha.eq(0).all()
        assert picture.eq(0).all()


def synthetic_scene() -> Scene4D:
    return make_world(3).view(make_world(3).cameras(1, 90, 120)).scene(8.0)


def test_the_input_view_comes_back_and_a_nearer_view_stays_closed():
    scene = synthetic_scene()
    settings = RenderSettings(mode="gaussian", gaussian_backend="torch")
    same = render(scene, scene.cameras, settings)
    assert same.alpha.min() > 0.9
    # Measured 32 dB: the low-pass of Gaussians blurs by less than a pixel.
    assert -10 * torch.log10((same.rgb - scene.points.colors).square().mean()) > 30
    closer = replace(
        scene.cameras, world_to_camera=rigid(torch.eye(3), torch.tensor([[0.0, 0.0, -1.0]]))
    )
    inside = render(scene, closer).alpha == 1
    assert (render(scene, closer, settings).alpha[inside] > 0.5).float().mean() > 0.99


def test_gaussians_span_the_surface_and_are_small_balls_at_edges():
    scene = synthetic_scene()
    points = point_frames(scene, slice(0, 1), torch.device("cpu"), draw_unseen=False)
    surface = surface_of(points, None)
    gaussians = gaussians_of(points, surface, sigma=0.5)
    assert surface.joins is not None
    edge = surface.joins.edge
    assert 0.01 < edge.float().mean() < 0.2
    ball = (0.5 * surface.spacing[edge]).square()[:, None, None] * torch.eye(3)
    torch.testing.assert_close(gaussians.covariances[edge], ball)
    grid = scene.points.positions[0]
    step = (grid[:, 2:] - grid[:, :-2])[:, :, None] / 2  # from the left to the right neighbour
    inner = ~edge.view(90, 120)[:, 1:-1]
    variance = gaussians.covariances[0].view(90, 120, 3, 3)[:, 1:-1]
    along = (step @ variance @ step.transpose(-1, -2))[..., 0, 0] / step.square().sum((-1, -2))
    steep = inner & (step.norm(dim=-1)[..., 0] > 8 * surface.spacing.view(90, 120)[:, 1:-1])
    expected = 0.25 * step.square().sum((-1, -2))
    joined = surface.joins.right.view(90, 120)
    both = inner & ~steep & joined[:, :-2] & joined[:, 1:-1]
    assert both.float().mean() > 0.7
    assert (along[both] >= 0.99 * expected[both]).all()


def test_points_that_are_not_to_be_drawn_are_transparent_and_finite():
    scene = synthetic_scene()
    maps = scene.points
    positions, valid = maps.positions.clone(), maps.valid.clone()
    positions[:, :5], valid[:, 5:10] = torch.nan, False
    scene = replace(scene, points=replace(maps, positions=positions, valid=valid))
    points = point_frames(scene, slice(0, 1), torch.device("cpu"), draw_unseen=False)
    gaussians = gaussians_of(points, surface_of(points, None), sigma=0.5)
    assert gaussians.opacities.view(90, 120)[:10].eq(0).all()
    assert gaussians.opacities.view(90, 120)[10:].eq(1).all()
    assert gaussians.means.isfinite().all()
    assert gaussians.covariances.isfinite().all()
