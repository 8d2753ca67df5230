"""Casting rays into the synthetic world at some frames: what is met, how far away, what colour.

Axes: frame, surface (the objects, then the sky), ray (a pixel or a point).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .geometry import transform_points
from .synthetic_surfaces import Shape, Surfaces, intersect, leave_sphere, shade


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCaster:
    """A world and its cameras' positions at some times, on one device."""

    shapes: tuple[Shape, ...]
    """Of the objects, without the sky."""

    surfaces: Surfaces
    """Textures of the objects and the sky."""

    to_unit: Float[Tensor, "frame surface 4 4"]
    """World to unit-primitive coordinates; the sky is a unit sphere."""

    centers: Float[Tensor, "frame 3"]
    """Where each frame's rays start, world."""

    endless_sky: bool
    """The sky is at infinity."""

    def cast(
        self, directions: Float[Tensor, "frame ray 3"]
    ) -> tuple[Float[Tensor, "frame ray"], Int[Tensor, "frame ray"]]:
        """Multiple of its direction at which each ray meets a surface, and that surface."""
        parts = [self._cast(now, directions[now]) for now in self._chunks(directions)]
        t, surface = zip(*parts, strict=True)
        return torch.cat(t), torch.cat(surface)

    def colors(self, directions: Float[Tensor, "frame ray 3"]) -> Float[Tensor, "frame ray 3"]:
        """Color that each ray finds."""
        parts = []
        for now in self._chunks(directions):
            t, surface = self._cast(now, directions[now])
            parts.append(self._color(now, directions[now], t, surface))
        return torch.cat(parts)

    def _chunks(self, directions: Tensor) -> list[slice]:
        """A few frames at a time: small enough for a CPU's cache, large enough for a GPU."""
        budget = 2**27 if directions.is_cuda else 2**22
        step = max(1, budget // (directions.shape[1] * self.to_unit.shape[1]))
        return [slice(i, i + step) for i in range(0, len(directions), step)]

    def _cast(self, now: slice, directions: Tensor) -> tuple[Tensor, Tensor]:
        centers, to_unit = self.centers[now, None], self.to_unit[now]
        rays = directions.transpose(1, 2)[:, None]  # frame 1 3 ray: components are contiguous
        hits: list[Tensor] = []
        order: list[int] = []
        for shape in sorted(set(self.shapes)):
            numbers = [i for i, other in enumerate(self.shapes) if other == shape]
            own = to_unit[:, numbers]
            origin = transform_points(centers, own)[:, :, None]
            hits.append(intersect(shape, origin, (own[..., :3, :3] @ rays).transpose(2, 3)))
            order += numbers
        sky = to_unit[:, -1]
        t = directions.new_full(directions.shape[:2], torch.inf)
        surface = torch.full(t.shape, len(self.shapes), device=t.device)
        if hits:
            t, nearest = torch.cat(hits, dim=1).min(dim=1)
            surface = surface.where(t.isinf(), torch.tensor(order, device=t.device)[nearest])
        if not self.endless_sky:
            origin = transform_points(centers, sky[:, None])
            dome = leave_sphere(origin, directions @ sky[:, :3, :3].transpose(1, 2))
            t = torch.where(t.isinf(), dome, t)
        return t, surface

    def _color(self, now: slice, directions: Tensor, t: Tensor, surface: Tensor) -> Tensor:
        to_unit = self.to_unit[now]
        frame = torch.arange(len(t), device=t.device)[:, None]
        points = self.centers[now, None] + directions * t[..., None]
        points = transform_points(points, to_unit[frame, surface])
        if self.endless_sky:
            toward = directions @ to_unit[:, -1, :3, :3].transpose(1, 2)
            toward = torch.nn.functional.normalize(toward, dim=-1)
            points = torch.where(t.isinf()[..., None], toward, points)
        return shade(self.surfaces, surface, points)
