"""Gaussians through gsplat. The only importer of gsplat."""

import logging
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from ..scene import Cameras
from .gaussians import LOW_PASS_PX2, NEAR, Gaussians
from .settings import RenderError

log = logging.getLogger(__name__)

_FIRST_WITH_BATCHES = (1, 5, 3)


def missing_gsplat(device: torch.device) -> str | None:
    """Why gsplat cannot be used on a device; None if it can."""
    if device.type != "cuda":
        return f"the device is {device.type} and gsplat needs CUDA"
    if find_spec("gsplat") is None:
        return "gsplat is not installed (pip install gsplat)"
    return None


def rasterize(
    gaussians: Gaussians, cameras: Cameras, *, batched: bool = True
) -> tuple[Float[Tensor, "frame height width 4"], Float[Tensor, "frame height width"]]:
    """Composite color and depth front to back. Return their sums weighted by alpha, and alpha.

    Gaussians of a single frame are seen by all the cameras. All frames go in one call where gsplat
    can (1.5.3 and later); `batched=False` makes one call per frame, for comparison.

    Raises:
        RenderError: gsplat cannot be used here; the message says why.
    """
    reason = missing_gsplat(gaussians.means.device)
    if reason is not None:
        raise RenderError(f"Gaussians cannot be rendered with gsplat: {reason}.")
    if len(gaussians.means) == 1 and batched:
        return _one_scene_many_cameras(gaussians, cameras)
    if batched and _gsplat_version() >= _FIRST_WITH_BATCHES:
        return _many_scenes(gaussians, cameras)
    pairs = [
        _one_scene_many_cameras(gaussians.frame(index), cameras.frames([index]))
        for index in range(cameras.num_frames)
    ]
    return torch.cat([picture for picture, _ in pairs]), torch.cat([alpha for _, alpha in pairs])


def _one_scene_many_cameras(gaussians: Gaussians, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Draw Gaussians of one frame: gsplat's own batch of cameras."""
    device = gaussians.means.device
    return _call(
        cameras,
        means=gaussians.means[0],
        covars=gaussians.covariances[0],
        opacities=gaussians.opacities[0],
        colors=gaussians.colors[0],
        viewmats=cameras.world_to_camera.to(device, torch.float32),
        Ks=cameras.intrinsics.to(device, torch.float32),
    )


def _many_scenes(gaussians: Gaussians, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Draw every frame's Gaussians from its camera: gsplat's batch of scenes, a camera each."""
    device = gaussians.means.device
    picture, alpha = _call(
        cameras,
        means=gaussians.means,
        covars=gaussians.covariances,
        opacities=gaussians.opacities,
        colors=gaussians.colors.expand(*gaussians.means.shape[:2], 3),
        viewmats=cameras.world_to_camera.to(device, torch.float32)[:, None],
        Ks=cameras.intrinsics.to(device, torch.float32)[:, None],
    )
    return picture[:, 0], alpha[:, 0]


def _call(cameras: Cameras, **tensors: Tensor) -> tuple[Tensor, Tensor]:
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    picture, alpha, _ = rasterization(
        quats=None,
        scales=None,
        width=cameras.width,
        height=cameras.height,
        near_plane=NEAR,
        eps2d=LOW_PASS_PX2,
        render_mode="RGB+D",
        **tensors,
    )
    return picture, alpha[..., 0]


def _gsplat_version() -> tuple[int, ...]:
    try:
        text = version("gsplat")
    except PackageNotFoundError:  # imported from a source tree, without an installation record
        log.warning(
            "The version of gsplat is unknown; each frame is rendered by a call of its own."
        )
        return (0,)
    numbers = text.split("+")[0].split(".")[:3]
    return tuple(int(n) for n in numbers if n.isdigit())
