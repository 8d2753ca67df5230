import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from more4d_backend.rendering.zbuffer import PackedZBuffer, TwoPassZBuffer, z_buffer

CPU = torch.device("cpu")
BUFFERS = [PackedZBuffer, TwoPassZBuffer]


def fragments(seed: int, count: int, pixels: int):
    generator = torch.Generator().manual_seed(seed)
    pixel = torch.randint(0, pixels, (count,), generator=generator)
    # Few distinct depths, so that many are equal.
    depth = torch.randint(1, 6, (count,), generator=generator).float() / 3
    return pixel, depth, torch.randperm(count, generator=generator)


def by_sorting(pixel, depth, point, pixels: int, missing: int):
    """The nearest fragment of each pixel, the lowest point among equals, by brute force."""
    winner = torch.full((pixels,), missing)
    nearest = torch.zeros(pixels)
    for p in range(pixels):
        here = sorted(
            (d, i)
            for q, d, i in zip(pixel.tolist(), depth.tolist(), point.tolist(), strict=True)
            if q == p
        )
        if here:
            nearest[p], winner[p] = here[0]
    return winner, nearest


@pytest.mark.parametrize("kind", BUFFERS)
@given(seed=st.integers(0, 1000), parts=st.integers(1, 4))
def test_the_nearest_wins_and_the_lowest_number_among_equals(kind, seed, parts):
    pixel, depth, point = fragments(seed, 60, 17)
    buffer = kind(17, CPU)
    for part in range(parts):
        buffer.draw(pixel[part::parts], depth[part::parts], point[part::parts])
    winner, nearest = by_sorting(pixel, depth, point, 17, missing=60)
    assert torch.equal(buffer.points(missing=60), winner)
    assert torch.equal(buffer.depth(), nearest)


@pytest.mark.parametrize("kind", BUFFERS)
def test_fragments_at_infinity_leave_no_trace(kind):
    buffer = kind(3, CPU)
    infinite = torch.full((3,), torch.inf)
    buffer.draw(torch.tensor([0, 1, 2]), infinite, torch.arange(3))
    buffer.draw(torch.tensor([1]), torch.tensor([1e30]), torch.tensor([2]))
    buffer.draw(torch.tensor([0, 1, 2]), infinite, torch.zeros(3, dtype=torch.int64))
    assert buffer.points(missing=9).tolist() == [9, 2, 9]
    assert buffer.depth().tolist() == [0.0, pytest.approx(1e30), 0.0]


def test_apples_device_gets_the_buffer_without_64_bit_atomics():
    assert isinstance(z_buffer(4, CPU), PackedZBuffer)
    assert isinstance(z_buffer(4, torch.device("meta")), PackedZBuffer)
    if torch.backends.mps.is_available():
        assert isinstance(z_buffer(4, torch.device("mps")), TwoPassZBuffer)
