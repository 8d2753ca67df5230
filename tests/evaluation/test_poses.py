"""Errors of cameras by evo, against their definitions written out."""

import math

import pytest
import torch

from more4d_backend.evaluation.poses import pose_errors, still_rotation_deg, straight_line_ate
from more4d_backend.evaluation.tables import EvaluationError
from more4d_backend.geometry import align_similarity, matrix_from_quaternion_wxyz, rigid

evo = pytest.importorskip("evo", reason="pose errors need evo: pip install evo")


def turned(degrees: torch.Tensor) -> torch.Tensor:
    """Rotations about y."""
    half = torch.deg2rad(degrees) / 2
    zero = torch.zeros_like(half)
    return matrix_from_quaternion_wxyz(torch.stack([half.cos(), zero, half.sin(), zero], -1))


@pytest.fixture
def trajectory():
    """Twelve cameras that turn by 2 degrees a frame on a winding path."""
    time = torch.arange(12, dtype=torch.float64)
    center = torch.stack([time.sin(), 0.3 * time, (0.7 * time).cos()], -1)
    return rigid(turned(2 * time), center)


@pytest.fixture
def noisy(trajectory):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(12, generator=generator, dtype=torch.float64)
    poses = trajectory.clone()
    poses[:, :3, :3] = poses[:, :3, :3] @ turned(noise)
    poses[:, :3, 3] += 0.1 * torch.randn(12, 3, generator=generator, dtype=torch.float64)
    return poses


def in_another_world(poses: torch.Tensor) -> torch.Tensor:
    """Turned, moved, and four times as large."""
    world = rigid(turned(torch.tensor(70.0, dtype=torch.float64)), torch.tensor([1.0, -2, 3]))
    moved = poses.clone()
    moved[:, :3, 3] *= 4
    return world.double() @ moved


def test_another_world_and_another_unit_are_no_error(trajectory):
    errors = pose_errors(in_another_world(trajectory), trajectory)
    assert errors.ate == pytest.approx(0, abs=1e-9)
    assert errors.rpe_translation == pytest.approx(0, abs=1e-9)
    assert errors.rpe_rotation_deg == pytest.approx(0, abs=1e-5)


def test_errors_are_those_of_their_definitions(trajectory, noisy):
    errors = pose_errors(in_another_world(noisy), trajectory)
    scale, rotation, translation = align_similarity(noisy[:, :3, 3], trajectory[:, :3, 3])
    aligned = noisy.clone()
    aligned[:, :3, 3] = scale * noisy[:, :3, 3] @ rotation.T + translation
    aligned[:, :3, :3] = rotation @ noisy[:, :3, :3]
    distance = (aligned - trajectory)[:, :3, 3].norm(dim=-1)
    assert errors.ate == pytest.approx(float(distance.square().mean().sqrt()), rel=1e-9)

    def steps(poses):
        return torch.linalg.inv(poses[:-1]) @ poses[1:]

    error = torch.linalg.inv(steps(trajectory)) @ steps(aligned)
    moved = error[:, :3, 3].norm(dim=-1).square().mean().sqrt()
    assert errors.rpe_translation == pytest.approx(float(moved), rel=1e-9)
    cosine = (error[:, :3, :3].diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
    angle = torch.rad2deg(torch.acos(cosine)).square().mean().sqrt()
    assert errors.rpe_rotation_deg == pytest.approx(float(angle), rel=1e-6)
    assert errors.rpe_rotation_deg > 0.5


def test_float32_poses_are_accepted(trajectory, noisy):
    exact = pose_errors(noisy, trajectory)
    rounded = pose_errors(noisy.float(), trajectory.float())
    assert rounded.ate == pytest.approx(exact.ate, rel=1e-5)


def test_the_still_camera_s_rotation_error_is_the_camera_s_own_turn(trajectory):
    still = trajectory.clone()
    still[:, :3, :3] = torch.eye(3, dtype=torch.float64)
    assert still_rotation_deg(trajectory) == pytest.approx(2.0)
    assert pose_errors(still, trajectory).rpe_rotation_deg == pytest.approx(2.0, rel=1e-6)


def test_no_straight_path_has_less_ate_than_the_best_line(trajectory):
    best = straight_line_ate(trajectory)
    center = trajectory[:, :3, 3]
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        direction = torch.randn(3, generator=generator, dtype=torch.float64)
        along = torch.randn(12, generator=generator, dtype=torch.float64).cumsum(0)
        line = along[:, None] * direction
        scale, rotation, translation = align_similarity(line, center)
        error = scale * line @ rotation.T + translation - center
        assert float(error.square().sum(-1).mean().sqrt()) >= best - 1e-12
    straight = trajectory.clone()
    straight[:, :3, 3] = torch.arange(12.0)[:, None] * torch.tensor([1.0, 2, 3])
    assert straight_line_ate(straight) == pytest.approx(0, abs=1e-9)


@pytest.mark.usefixtures("as_users_run_it")
def test_what_cannot_be_compared_is_refused_in_words(trajectory):
    still = trajectory.clone()
    still[:, :3, 3] = 0
    with pytest.raises(EvaluationError, match="on one line or in one point"):
        pose_errors(still, trajectory)
    with pytest.raises(EvaluationError, match="11 predicted and 12 true"):
        pose_errors(trajectory[:11], trajectory)
    broken = trajectory.clone()
    broken[4, 0, 3] = math.nan
    with pytest.raises(EvaluationError, match="predicted camera of frame 4 is not finite"):
        pose_errors(broken, trajectory)
