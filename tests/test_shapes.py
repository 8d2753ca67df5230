import pytest
import torch

from more4d_backend.shapes import ShapeError, check_shapes


@pytest.mark.parametrize(
    ("colors", "message"),
    [
        (torch.zeros(4, 3), r"colors has shape \(4, 3\); expected \(point=5, 3\)\."),
        (torch.zeros(5), r"colors has shape \(5,\); expected \(point=5, 3\)\."),
    ],
)
def test_the_tensor_that_disagrees_is_named(colors, message):
    with pytest.raises(ShapeError, match=message):
        check_shapes(positions=(torch.zeros(2, 5, 3), "frame point 3"), colors=(colors, "point 3"))


def test_sizes_are_bound_by_name():
    assert check_shapes(a=(torch.zeros(2, 5), "frame point")) == {"frame": 2, "point": 5}
