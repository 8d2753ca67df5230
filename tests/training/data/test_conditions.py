import pytest
import torch

from training.data.conditions import FrozenEncoders, dropped
from training.networks import RandomTextEncoder


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5])
def test_a_condition_is_dropped_for_whole_samples_as_often_as_asked(probability):
    condition = torch.ones(4000, 3, 2)
    kept = dropped(condition, probability, _draw()).flatten(1)
    assert (kept.all(1) | ~kept.any(1)).all()
    assert 1 - kept[:, 0].mean() == pytest.approx(probability, abs=0.03)


def test_a_condition_that_is_not_there_stays_away():
    assert dropped(None, 0.5, _draw()) is None


def test_dropping_takes_the_same_random_numbers_whatever_it_drops():
    after = []
    for probability in (0.0, 0.9):
        generator = _draw()
        dropped(torch.ones(5, 2), probability, generator)
        after.append(torch.rand(1, generator=generator))
    assert after[0] == after[1]


@pytest.fixture
def encoders():
    return FrozenEncoders(
        text_encoder=RandomTextEncoder(8, seed=0), image_encoder=None, device=torch.device("cpu")
    )


def test_captions_become_the_empty_text_as_often_as_asked(encoders):
    tokens = encoders.text(["moves left"] * 300, 0.2, _draw())
    empty = encoders.text_encoder.encode([""])[0]
    is_empty = (tokens == empty).flatten(1).all(1)
    assert is_empty.float().mean() == pytest.approx(0.2, abs=0.06)


def test_without_an_image_encoder_there_are_no_image_tokens(encoders):
    assert encoders.image_tokens(torch.rand(2, 8, 8, 3)) is None


def test_the_stand_in_encoder_tells_texts_and_places_apart():
    encoder = RandomTextEncoder(16, seed=3)
    left, right, swapped = encoder.encode(["moves left", "moves right", "left moves"])
    assert left.shape == (512, 16)
    assert torch.equal(left[:6], right[:6])
    assert not torch.equal(left[6:10], right[6:10])
    assert not torch.equal(left, swapped)
    assert not left[len("moves left") :].any()
    assert torch.equal(RandomTextEncoder(16, seed=3).encode(["moves left"])[0], left)
    assert not torch.equal(RandomTextEncoder(16, seed=4).encode(["moves left"])[0], left)
    assert encoder.encode(["x" * 600])[0].any(-1).all()
