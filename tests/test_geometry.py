import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend import geometry
from more4d_backend.geometry import GeometryError

SEEDS = st.integers(0, 2**31)
BATCHES = st.sampled_from([(), (1,), (3, 1, 2)])
MATH = {"rtol": 1e-9, "atol": 1e-9}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def sample_rotation(seed, batch):
    """Uniform, or within 1e-7 of the identity, where formulas break."""
    quaternion = normal(seed, *batch, 4)
    if seed % 3 == 0:
        quaternion = quaternion * 1e-7
        quaternion[..., 0] = 1.0
    return geometry.matrix_from_quaternion_wxyz(quaternion)


def intrinsics_for(height, width, focal):
    return geometry.intrinsics_from_focal(torch.tensor(focal, dtype=torch.float64), height, width)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, batch=BATCHES, focal=st.floats(50, 2000))
def test_project_inverts_unproject(seed, batch, focal):
    g = generator(seed)
    pixels = torch.rand(*batch, 2, generator=g, dtype=torch.float64) * 512
    depth = 0.1 + 100 * torch.rand(batch, generator=g, dtype=torch.float64)
    K = intrinsics_for(384, 512, focal).expand(*batch, 3, 3)
    xy, z = geometry.project(geometry.unproject(pixels, depth, K), K)
    torch.testing.assert_close(xy, pixels, **MATH)
    torch.testing.assert_close(z, depth, **MATH)


def test_convention_the_optical_axis_lands_between_the_middle_pixels():
    K = intrinsics_for(2, 4, 10.0)
    xy, _ = geometry.project(torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64), K)
    assert xy.tolist() == [2.0, 1.0]
    assert geometry.pixel_centers(2, 4)[0, 1].tolist() == [1.5, 0.5]


def test_convention_x_is_right_y_is_down_z_is_forward():
    K = intrinsics_for(8, 8, 4.0)
    points = torch.tensor([[1.0, 0, 2], [0, 1, 2]], dtype=torch.float64)
    xy, depth = geometry.project(points, K)
    assert xy.tolist() == [[6.0, 4.0], [4.0, 6.0]]
    assert depth.tolist() == [2.0, 2.0]


def test_convention_a_quarter_turn_about_z_moves_x_to_y():
    half = math.sqrt(0.5)
    rotation = geometry.matrix_from_quaternion_wxyz(torch.tensor([half, 0.0, 0.0, half]))
    torch.testing.assert_close(rotation @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1.0, 0.0]))


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, batch=BATCHES)
def test_invert_rigid_is_the_inverse(seed, batch):
    transform = geometry.rigid(sample_rotation(seed, batch), normal(seed + 1, *batch, 3))
    eye = torch.eye(4, dtype=torch.float64).expand(*batch, 4, 4)
    torch.testing.assert_close(geometry.invert_rigid(transform) @ transform, eye, **MATH)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, batch=BATCHES)
def test_quaternions_and_matrices_are_inverse(seed, batch):
    rotation = sample_rotation(seed, batch)
    quaternion = geometry.quaternion_wxyz_from_matrix(rotation)
    assert (quaternion[..., 0] >= 0).all()
    torch.testing.assert_close(geometry.matrix_from_quaternion_wxyz(quaternion), rotation, **MATH)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_half_turns_survive_the_way_through_a_quaternion(axis):
    quaternion = torch.zeros(4, dtype=torch.float64)
    quaternion[axis] = 1.0
    rotation = geometry.matrix_from_quaternion_wxyz(quaternion)
    back = geometry.matrix_from_quaternion_wxyz(geometry.quaternion_wxyz_from_matrix(rotation))
    torch.testing.assert_close(back, rotation, **MATH)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, batch=BATCHES)
def test_look_at_puts_the_target_on_the_optical_axis_and_up_above_it(seed, batch):
    position, target = normal(seed, *batch, 3), normal(seed + 1, *batch, 3)
    up = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    world_to_camera = geometry.look_at(position, target, up)
    geometry.check_rigid(world_to_camera, "world_to_camera")
    seen = geometry.transform_points(target, world_to_camera)
    distance = (target - position).norm(dim=-1)
    torch.testing.assert_close(seen[..., 2], distance, **MATH)
    torch.testing.assert_close(seen[..., :2], torch.zeros_like(seen[..., :2]), **MATH)
    above = geometry.transform_points(target + 0.01 * up, world_to_camera)
    assert (above[..., 1] < 0).all()


def test_look_at_along_the_up_direction_is_refused():
    with pytest.raises(GeometryError, match="parallel"):
        geometry.look_at(torch.zeros(3), torch.tensor([0.0, 3, 0]), torch.tensor([0.0, -1, 0]))


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, batch=st.sampled_from([(), (3, 1, 2)]), with_scale=st.booleans())
def test_alignment_recovers_the_transform_whatever_the_weights(seed, batch, with_scale):
    source = normal(seed, *batch, 20, 3)
    rotation, translation = sample_rotation(seed + 1, batch), normal(seed + 2, *batch, 3)
    scale = torch.full(batch, 2.5 if with_scale else 1.0, dtype=torch.float64)
    target = (
        scale[..., None, None] * source @ rotation.transpose(-1, -2) + translation[..., None, :]
    )
    weights = normal(seed + 3, *batch, 20).square() + 0.1
    s, R, t = geometry.align_similarity(source, target, weights, with_scale=with_scale)
    torch.testing.assert_close(s, scale, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(R, rotation, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(t, translation, rtol=1e-7, atol=1e-7)


def test_alignment_ignores_points_of_weight_zero():
    source = normal(0, 20, 3)
    target = source + 1.0
    target[0] = 1e6
    weights = torch.ones(20, dtype=torch.float64)
    weights[0] = 0
    _, _, translation = geometry.align_similarity(source, target, weights)
    torch.testing.assert_close(translation, torch.ones(3, dtype=torch.float64), **MATH)


def test_alignment_never_mirrors():
    source = normal(3, 20, 3)
    _, rotation, _ = geometry.align_similarity(source, source * torch.tensor([1.0, 1, -1]))
    assert torch.linalg.det(rotation) > 0.99


def test_field_of_view_and_focal_length_are_inverse():
    assert geometry.focal_from_fov(math.pi / 2, 100) == pytest.approx(50)
    assert geometry.fov_from_focal(50, 100) == pytest.approx(math.pi / 2)
    with pytest.raises(GeometryError, match="180"):
        geometry.focal_from_fov(math.pi, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[0, :3, :3].mul_(2), "differs from a rotation"),
        (lambda m: m[1, :3, :3].neg_(), "frame 1 .* mirrors"),
        (lambda m: m[1, 3].fill_(1), "last row"),
        (lambda m: m[0, 0, 3].fill_(math.nan), "NaN"),
    ],
)
def test_a_matrix_that_is_not_rigid_is_refused_with_the_reason(change, message):
    matrices = torch.eye(4).repeat(2, 1, 1)
    change(matrices)
    with pytest.raises(GeometryError, match=message):
        geometry.check_rigid(matrices, "world_to_camera")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]], r"normalised .* width \(640\)"),
        ([[500, 0, 320], [0, 0, 240], [0, 0, 1]], "singular"),
        ([[500, 0, 320], [0, -500, 240], [0, 0, 1]], "negative focal"),
        ([[500, 0, 0], [0, 500, 0], [320, 240, 1]], "transposed"),
        ([[math.nan, 0, 320], [0, 500, 240], [0, 0, 1]], "NaN"),
    ],
)
def test_intrinsics_that_are_not_in_pixels_are_refused_with_what_they_look_like(rows, message):
    good = intrinsics_for(480, 640, 500.0)
    bad = torch.tensor(rows, dtype=torch.float64)
    with pytest.raises(GeometryError, match=rf"camera 1.*{message}"):
        geometry.check_intrinsics(torch.stack([good, bad]), 480, 640)


def test_wrong_shape_is_refused():
    with pytest.raises(Exception, match="4 4"):
        geometry.transform_points(torch.zeros(7, 3), torch.eye(3))
