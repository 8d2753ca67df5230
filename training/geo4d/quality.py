"""What Geo4D networks get right on clips whose geometry is known, window by window.

The whole path, alignment included, is measured by `evaluate`; this is for trainers, in seconds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean

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


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowErrors:
    """Of one window, or the mean over several."""

    rotation_rpe_deg: float
    """Error of frame-to-frame rotations."""

    still_rotation_rpe_deg: float
    """The same of a camera that stands still."""

    center: float
    """Error of the cameras' centres after a similarity, over their spread."""

    abs_rel: float
    """Mean relative error of depth."""

    within: float
    """Share of depth within 1.25."""

    constant_within: float
    """The same of the best constant depth."""

    @classmethod
    def mean(cls, errors: Sequence["WindowErrors"]) -> "WindowErrors":
        """Return the mean of each."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: fmean(getattr(e, name) for e in errors) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowQuality:
    """What windows were like, in the mean."""

    num_steps: int | None
    """Denoising steps; None: true latents, decoded."""

    errors: WindowErrors
    """The mean."""

    def line(self) -> str:
        """Tell it."""
        name = "true latents" if self.num_steps is None else counted(self.num_steps, "step")
        e = self.errors
        return (
            f"{name}: rotation RPE {e.rotation_rpe_deg:.2f} deg "
            f"(still camera {e.still_rotation_rpe_deg:.2f}); "
            f"centres off by {e.center:.2f} of their spread; AbsRel {e.abs_rel:.3f}; "
            f"delta<1.25 {e.within:.3f} (constant depth {e.constant_within:.3f})"
        )


def best_num_steps(measured: Iterable[WindowQuality]) -> int:
    """Return the denoising steps with the least error of rotations, of equal ones the fewest."""
    sampled = [
        (q.errors.rotation_rpe_deg, q.num_steps) for q in measured if q.num_steps is not None
    ]
    return min(sampled)[1]


@torch.no_grad()
def measured_quality(
    networks: Geo4DNetworks,
    batches: Iterable[GeometryBatch],
    steps_tried: Sequence[int | None] = (None, *MEASURED_STEPS),
) -> list[WindowQuality]:
    """Measure so many steps of sampling each; None measures the VAE alone, from true latents."""
    errors: dict[int | None, list[WindowErrors]] = {steps: [] for steps in steps_tried}
    for batch in batches:
        batch = replace(batch, depth=batch.depth.float()).to(networks.device)
        video = video_latents(networks.vae, batch.pictures())
        true = geometry_latents(networks.vae, batch.images())
        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
        for steps in steps_tried:
            latents = true
            if steps is not None:
                settings = SamplingSettings(num_steps=steps)
                latents = sample_latents(networks, video, noise, settings=settings)
            errors[steps].extend(_of_batch(networks, batch, latents))
    return [
        WindowQuality(num_steps=steps, errors=WindowErrors.mean(found))
        for steps, found in errors.items()
    ]


def _of_batch(networks: Geo4DNetworks, batch: GeometryBatch, latents: Tensor) -> list[WindowErrors]:
    size_hw = (batch.depth.shape[-2], batch.depth.shape[-1])
    frames = batch.depth.shape[1]
    windows = [Window(start=0, num_frames=frames, length=frames) for _ in range(len(latents))]
    framing = Framing(source_hw=size_hw, network_hw=size_hw, scaled_hw=size_hw)
    errors = []
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
        turn, still = _turn_errors(rays.rotation, cameras[:, :3, :3])
        abs_rel, within, constant = _depth_errors(
            z[valid], offset[valid], batch.depth[number].cpu()[valid]
        )
        errors.append(
            WindowErrors(
                rotation_rpe_deg=turn,
                still_rotation_rpe_deg=still,
                center=_center_error(rays.center, cameras[:, :3, 3]),
                abs_rel=abs_rel,
                within=within,
                constant_within=constant,
            )
        )
    return errors


def _turn_errors(
    rotation: Float[Tensor, "frame 3 3"], truth: Float[Tensor, "frame 3 3"]
) -> tuple[float, float]:
    """Root mean square error of frame-to-frame rotations [degrees], and that of a still camera."""

    def turns(poses: Tensor) -> Tensor:
        return poses[:-1].transpose(1, 2) @ poses[1:]

    def angles_deg(rotations: Tensor) -> Tensor:
        cosine = (rotations.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
        return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))

    def size(errors_deg: Tensor) -> float:
        return float(errors_deg.square().mean().sqrt())

    errors_deg = angles_deg(turns(rotation).transpose(1, 2) @ turns(truth))
    return size(errors_deg), size(angles_deg(turns(truth)))


def _center_error(center: Float[Tensor, "frame 3"], truth: Float[Tensor, "frame 3"]) -> float:
    """Error after a similarity, against the spread about the mean."""
    scale, rotation, translation = align_similarity(center, truth)
    error = scale * center @ rotation.T + translation - truth
    return float((error.square().sum() / (truth - truth.mean(0)).square().sum()).sqrt())


def _depth_errors(
    z: Float[Tensor, " pixel"], offset: Float[Tensor, " pixel"], truth: Float[Tensor, " pixel"]
) -> tuple[float, float, float]:
    """AbsRel and delta<1.25 after scale and shift; delta<1.25 of the best constant."""
    columns = torch.stack([z, offset], dim=-1) / truth[:, None]  # so that relative errors count
    fitted = columns @ torch.linalg.lstsq(columns, torch.ones_like(truth)[:, None]).solution
    ratio = fitted[:, 0].clamp_min(1e-3)
    within = (torch.maximum(ratio, 1 / ratio) < 1.25).float().mean()
    return float((ratio - 1).abs().mean()), float(within), constant_within(truth)
