"""The nearest point at every pixel of every frame.

Fragments are (pixel, depth, point) triples in any order; `pixel` counts through all frames. Where
depths are equal the lowest point wins, so the result does not depend on order or device.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_INDEX_BITS = 32
_EMPTY = 0x7F800000 << _INDEX_BITS  # the bits of infinity: no fragment of that depth is below it


class PackedZBuffer:
    """One atomic minimum per fragment, on keys of depth (high 32 bits) and point (low 32).

    The bits of a positive float32, read as an integer, are ordered as the float is.
    """

    def __init__(self, num_pixels: int, device: torch.device):
        self._keys = torch.full((num_pixels,), _EMPTY, dtype=torch.int64, device=device)

    def draw(
        self,
        pixel: Int[Tensor, "*fragment"],
        depth: Float[Tensor, "*fragment"],
        point: Int[Tensor, "*#fragment"],
    ) -> None:
        """Add fragments. Those of depth infinity change nothing."""
        keys = depth.contiguous().view(torch.int32).to(torch.int64)
        keys.bitwise_left_shift_(_INDEX_BITS).bitwise_or_(point)
        self._keys.scatter_reduce_(0, pixel.reshape(-1), keys.reshape(-1), "amin")

    def points(self, missing: int) -> Int[Tensor, " pixel"]:
        """Point seen at each pixel; `missing`, a number above every point, where none is."""
        point = self._keys & (2**_INDEX_BITS - 1)
        return point.masked_fill_(self._keys >= _EMPTY, missing)

    def depth(self) -> Float[Tensor, " pixel"]:
        """Depth of that point; 0 where none is."""
        depth = (self._keys >> _INDEX_BITS).to(torch.int32).view(torch.float32)
        return depth.where(depth < torch.inf, 0.0)


class TwoPassZBuffer:
    """The same with float32 minima only, which is what Apple's MPS has on every version.

    Point numbers are kept as float32 too, which is exact below 2^24 points a frame (4096 x 4096).
    """

    def __init__(self, num_pixels: int, device: torch.device):
        self._depth = torch.full((num_pixels,), torch.inf, device=device)
        self._point = torch.full((num_pixels,), torch.inf, device=device)

    def draw(
        self,
        pixel: Int[Tensor, "*fragment"],
        depth: Float[Tensor, "*fragment"],
        point: Int[Tensor, "*#fragment"],
    ) -> None:
        """Add fragments. Those of depth infinity change nothing."""
        point = point.to(torch.float32).expand(pixel.shape).reshape(-1)
        pixel, depth = pixel.reshape(-1), depth.reshape(-1)
        before = self._depth.clone()
        self._depth.scatter_reduce_(0, pixel, depth, "amin")
        self._point.masked_fill_(self._depth < before, torch.inf)
        nearest = (depth == self._depth[pixel]) & (depth < torch.inf)
        candidates = point.masked_fill(~nearest, torch.inf)
        self._point.scatter_reduce_(0, pixel, candidates, "amin")

    def points(self, missing: int) -> Int[Tensor, " pixel"]:
        """Point seen at each pixel; `missing`, a number above every point, where none is."""
        return self._point.clamp(max=missing).to(torch.int64)

    def depth(self) -> Float[Tensor, " pixel"]:
        """Depth of that point; 0 where none is."""
        return self._depth.where(self._depth < torch.inf, 0.0)


ZBuffer = PackedZBuffer | TwoPassZBuffer


def z_buffer(num_pixels: int, device: torch.device) -> ZBuffer:
    """Return an empty buffer of the kind that the device runs best.

    On two CPU cores a frame of 188 416 points takes the packed one 0.6 ms, two passes 2 ms, and
    sorting by depth 8 ms.
    """
    return (TwoPassZBuffer if device.type == "mps" else PackedZBuffer)(num_pixels, device)
