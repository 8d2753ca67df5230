"""Pictures of any size at a size that the network was trained for, and depth back at their own.

`crop` fills the network's size and cuts what is left over; `pad` shows the whole picture and
continues its border. Nobody's proportions are changed.
"""

import logging
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from ..depth_edges import depth_edges
from ..geometry import pixel_centers
from ..scene import Cameras
from .sizes import Geo4DSize

_log = logging.getLogger(__name__)

Fit = Literal["crop", "pad"]
Resolution = Literal["auto", "source", "network"]
"""Whose pixels a scene has."""

RELEASED_SIZES_HW = ((384, 512), (320, 512), (256, 576), (192, 640))
"""Sizes that the released network was trained at: 4:3, 16:10, 9:4 and 10:3, all landscape."""
_RELEASED_STEP = 64


class FramingError(ValueError):
    """A size that the network cannot take, or an unknown way to get there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How the source's pixels lie in the network's: `network = scale * source + offset`."""

    source_hw: tuple[int, int]
    """Height and width of the source, in pixels."""

    network_hw: tuple[int, int]
    """What the network sees."""

    scaled_hw: tuple[int, int]
    """The source's size in pixels of the network."""

    @property
    def offset_yx(self) -> tuple[int, int]:
        """Where the source's corner lies in the network's picture; negative where it is cut."""
        top, left = (
            (size - scaled) // 2
            for size, scaled in zip(self.network_hw, self.scaled_hw, strict=True)
        )
        return top, left

    @property
    def scale_yx(self) -> tuple[float, float]:
        """Pixels of the network per pixel of the source; differ only by rounding."""
        height, width = (
            scaled / source for scaled, source in zip(self.scaled_hw, self.source_hw, strict=True)
        )
        return height, width

    @property
    def rows(self) -> slice:
        """Rows of the network's picture that show the source rather than its border."""
        return _shown(self.offset_yx[0], self.scaled_hw[0], self.network_hw[0])

    @property
    def columns(self) -> slice:
        """Columns that do."""
        return _shown(self.offset_yx[1], self.scaled_hw[1], self.network_hw[1])

    @property
    def content_hw(self) -> tuple[int, int]:
        """Height and width of the part of the network's picture that shows the source."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def shown_in(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a smaller map of the network's picture that show no border at all."""
        rows, columns = (
            slice(-(-part.start * size // full), part.stop * size // full)
            for part, size, full in zip(
                (self.rows, self.columns), (height, width), self.network_hw, strict=True
            )
        )
        return rows, columns

    def frame(
        self, pictures: UInt8[Tensor, "frame source_height source_width 3"]
    ) -> Float[Tensor, "frame height width 3"]:
        """Bring pictures to the network's size; sRGB in [0, 1]."""
        values = rearrange(pictures, "n h w c -> n c h w").float() / 255
        if self.scaled_hw != self.source_hw:
            values = F.interpolate(
                values, size=self.scaled_hw, mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
        top, left = self.offset_yx
        rows = torch.arange(self.network_hw[0], device=values.device) - top
        columns = torch.arange(self.network_hw[1], device=values.device) - left
        values = values[:, :, rows.clamp(0, self.scaled_hw[0] - 1)]
        values = values[..., columns.clamp(0, self.scaled_hw[1] - 1)]
        return rearrange(values, "n c h w -> n h w c")

    def content_cameras(self, cameras: Cameras) -> Cameras:
        """From cameras of the network's picture to those of the part that shows the source."""
        intrinsics = cameras.intrinsics.clone()
        intrinsics[:, 0, 2] -= self.columns.start
        intrinsics[:, 1, 2] -= self.rows.start
        height, width = self.content_hw
        return replace(cameras, intrinsics=intrinsics, height=height, width=width)

    def source_cameras(self, cameras: Cameras) -> Cameras:
        """From cameras of the network's picture to those of the whole source, in its pixels."""
        (scale_y, scale_x), (top, left) = self.scale_yx, self.offset_yx
        to_source = cameras.intrinsics.new_tensor(
            [[1 / scale_x, 0, -left / scale_x], [0, 1 / scale_y, -top / scale_y], [0, 0, 1]]
        )
        return replace(
            cameras,
            intrinsics=to_source @ cameras.intrinsics,
            height=self.source_hw[0],
            width=self.source_hw[1],
        )

    def source_depth(
        self, depth: Float[Tensor, "height width"], valid: Bool[Tensor, "height width"]
    ) -> tuple[
        Float[Tensor, "source_height source_width"], Bool[Tensor, "source_height source_width"]
    ]:
        """Sample (depth, valid) at the source's pixels; what was cut away is not valid.

        Smooth inside surfaces, nearest at depth edges, so that no point hangs between surfaces.
        """
        sharp = depth_edges(depth[None], valid[None])[0] | ~valid
        log_depth = torch.where(valid, depth, 1.0).log()
        maps = torch.stack([log_depth, valid.to(depth), sharp.to(depth)])
        grid = self._source_grid(depth)
        nearest, smooth = _sampled(maps, grid, "nearest"), _sampled(maps, grid, "bilinear")
        log_depth = torch.where(smooth[2] > 0, nearest[0], smooth[0])
        inside = (grid.abs() <= 1).all(-1)
        return log_depth.exp(), inside & (nearest[1] > 0.5)

    def source_values(
        self, values: Float[Tensor, "height width"]
    ) -> Float[Tensor, "source_height source_width"]:
        """Sample a map of the network's picture at the source's pixels, nearest."""
        return _sampled(values[None], self._source_grid(values), "nearest")[0]

    def _source_grid(self, like: Tensor) -> Float[Tensor, "source_height source_width 2"]:
        """Where the source's pixels lie in the network's picture, whose borders are at -1 and 1."""
        height, width = self.network_hw
        (scale_y, scale_x), (top, left) = self.scale_yx, self.offset_yx
        places = pixel_centers(*self.source_hw, device=like.device, dtype=like.dtype)
        places = places * places.new_tensor([scale_x, scale_y]) + places.new_tensor([left, top])
        return 2 * places / places.new_tensor([width, height]) - 1


def trained_sizes_hw(size: Geo4DSize) -> list[tuple[int, int]]:
    """Sizes that a network is used at, landscape first.

    The released ones, and for smaller networks the same shapes with fewer pixels.
    """
    step = size.pixel_step
    landscape = [
        (h * step // _RELEASED_STEP, w * step // _RELEASED_STEP) for h, w in RELEASED_SIZES_HW
    ]
    return landscape + [(width, height) for height, width in landscape]


def plan_framing(
    source_hw: tuple[int, int],
    size: Geo4DSize,
    *,
    fit: Fit = "crop",
    network_hw: tuple[int, int] | None = None,
) -> Framing:
    """Choose the network's size, the nearest in shape unless one is given, and how to get there.

    Raises:
        FramingError: `fit` is unknown, or the given size is no multiple of what the network needs.
    """
    if fit not in get_args(Fit):
        raise FramingError(f"fit is {fit!r}; expected crop or pad.")
    if network_hw is None:
        network_hw = _nearest_size(source_hw, size)
    step = size.pixel_step
    if min(network_hw) < step or network_hw[0] % step or network_hw[1] % step:
        known = ", ".join(f"{height} x {width}" for height, width in trained_sizes_hw(size))
        raise FramingError(
            f"The network's size is {network_hw[0]} x {network_hw[1]}; expected multiples of "
            f"{step} pixels. It was trained for {known}."
        )
    ratios = [size / source for size, source in zip(network_hw, source_hw, strict=True)]
    scale = max(ratios) if fit == "crop" else min(ratios)
    # As much is cut or added on one side as on the other, so that both have the same middle.
    height, width = (
        max(size + 2 * round((source * scale - size) / 2), 2)
        for source, size in zip(source_hw, network_hw, strict=True)
    )
    return Framing(source_hw=source_hw, network_hw=network_hw, scaled_hw=(height, width))


def _nearest_size(source_hw: tuple[int, int], size: Geo4DSize) -> tuple[int, int]:
    def distance(candidate: tuple[int, int]) -> float:
        ratio = candidate[0] / candidate[1] * source_hw[1] / source_hw[0]
        return round(abs(math.log(ratio)), 9)  # a square is as near to both: landscape comes first

    chosen = min(trained_sizes_hw(size), key=distance)
    _log.info(
        "Pictures of %dx%d (height x width) are seen at %dx%d, the nearest shape of the network.",
        *source_hw,
        *chosen,
    )
    if chosen[0] > chosen[1]:
        _log.info("The network was trained on landscape pictures; this video is a portrait.")
    return chosen


def _sampled(maps: Tensor, grid: Tensor, mode: Literal["nearest", "bilinear"]) -> Tensor:
    sampled = F.grid_sample(
        maps[None], grid[None], mode, padding_mode="border", align_corners=False
    )
    return sampled[0]


def _shown(offset: int, scaled: int, size: int) -> slice:
    return slice(max(offset, 0), min(offset + scaled, size))
