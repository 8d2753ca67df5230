"""Depth as grey pictures, both ways: as other programs draw it, and to be looked at."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from .lifting import DepthError, usable_depth

DepthEncoding = Literal["disparity 0-1", "depth 0-1", "depth"]
"""`disparity 0-1`: white is near, evenly in 1 / depth, as depth estimators mostly draw it.
`depth 0-1`: black is near, evenly in depth. `depth`: the values are camera z."""

_MOST_VALUES = 2**14
"""That the ends of the scale are found among: sorting 2**20 took a fifth of a render's time."""
_CUT_SHARE = 0.001


def depth_from_picture(
    picture: Float[Tensor, "*batch"],
    encoding: DepthEncoding,
    *,
    near: float = 1.0,
    far: float = 10.0,
) -> Float[Tensor, "*batch"]:
    """Camera z of each pixel of a picture of depth.

    Args:
        picture: grey values; any positive numbers for the encoding `depth`.
        encoding: what the values are.
        near: depth of the nearest grey value, in world units.
        far: depth of the farthest, which disparity cannot know: 0 to 1 is all that a picture says.

    Raises:
        DepthError: an unknown encoding, `near` not positive, `far` not beyond it, or grey values
            outside 0 to 1.
    """
    if encoding not in get_args(DepthEncoding):
        raise DepthError(
            f"The depth encoding is {encoding!r}; expected one of "
            f"{', '.join(map(repr, get_args(DepthEncoding)))}."
        )
    if encoding == "depth":
        return picture
    if not 0 < near < far < float("inf"):
        raise DepthError(
            f"near is {near} and far is {far}; expected 0 < near < far, in world units."
        )
    low, high = (float(value) for value in picture.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise DepthError(
            f"The depth picture has values from {low:.4g} to {high:.4g}, and {encoding!r} means 0 "
            "to 1. If they are depths already, choose the encoding 'depth'."
        )
    if encoding == "depth 0-1":
        return near + (far - near) * picture
    return 1 / (1 / far + (1 / near - 1 / far) * picture)


def depth_picture(depth: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Grey values to look at: white is near, evenly in disparity; black is far, or nothing.

    All frames share one scale, so that a video does not flicker; the outermost 0.1 % at either
    end do not decide it. 0, negative and non-finite depth is nothing.
    """
    step = depth.numel() // _MOST_VALUES | 1  # odd, or it may hit the same columns only
    some = depth.flatten()[::step]
    disparity = some[usable_depth(some)].reciprocal()
    if len(disparity) == 0:
        return torch.zeros_like(depth)
    ends = disparity.quantile(disparity.new_tensor([_CUT_SHARE, 1 - _CUT_SHARE]))
    low, high = ends.tolist()
    if high <= low:
        return usable_depth(depth).to(depth)
    scale = 1 / (high - low)
    grey = depth.reciprocal().mul_(scale).sub_(low * scale).clamp_(0, 1)
    return grey.masked_fill_((depth > 0).logical_not_(), 0.0)  # NaN is not above 0 either
