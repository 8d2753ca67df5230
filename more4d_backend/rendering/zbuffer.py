"""The nearest point at every pixel of every frame.

Fragments are (pixel, depth, point) triples in any order; `pixel` counts through all frames. Where
depths are equal the lowest point wins, so the result does not depend on order or device.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_EMPTY = 0x7F800000 << 32  # the bits of infinity: no fragment of that depth is below it


class PackedZBuffer:
    """One atomic minimum per fragment, on keys of depth (high 32 bits) and 1 + point (low 32).

    The bits of a positive float32, read as an integer, are ordered as the float is.
    """

    def __init__(self, num_pixels: int, device: torch.device):
        self.keys = torch.full((num_pixels,), _EMPTY, dtype=torch.int64, device=device)
        """The lowest key at each pixel."""

    def draw(
        self,
        pixel: Int[Tensor, "*fragment"],
        depth: Float[Tensor, "*fragment"],
        point: Int[Tensor, "*#fragment"],
    ) -> None:
        """Add fragments. Those of depth infinity change nothing."""
        keys = _packed(depth, point)
        self.keys.scatter_reduce_(0, pixel.reshape(-1), keys.reshape(-1), "amin")

    def draw_frames(
        self,
        pixel: Int[Tensor, "frame fragment"],
        depth: Float[Tensor, "frame fragment"],
        point: Int[Tensor, "fragment"],
    ) -> None:
        """Add as many fragments to every frame; here `pixel` counts anew in each frame."""
        keys = _packed(depth, point)
        self.keys.view(len(pixel), -1).scatter_reduce_(1, pixel, keys, "amin")

    def numbers(self) -> Int[Tensor, " pixel"]:
        """1 + the point seen at each pixel; 0 where none is."""
        return self.keys.view(torch.int32)[0::2]

    def points(self, missing: int) -> Int[Tensor, " pixel"]:
        """Point seen at each pixel; `missing`, a number above every point, where none is."""
        return _points(self.numbers(), missing)

    def depth(self) -> Float[Tensor, " pixel"]:
        """Depth of that point; 0 where none is."""
        return self.keys.view(torch.float32)[1::2].nan_to_num(posinf=0.0)


class TwoPassZBuffer:
    """The same with float32 minima only, which is what Apple's MPS has on every version.

    Point numbers are kept as float32 too, which is exact for less than 2^24 points a frame
    (4096 x 4096).
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

    def draw_frames(
        self,
        pixel: Int[Tensor, "frame fragment"],
        depth: Float[Tensor, "frame fragment"],
        point: Int[Tensor, "fragment"],
    ) -> None:
        """Add as many fragments to every frame; here `pixel` counts anew in each frame."""
        first = torch.arange(len(pixel), device=pixel.device) * (len(self._depth) // len(pixel))
        self.draw(pixel + first[:, None], depth, point)

    def numbers(self) -> Int[Tensor, " pixel"]:
        """1 + the point seen at each pixel; 0 where none is."""
        return (self._point + 1).nan_to_num_(posinf=0.0).to(torch.int32)

    def points(self, missing: int) -> Int[Tensor, " pixel"]:
        """Point seen at each pixel; `missing`, a number above every point, where none is."""
        return _points(self.numbers(), missing)

    def depth(self) -> Float[Tensor, " pixel"]:
        """Depth of that point; 0 where none is."""
        return self._depth.nan_to_num(posinf=0.0)


ZBuffer = PackedZBuffer | TwoPassZBuffer


def z_buffer(num_pixels: int, device: torch.device) -> ZBuffer:
    """Return an empty buffer of the kind that the device runs best.

    On two CPU cores a frame of 188 416 points takes the packed one 0.6 ms, two passes 2 ms, and
    sorting by depth 8 ms.
    """
    return (TwoPassZBuffer if device.type == "mps" else PackedZBuffer)(num_pixels, device)


def _packed(
    depth: Float[Tensor, "*fragment"], point: Int[Tensor, "*#fragment"]
) -> Int[Tensor, "*fragment"]:
    """Keys in one pass: a complex number is a pair of float32, the first one in the low half.

    All the machines that torch runs on are little-endian. Nothing is computed with the floats that
    the point numbers are taken for, so their bits stay.
    """
    number = (point + 1).to(torch.int32).view(torch.float32)
    return torch.complex(number, depth).view(torch.int64)


def _points(number: Int[Tensor, " pixel"], missing: int) -> Int[Tensor, " pixel"]:
    return (number.to(torch.int64) - 1).masked_fill_(number == 0, missing)
