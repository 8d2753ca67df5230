"""What Geo4D networks get right on clips whose geometry is known, window by window.

The whole path, alignment included, is measured by `evaluate`; this is for trainers, in seconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from more4d_backend.evaluation.video_depth import constant_within
from more4d_backend.geo4d.decoding import decode_windows
from more4d_backend.geo4d.framing import Framing
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.ray_maps import cameras_from_rays
from more4d_backend.geo4d.sampling import SamplingSettings, sample_latents
from more4d_backend.geo4d.windows import Window
from more4d_backend.geometry import align_similarity
from more4d_backend.wording import counted

from .clips import GeometryBatch
from .objectives import geometry_latents, video_latents

MEASURED_STEPS = (1, 5)
"""Denoising steps that are tried: networks of few parameters may be better at one step."""

_COLUMNS = (
    "rotation RPE {0:.2f} deg (still camera {1:.2f})",
    "centres off by {2:.2f} of their spread",
    "AbsRel {3:.3f}",
    "delta<1.25 {4:.3f} (constant depth {5:.3f})",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowQuality:
    """What windows were like, in the mean."""

    num_steps: int | None
    """Denoising steps; None: true latents, decoded."""

    columns: tuple[float, ...]
    """As the line names them."""

    @property
    def rotation_rpe_deg(self) -> float:
        """Error of frame-to-frame rotations."""
        return self.columns[0]

    def line(self) -> str:
        """Tell it."""
        name = "true latents" if self.num_steps is None else counted(self.num_steps, "step")
        return f"{name}: " + "; ".join(_COLUMNS).format(*self.columns)


def best_num_steps(measured: Iterable[WindowQuality]) -> int:
    """Return the denoising steps with the least error of rotations, of equal ones the fewest."""
    sampled = [(q.rotation_rpe_deg, q.num_steps) for q in measured if q.num_steps is not None]
    return min(sampled)[1]


@torch.no_grad()
def measured_quality(
    networks: Geo4DNetworks, batches: Iterable[GeometryBatch]
) -> list[WindowQuality]:
    """Measure the VAE alone (true latents), and 1 and 5 steps of sampling."""
    rows: dict[int | None, list[Tensor]] = {None: [], **{steps: [] for steps in MEASURED_STEPS}}
    for batch in batches:
        batch = replace(batch, depth=batch.depth.float()).to(networks.device)
        video = video_latents(networks.vae, batch.pictures())
        true = geometry_latents(networks.vae, batch.images())
        rows[None].append(_of_batch(networks, batch, true))
        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
        for steps in MEASURED_STEPS:
            settings = SamplingSettings(num_steps=steps)
            sampled = sample_latents(networks, video, noise, settings=settings)
            rows[steps].append(_of_batch(networks, batch, sampled))
    return [
        WindowQuality(num_steps=steps, columns=tuple(torch.cat(values).mean(0).tolist()))
        for steps, values in rows.items()
    ]


def _of_batch(
    networks: Geo4DNetworks, batch: GeometryBatch, latents: Tensor
) -> Float[Tensor, "clip column"]:
    size_hw = (batch.depth.shape[-2], batch.depth.shape[-1])
    frames = batch.depth.shape[1]
    windows = [Window(start=0, num_frames=frames, length=frames) for _ in range(len(latents))]
    framing = Framing(source_hw=size_hw, network_hw=size_hw, scaled_hw=size_hw)
    rows = []
    for number, window in enumerate(decode_windows(networks, latents, windows, framing)):
        assert window.rays is not None  # decoded by default
        rays = cameras_from_rays(window.rays.directions.float(), window.rays.moments.float())
        poses = batch.cameras(number).to("cpu").camera_to_world
        cameras = torch.linalg.inv(poses[:1]) @ poses
        # z in each camera. How far the box begins from the first one is not predicted: fitted.
        along_z = rays.rotation[:, :, 2]
        z = torch.einsum("fhwc,fc->fhw", window.points.float(), along_z)
        z = z - (rays.center * along_z).sum(-1)[:, None, None]
        offset = along_z[:, 2, None, None].expand_as(z)
        valid = batch.valid[number].cpu()
        rows.append(
            torch.cat(
                [
                    _turn_errors(rays.rotation, cameras[:, :3, :3]),
                    _center_error(rays.center, cameras[:, :3, 3]),
                    _depth_errors(z[valid], offset[valid], batch.depth[number].cpu()[valid]),
                ]
            )
        )
    return torch.stack(rows)


def _turn_errors(
    rotation: Float[Tensor, "frame 3 3"], truth: Float[Tensor, "frame 3 3"]
) -> Float[Tensor, "2"]:
    """Root mean square error of frame-to-frame rotations; the second of a still camera."""

    def turns(poses: Tensor) -> Tensor:
        return poses[:-1].transpose(1, 2) @ poses[1:]

    def angles_deg(rotations: Tensor) -> Tensor:
        cosine = (rotations.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
        return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))

    errors = angles_deg(turns(rotation).transpose(1, 2) @ turns(truth))
    return torch.stack([errors, angles_deg(turns(truth))]).square().mean(1).sqrt()


def _center_error(
    center: Float[Tensor, "frame 3"], truth: Float[Tensor, "frame 3"]
) -> Float[Tensor, "1"]:
    """Error after a similarity, against the spread about the mean."""
    scale, rotation, translation = align_similarity(center, truth)
    error = scale * center @ rotation.T + translation - truth
    return (error.square().sum() / (truth - truth.mean(0)).square().sum()).sqrt()[None]


def _depth_errors(
    z: Float[Tensor, " pixel"], offset: Float[Tensor, " pixel"], truth: Float[Tensor, " pixel"]
) -> Float[Tensor, "3"]:
    """AbsRel and delta<1.25 after scale and shift; delta<1.25 of the best constant."""
    columns = torch.stack([z, offset], dim=-1) / truth[:, None]  # so that relative errors count
    fitted = columns @ torch.linalg.lstsq(columns, torch.ones_like(truth)[:, None]).solution
    ratio = fitted[:, 0].clamp_min(1e-3)
    within = (torch.maximum(ratio, 1 / ratio) < 1.25).float().mean()
    return torch.stack([(ratio - 1).abs().mean(), within, ratio.new_tensor(constant_within(truth))])
