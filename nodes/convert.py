"""Values of the host to values of the backend, and back: geometry, depth pictures, splats."""

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import Types, io
from jaxtyping import Bool, Float
from torch import Tensor

from ..more4d_backend.depth.lifting import DepthError
from ..more4d_backend.depth.provider import DepthPrediction
from ..more4d_backend.depth.videos import DepthVideo
from ..more4d_backend.geometry import focal_from_fov, intrinsics_from_focal, invert_rigid, rigid
from ..more4d_backend.scene import Cameras, Scene4D
from ..more4d_backend.scene_files.points import GAUSSIAN_OPACITY, frame_gaussians

MoGeGeometry = io.Custom("MOGE_GEOMETRY")
DA3Geometry = io.Custom("DA3_GEOMETRY")

_SKY = 0.5
"""From this probability on, a pixel is sky."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGeometry:
    """What a geometry model of the host says of its pictures."""

    name: str
    """Of the model, for messages."""

    images: Float[Tensor, "frame height width 3"]
    """sRGB in [0, 1]."""

    depth: Float[Tensor, "frame height width"]
    """Camera z, in the model's unit."""

    usable: Bool[Tensor, "frame height width"]
    """False where the model sees sky or is told to say nothing."""

    world_to_camera: Float[Tensor, "frame 4 4"]
    """The world is the camera of frame 0. The identity where the model knows no poses."""

    intrinsics: Float[Tensor, "frame 3 3"] | None
    """Pixels; None where the model does not know them."""

    confidence: Float[Tensor, "frame height width"] | None = None
    """Of any scale; higher is better."""

    def prediction(self, index: int) -> DepthPrediction:
        """Return the depth of one picture.

        Raises:
            DepthError: there is no such picture.
        """
        if not 0 <= index < len(self.depth):
            raise DepthError(
                f"batch_index is {index} and the geometry has {len(self.depth)} pictures; expected "
                f"0 to {len(self.depth) - 1}."
            )
        return DepthPrediction(
            depth=self.depth[index].where(self.usable[index], 0.0),
            intrinsics=None if self.intrinsics is None else self.intrinsics[index],
            provider=self.name,
            is_metric=False,
        )

    def video(self, fov_rad: float | None) -> DepthVideo:
        """Return all pictures as a video; a horizontal field of view replaces the model's own.

        Raises:
            DepthError: neither the model nor the caller knows a field of view.
        """
        frames, height, width = self.depth.shape
        intrinsics = self.intrinsics
        if fov_rad is not None:
            focal_px = torch.full((frames,), focal_from_fov(fov_rad, width))
            intrinsics = intrinsics_from_focal(focal_px, height, width)
        if intrinsics is None:
            raise DepthError(
                f"{self.name} gives depth without a camera here, so its points have no direction. "
                "Set fov_deg, the horizontal field of view (about 55 degrees for a phone), or run "
                "Depth Anything 3 in multiview mode, which estimates the cameras."
            )
        cameras = Cameras(
            world_to_camera=self.world_to_camera, intrinsics=intrinsics, height=height, width=width
        )
        return DepthVideo(
            images=self.images,
            depth=self.depth,
            usable=self.usable,
            cameras=cameras,
            confidence=self.confidence,
        )


def host_geometry(geometry: dict[str, Any]) -> HostGeometry:
    """Read a MOGE_GEOMETRY or a DA3_GEOMETRY; only the latter says in which mode it was made."""
    return _from_da3(geometry) if "mode" in geometry else _from_moge(geometry)


def _from_moge(geometry: dict[str, Any]) -> HostGeometry:
    if "intrinsics" not in geometry or "depth" not in geometry:
        raise DepthError(
            "This MoGe geometry has no camera: it is a panorama, which no pinhole camera sees. Use "
            "Run MoGe Inference on an ordinary picture."
        )
    depth = geometry["depth"].float().cpu()
    frames, height, width = depth.shape
    # MoGe's intrinsics are in units of the picture's width and height.
    scale = torch.tensor([width, height, 1.0])[:, None]
    return HostGeometry(
        name="MoGe",
        images=geometry["image"].float().cpu(),
        depth=depth,
        usable=geometry["mask"].cpu() if "mask" in geometry else depth.isfinite(),
        world_to_camera=torch.eye(4).repeat(frames, 1, 1),
        intrinsics=scale * geometry["intrinsics"].float().cpu(),
    )


def _from_da3(geometry: dict[str, Any]) -> HostGeometry:
    depth = geometry["depth"].float().cpu()
    frames, height, width = depth.shape
    usable = torch.ones_like(depth, dtype=torch.bool)
    if "sky" in geometry:
        usable = geometry["sky"].cpu() < _SKY
    confidence = geometry.get("confidence")
    return HostGeometry(
        name="Depth Anything 3",
        images=geometry["image"].float().cpu(),
        depth=depth,
        usable=usable,
        world_to_camera=_da3_poses(geometry, frames),
        intrinsics=_da3_intrinsics(geometry, height, width),
        confidence=None if confidence is None else confidence.float().cpu(),
    )


def _da3_poses(geometry: dict[str, Any], frames: int) -> Float[Tensor, "frame 4 4"]:
    if "extrinsics" not in geometry:
        return torch.eye(4).repeat(frames, 1, 1)
    poses = geometry["extrinsics"][0].double().cpu()
    if not poses.isfinite().all():
        raise DepthError(
            "Depth Anything 3 could not estimate the cameras: its poses are not finite. Try the "
            "other pose_method, or mode mono with a field of view."
        )
    poses = rigid(poses[:, :3, :3], poses[:, :3, 3])
    return (poses @ invert_rigid(poses[:1])).float()


def _da3_intrinsics(
    geometry: dict[str, Any], height: int, width: int
) -> Float[Tensor, "frame 3 3"] | None:
    """In pixels of the pictures. The host gives them in pixels of the network's input.

    The size of that is not told, but the principal point is in its middle.
    """
    if "intrinsics" not in geometry:
        return None
    intrinsics = geometry["intrinsics"][0].float().cpu()
    size = 2 * intrinsics[:, :2, 2].median(0).values
    if not (size > 1).all():  # the identity, where the host has no estimate
        return None
    scale = torch.tensor([width, height]) / size
    focal_px = scale * intrinsics[:, [0, 1], [0, 1]]
    pixels = torch.zeros_like(intrinsics)
    pixels[:, 0, 0], pixels[:, 1, 1] = focal_px.unbind(-1)
    pixels[:, 0, 2], pixels[:, 1, 2], pixels[:, 2, 2] = width / 2, height / 2, 1.0
    return pixels


def grey_image(
    values: Float[Tensor, "frame height width"],
) -> Float[Tensor, "frame height width 3"]:
    """IMAGE of grey values, without copying them."""
    return values[..., None].expand(-1, -1, -1, 3)


def one_picture(image: Tensor, name: str) -> Float[Tensor, "height width 3"]:
    """Return the one picture of an IMAGE.

    Raises:
        ValueError: there are several, it is no colour picture, or has NaN in it.
    """
    if image.shape[0] != 1:
        raise ValueError(
            f"The {name} input has {image.shape[0]} pictures; expected one. Choose one with Get "
            "Image From Batch. For a video, use Scene From Geometry (More4D)."
        )
    picture = image[0, ..., :3].float().cpu()
    if picture.shape[-1] != 3 or not picture.isfinite().all():
        raise ValueError(
            f"The {name} input has {picture.shape[-1]} channels, or pixels that are NaN or "
            "infinite; expected red, green and blue from 0 to 1. Look at it with Preview Image, "
            "and repair what comes before it."
        )
    return picture


def host_splat(scene: Scene4D, frame: int) -> Types.SPLAT:
    """Return one frame as the host's splats, whose axes are ours (+y down, +z forward)."""
    gaussians = frame_gaussians(scene, frame)
    return Types.SPLAT(
        positions=gaussians.positions[None].float(),
        scales=gaussians.sigma[None].float(),
        rotations=gaussians.quaternion_wxyz[None].float(),
        opacities=torch.full((1, len(gaussians.positions), 1), GAUSSIAN_OPACITY),
        sh=gaussians.harmonics[None, :, None].float(),
    )
