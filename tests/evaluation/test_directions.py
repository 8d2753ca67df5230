"""Objects that follow their words, and the oracle that knows nothing but the words."""

import pytest
import torch

from more4d_backend.evaluation.directions import (
    ObjectMatch,
    WordMotions,
    accuracy_by_word,
    fit_affine,
    match_objects,
)
from more4d_backend.evaluation.tables import EvaluationError
from more4d_backend.geometry import matrix_from_quaternion_wxyz


@pytest.fixture
def offsets():
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def spin(offsets, angle_rad, frames=4):
    half = torch.linspace(0, angle_rad / 2, frames, dtype=torch.float64)
    zero = torch.zeros_like(half)
    turns = matrix_from_quaternion_wxyz(torch.stack([half.cos(), zero, half.sin(), zero], -1))
    centered = offsets - offsets.mean(0)
    return torch.einsum("fij,pj->fpi", turns, centered) - centered


def slide(offsets, x, frames=4):
    motion = torch.zeros(frames, len(offsets), 3, dtype=torch.float64)
    motion[..., 0] = torch.linspace(0, x, frames, dtype=torch.float64)[:, None]
    return motion


ONE = torch.zeros(40, dtype=torch.long)


@pytest.mark.parametrize("size", [0.25, 1.0, 4.0])
def test_a_motion_of_the_right_direction_and_size_is_right(offsets, size):
    true = slide(offsets, 1.0)
    (match,) = match_objects(size * true, true, ONE, ["moves right"])
    assert match.word == "moves right"
    assert match.cosine == pytest.approx(1, abs=1e-12)
    assert match.size == pytest.approx(size)
    assert match.is_right


@pytest.mark.parametrize("size", [0.2, 5.0, -1.0, 0.0])
def test_a_motion_of_another_size_or_sense_is_wrong(offsets, size):
    true = slide(offsets, 1.0)
    (match,) = match_objects(size * true, true, ONE, ["moves right"])
    assert not match.is_right


def test_a_spin_in_the_other_sense_is_wrong(offsets):
    true = spin(offsets, 1.0)
    assert match_objects(spin(offsets, 1.3), true, ONE, ["spins"])[0].is_right
    assert not match_objects(spin(offsets, -1.0), true, ONE, ["spins"])[0].is_right


def test_just_beyond_45_degrees_is_wrong():
    assert ObjectMatch(word="", cosine=0.71, size=1).is_right
    assert not ObjectMatch(word="", cosine=0.69, size=1).is_right


def test_objects_that_rest_or_are_tiny_are_not_judged(offsets):
    index = torch.full((40,), -1)
    index[:10], index[10:13], index[20:] = 0, 1, 2
    true = slide(offsets, 1.0)
    true[:, :10] = 0
    matches = match_objects(true, true, index, ["stays still", "tiny", "moves right"])
    assert [match.word for match in matches] == ["moves right"]


def test_an_object_without_a_word_is_refused(offsets):
    true = slide(offsets, 1.0)
    with pytest.raises(EvaluationError, match="goes up to 1, and there are 1 words"):
        match_objects(true, true, ONE + 1, ["moves right"])


def test_accuracy_is_counted_for_each_word():
    matches = [
        ObjectMatch(word="b", cosine=1, size=1),
        ObjectMatch(word="a", cosine=1, size=1),
        ObjectMatch(word="b", cosine=-1, size=1),
    ]
    accuracy = accuracy_by_word(matches)
    assert list(accuracy) == ["a", "b"]
    assert accuracy["a"].value == 1
    assert accuracy["b"].value == 0.5


def test_rigid_motions_are_affine_in_the_offsets(offsets):
    motion = spin(offsets, 1.0) + slide(offsets, 0.3)
    affine = fit_affine(motion, offsets + 5)
    centered = offsets - offsets.mean(0)
    torch.testing.assert_close(affine[:, :1] + centered @ affine[:, 1:], motion)


def test_a_flat_object_does_not_invent_motion_across_itself(offsets):
    flat = offsets * torch.tensor([1.0, 1.0, 1e-3])
    noise = 0.01 * torch.randn(4, 40, 3, generator=torch.Generator().manual_seed(1)).double()
    assert fit_affine(noise, flat)[:, 1:].abs().max() < 0.02  # 4 without the cut


def test_the_oracle_moves_every_object_by_the_mean_of_its_word(offsets):
    oracle = WordMotions()
    for strength in (0.5, 1.5):
        oracle.add(slide(offsets, strength), offsets, ONE, ["moves right"])
        oracle.add(spin(offsets, 0.1 * strength), offsets, ONE, ["spins"])
    index = torch.full((40,), -1)
    index[:20], index[20:30] = 0, 1
    motion = oracle.mean(offsets, index, ["moves right", "spins"])
    torch.testing.assert_close(motion[:, :20], slide(offsets[:20], 1.0))
    torch.testing.assert_close(
        motion[:, 20:30], spin(offsets[20:30], 0.1), atol=2e-3, rtol=0
    )  # measured 1e-3: the mean of two turns is not quite a turn
    assert not motion[:, 30:].any()


def test_drawn_oracles_are_examples_of_the_word(offsets):
    oracle = WordMotions()
    for strength in (0.5, 1.5):
        oracle.add(slide(offsets, strength), offsets, ONE, ["moves right"])
    generator = torch.Generator().manual_seed(0)
    drawn = {
        round(float(oracle.draw(offsets, ONE, ["moves right"], generator)[-1, 0, 0]), 6)
        for _ in range(20)
    }
    assert drawn == {0.5, 1.5}


def test_an_unknown_word_is_refused_with_the_known_ones(offsets):
    oracle = WordMotions()
    oracle.add(slide(offsets, 1.0), offsets, ONE, ["moves right"])
    with pytest.raises(EvaluationError, match=r"'flies'; known are moves right\."):
        oracle.mean(offsets, ONE, ["flies"])
