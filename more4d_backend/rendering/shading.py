"""Colours and depths of the points that a z-buffer chose, at them or between them."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..scene import Cameras
from .footprint import LocalMap
from .settings import RenderOutput
from .view import PointFrames, PointsInView
from .zbuffer import ZBuffer

_SMALLEST_AREA_PX2 = 1e-6
_RIGHT, _LEFT, _BELOW, _ABOVE = 1, 2, 4, 8


class ColorTable:
    """Colours by frame and point, whether points keep their colours over time or not.

    A black row comes before the points of each frame, for pixels where no point is seen.
    """

    def __init__(self, points: PointFrames):
        self._table = torch.nn.functional.pad(points.colors, (0, 0, 1, 0)).view(-1, 3)
        self._rows_per_frame = points.num_points + 1 if len(points.colors) > 1 else 0

    def at_number(self, number: Int[Tensor, "frame pixel"]) -> Float[Tensor, "frame pixel 3"]:
        """Colour of one point per pixel, given 1 + point; black where that is 0."""
        return self._look_up(self._table, number)

    def at_point(self, point: Int[Tensor, "frame pixel"]) -> Float[Tensor, "frame pixel 3"]:
        """Colour of one point per pixel."""
        return self._look_up(self._table[1:], point)

    def _look_up(
        self, table: Float[Tensor, "row 3"], index: Int[Tensor, "frame pixel"]
    ) -> Float[Tensor, "frame pixel 3"]:
        if self._rows_per_frame:
            frame = torch.arange(len(index), device=index.device)[:, None]
            index = index + frame * self._rows_per_frame
        # Much faster than table[index] on a CPU, and takes int32 as it is.
        return table.index_select(0, index.reshape(-1).contiguous()).view(*index.shape, 3)


def at_points(buffer: ZBuffer, points: PointFrames, cameras: Cameras) -> RenderOutput:
    """Colour and depth of the winner itself, at every pixel."""
    size = (cameras.num_frames, cameras.height, cameras.width)
    rgb = ColorTable(points).at_number(buffer.numbers().view(size[0], -1))
    depth = buffer.depth().view(size)
    # Depth is above 0 where a point is seen, so its sign is what alpha has to be.
    return RenderOutput(rgb=rgb.view(*size, 3), depth=depth, alpha=depth.sign())


def between_points(
    buffer: ZBuffer,
    points: PointFrames,
    view: PointsInView,
    local_map: LocalMap,
    cameras: Cameras,
) -> RenderOutput:
    """Colour and depth at pixel centres, bilinear between the winner and its joined neighbours."""
    assert points.grid_hw is not None
    grid_width = points.grid_hw[1]
    frames, num_points = view.depth.shape
    winner = buffer.points(missing=num_points).view(frames, -1)
    covered = winner < num_points
    winner.clamp_(max=num_points - 1)
    to_right, to_down = _place_on_grid(winner, view, local_map, cameras)
    joined = _joined_sides(local_map, grid_width)
    beside, share_x = _neighbor(winner, to_right, joined, (_RIGHT, _LEFT), 1)
    below, share_y = _neighbor(winner, to_down, joined, (_BELOW, _ABOVE), grid_width)
    diagonal, _ = _neighbor(below, to_right, joined, (_RIGHT, _LEFT), 1)
    share_x, rest_x = share_x.mul_(covered), (1 - share_x).mul_(covered)
    colors = ColorTable(points)
    size = (frames, cameras.height, cameras.width)
    rgb = torch.zeros(frames, winner.shape[1], 3, device=winner.device)
    depth = torch.zeros(frames, winner.shape[1], device=winner.device)
    for point, weight in (
        (winner, rest_x * (1 - share_y)),
        (beside, share_x * (1 - share_y)),
        (below, rest_x * share_y),
        (diagonal, share_x * share_y),
    ):
        rgb.addcmul_(colors.at_point(point), weight[..., None])
        depth.addcmul_(view.depth.gather(1, point), weight)
    rgb.clamp_(max=1)  # the four shares may add up to a rounding more than 1
    return RenderOutput(
        rgb=rgb.view(*size, 3), depth=depth.view(size), alpha=covered.to(rgb.dtype).view(size)
    )


def _place_on_grid(
    winner: Int[Tensor, "frame pixel"],
    view: PointsInView,
    local_map: LocalMap,
    cameras: Cameras,
) -> tuple[Float[Tensor, "frame pixel"], Float[Tensor, "frame pixel"]]:
    """Grid steps (right, down) from the winner to the pixel's centre, at most one each way.

    0 where the map has no inverse: the winner has no neighbours, or is seen edge-on.
    """
    right_x, right_y = local_map.right_x.gather(1, winner), local_map.right_y.gather(1, winner)
    down_x, down_y = local_map.down_x.gather(1, winner), local_map.down_y.gather(1, winner)
    pixel = torch.arange(winner.shape[1], device=winner.device)
    dx = (pixel % cameras.width + 0.5) - view.x.gather(1, winner)
    dy = (pixel // cameras.width + 0.5) - view.y.gather(1, winner)
    area = right_x * down_y - right_y * down_x
    inverse = (2 / area).masked_fill_(area.abs() < _SMALLEST_AREA_PX2, 0.0)  # of two steps each
    to_right = (dx * down_y).sub_(dy * down_x).mul_(inverse).clamp_(-1, 1)
    to_down = (right_x * dy).sub_(right_y * dx).mul_(inverse).clamp_(-1, 1)
    return to_right, to_down


def _joined_sides(local_map: LocalMap, grid_width: int) -> UInt8[Tensor, "frame point"]:
    """Which of its four neighbours each point is joined to, as bits."""
    right, down = local_map.right.to(torch.uint8), local_map.down.to(torch.uint8)
    joined = right * _RIGHT + down * _BELOW
    joined[:, 1:] += right[:, :-1] * _LEFT
    joined[:, grid_width:] += down[:, :-grid_width] * _ABOVE
    return joined


def _neighbor(
    point: Int[Tensor, "frame pixel"],
    toward: Float[Tensor, "frame pixel"],
    joined: UInt8[Tensor, "frame point"],
    sides: tuple[int, int],
    offset: int,
) -> tuple[Int[Tensor, "frame pixel"], Float[Tensor, "frame pixel"]]:
    """Neighbour on the side of `toward`, and its share; if not joined, the point itself and 0."""
    ahead = toward >= 0
    own = joined.gather(1, point)
    is_joined = torch.where(ahead, own & sides[0], own & sides[1]) > 0
    step = torch.where(ahead, offset, -offset).mul_(is_joined)
    return point + step, toward.abs() * is_joined
