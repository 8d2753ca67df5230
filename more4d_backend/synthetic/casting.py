"""Casting rays into the synthetic world at some frames: what is met, how far away, what colour.

Axes: frame, surface (the objects, then the sky), ray (a pixel or a point).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..devices.triton_support import triton_runs
from ..geometry import transform_points
from .surfaces import Shape, Surfaces, intersect, leave_sphere, shade

CAST = "The synthetic world is cast"
"""For the log, where triton does not run."""
_CPU_BUDGET, _GPU_BUDGET = 2**19, 2**27
"""Rays times surfaces at a time: what stays in a CPU's cache (measured: 19), or fills a GPU."""


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
        if self._fused(directions):
            from . import triton_kernels as synthetic_triton

            surfaces = self.surfaces.shapes
            return synthetic_triton.cast(surfaces, self.to_unit, self.centers, directions)
        t = directions.new_empty(directions.shape[:2])
        surface = torch.empty(t.shape, dtype=torch.int64, device=t.device)
        for now in self._chunks(directions):
            t[now], surface[now] = self._cast(now[0], directions[now])
        return t, surface

    def colors(
        self,
        directions: Float[Tensor, "frame ray 3"],
        t: Float[Tensor, "frame ray"],
        surface: Int[Tensor, "frame ray"],
    ) -> Float[Tensor, "frame ray 3"]:
        """Color that rays find, which have met these surfaces there."""
        if self._fused(directions):
            from . import triton_kernels as synthetic_triton

            return synthetic_triton.colors(
                self.surfaces, self.to_unit, self.centers, directions, t, surface
            )
        rgb = torch.empty_like(directions)
        for now in self._chunks(directions):
            rgb[now] = self._color(now[0], directions[now], t[now], surface[now])
        return rgb

    def _fused(self, directions: Tensor) -> bool:
        """Whether the fused kernels can be used; they know neither float64 nor an endless sky."""
        single = directions.is_cuda and directions.dtype == torch.float32
        return single and not self.endless_sky and triton_runs(CAST, directions.device)

    def _chunks(self, directions: Tensor) -> list[tuple[slice, slice]]:
        """Split into some frames and some rays of each at a time."""
        num_frames, num_rays = directions.shape[:2]
        budget = _CPU_BUDGET if directions.device.type == "cpu" else _GPU_BUDGET
        budget //= self.to_unit.shape[1]
        rays = max(1, min(num_rays, budget))
        frames = max(1, budget // rays)
        return [
            (slice(f, f + frames), slice(r, r + rays))
            for f in range(0, num_frames, frames)
            for r in range(0, num_rays, rays)
        ]

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
