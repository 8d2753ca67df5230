import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend import Cameras
from more4d_backend.camera_paths.edits import (
    EASES,
    CameraPathError,
    cameras_between,
    concatenate_paths,
    ease_path,
    loop_path,
    rebase_path,
    retime_path,
    reverse_path,
    slerp,
)
from more4d_backend.geometry import (
    intrinsics_from_focal,
    invert_rigid,
    matrix_from_quaternion_wxyz,
    quaternion_wxyz_from_matrix,
    rigid,
)

SEEDS = st.integers(0, 2**31)


def random_path(seed, num_frames=6, dtype=torch.float64, height=48, width=64):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(num_frames, 7, generator=generator, dtype=torch.float64)
    focal = 40 + 40 * torch.rand(num_frames, generator=generator, dtype=torch.float64)
    return Cameras(
        world_to_camera=rigid(matrix_from_quaternion_wxyz(numbers[:, :4]), numbers[:, 4:]).to(
            dtype
        ),
        intrinsics=intrinsics_from_focal(focal, height, width).to(dtype),
        height=height,
        width=width,
    )


def assert_same(a, b, tolerance=1e-12):
    torch.testing.assert_close(a.world_to_camera, b.world_to_camera, rtol=0, atol=tolerance)
    torch.testing.assert_close(a.intrinsics, b.intrinsics, rtol=0, atol=100 * tolerance)
    assert (a.height, a.width) == (b.height, b.width)


def assert_identical(a, b):
    assert torch.equal(a.world_to_camera, b.world_to_camera)
    assert torch.equal(a.intrinsics, b.intrinsics)


@settings(deadline=None, max_examples=50)
@given(
    seed=SEEDS,
    num_frames=st.integers(1, 9) | st.just(50),
    times=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_retiming_keeps_every_frame_that_it_meets_bit_for_bit(seed, num_frames, times, dtype):
    path = random_path(seed, num_frames, dtype)
    longer = retime_path(path, (num_frames - 1) * times + 1)
    assert_identical(longer.frames(slice(None, None, times)), path)
    assert longer.world_to_camera.dtype == dtype


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, num_frames=st.integers(2, 30), ease=st.sampled_from(list(EASES)))
def test_retiming_keeps_both_ends_whatever_the_ease(seed, num_frames, ease):
    path = random_path(seed)
    retimed = retime_path(path, num_frames, ease=ease)
    assert retimed.num_frames == num_frames
    assert_identical(retimed.frames([0, -1]), path.frames([0, -1]))


def test_one_frame_can_become_many_and_many_one():
    path = random_path(0)
    assert_identical(retime_path(path, 1), path.frames([0]))
    assert_identical(retime_path(path.frames([2]), 3), path.frames([2, 2, 2]))


def test_halfway_is_the_middle_place_half_the_turn_and_the_geometric_mean_of_the_focal_lengths():
    turn = torch.tensor([[1, 0, 0, 0], [math.cos(0.5), 0, math.sin(0.5), 0]], dtype=torch.float64)
    poses = rigid(
        matrix_from_quaternion_wxyz(turn), torch.tensor([[0, 0, 0], [2, 4, 6.0]]).double()
    )
    path = Cameras(
        world_to_camera=invert_rigid(poses),
        intrinsics=intrinsics_from_focal(torch.tensor([50.0, 200.0]).double(), 48, 64),
        height=48,
        width=64,
    )
    middle = cameras_between(path, torch.tensor([0.5]).double())
    assert middle.camera_to_world[0, :3, 3].tolist() == pytest.approx([1, 2, 3], abs=1e-12)
    forward = middle.camera_to_world[0, :3, 2].tolist()
    assert forward == pytest.approx([math.sin(0.5), 0, math.cos(0.5)], abs=1e-12)
    assert middle.intrinsics[0].tolist() == [
        pytest.approx([100, 0, 32]),
        pytest.approx([0, 100, 24]),
        [0, 0, 1],
    ]


def test_easing_changes_the_times_and_not_the_way():
    path = random_path(1, 2)
    linear, eased = retime_path(path, 101), ease_path(retime_path(path, 101), "in")
    assert eased.num_frames == 101
    assert_same(eased.frames([10]), linear.frames([1]), 1e-9)
    assert_same(eased.frames([50]), linear.frames([25]), 1e-9)


@pytest.mark.parametrize("edit", [lambda p: retime_path(p, 0), lambda p: ease_path(p, "bounce")])
def test_no_frames_and_unknown_eases_are_refused(edit):
    with pytest.raises(CameraPathError, match=r"num_frames is 0|ease is 'bounce'; expected one of"):
        edit(random_path(0))


def test_reversing_twice_is_the_path():
    path = random_path(2)
    assert_identical(reverse_path(path).frames([0]), path.frames([-1]))
    assert_identical(reverse_path(reverse_path(path)), path)


def test_a_loop_goes_and_comes_back_without_showing_an_end_twice():
    path = random_path(3, 4)
    assert_identical(loop_path(path), path.frames([0, 1, 2, 3, 2, 1]))
    assert loop_path(path.frames([0])).num_frames == 1
    assert_identical(loop_path(path.frames([0, 1])), path.frames([0, 1]))


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_joined_paths_are_continuous_and_keep_their_own_shapes(seed, dtype):
    a, b, c = (random_path(seed + i, 4, dtype) for i in range(3))
    joined = concatenate_paths(a, b, c)
    assert joined.num_frames == 4 + 3 + 3
    assert_identical(joined.frames(slice(0, 4)), a)
    for part, first in ((b, 3), (c, 6)):
        there = joined.frames(slice(first, first + 4)).world_to_camera.double()
        here = part.world_to_camera.double()
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4  # measured: 2e-5 in float32
        torch.testing.assert_close(
            there @ invert_rigid(there[:1]), here @ invert_rigid(here[:1]), rtol=0, atol=tolerance
        )
    focal, focal_b = joined.intrinsics[:, 0, 0].double(), b.intrinsics[:, 0, 0].double()
    torch.testing.assert_close(focal[3:7] / focal[3], focal_b / focal_b[0], rtol=1e-6, atol=0)


def test_paths_of_different_sizes_are_not_joined():
    with pytest.raises(CameraPathError, match=r"path is for 24x32 .* for 48x64\. Use path.resized"):
        concatenate_paths(random_path(0), random_path(1, height=24, width=32))
    with pytest.raises(CameraPathError, match="no path to concatenate"):
        concatenate_paths()


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, scale=st.floats(0.01, 100))
def test_a_rebased_path_starts_there_and_is_only_scaled(seed, scale):
    path, start = random_path(seed), random_path(seed + 1, 1)
    moved = rebase_path(path, start, scale=scale)
    assert_identical(moved.frames([0]), start)
    wanted = path.world_to_camera @ invert_rigid(path.world_to_camera[:1])
    got = moved.world_to_camera @ invert_rigid(moved.world_to_camera[:1])
    torch.testing.assert_close(got[:, :3, :3], wanted[:, :3, :3], rtol=0, atol=1e-9)
    torch.testing.assert_close(got[:, :3, 3], scale * wanted[:, :3, 3], rtol=0, atol=1e-8)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS)
def test_rebasing_onto_its_own_start_changes_nothing(seed):
    path = random_path(seed)
    assert_same(rebase_path(path, path.frames([0])), path, 1e-10)


def test_rebasing_needs_one_camera_and_a_positive_scale():
    path = random_path(0)
    with pytest.raises(CameraPathError, match="start has 6 cameras; expected one"):
        rebase_path(path, path)
    with pytest.raises(CameraPathError, match="scale is 0; expected a positive"):
        rebase_path(path, path.frames([0]), scale=0)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, batch=st.sampled_from([(), (3, 1, 2)]), close=st.booleans())
def test_slerp_turns_evenly_about_one_axis(seed, batch, close):
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, *batch, 4, generator=generator, dtype=torch.float64)
    start = torch.nn.functional.normalize(start, dim=-1)
    if close:
        end = start + 1e-9 * end
    end = torch.nn.functional.normalize(end, dim=-1)

    def angle(a, b):
        between = matrix_from_quaternion_wxyz(a).mT @ matrix_from_quaternion_wxyz(b)
        return 2 * quaternion_wxyz_from_matrix(between)[..., 1:].norm(dim=-1).clamp(max=1).asin()

    fraction = torch.full((*batch, 1), 0.3, dtype=torch.float64)
    between = slerp(start, end, fraction)
    torch.testing.assert_close(between.norm(dim=-1), torch.ones(batch).double())
    whole = angle(start, end)
    torch.testing.assert_close(angle(start, between), 0.3 * whole, rtol=0, atol=1e-7)
    torch.testing.assert_close(angle(between, end), 0.7 * whole, rtol=0, atol=1e-7)
    assert (whole <= math.pi + 1e-9).all()


def test_slerp_takes_the_short_way_whatever_the_signs():
    start = torch.tensor([1.0, 0, 0, 0]).double()
    end = torch.tensor([math.cos(0.2), math.sin(0.2), 0, 0]).double()
    half = torch.tensor([0.5]).double()
    wanted = torch.tensor([math.cos(0.1), math.sin(0.1), 0, 0]).double()
    torch.testing.assert_close(slerp(start, end, half), wanted)
    torch.testing.assert_close(slerp(start, -end, half), wanted)


def test_slerp_between_equal_rotations_stays_there():
    start = torch.tensor([0.6, 0, 0.8, 0]).double()
    for end in (start, -start):
        torch.testing.assert_close(slerp(start, end, torch.tensor([0.3]).double()), start)
