"""A picture and its depth at a model's size, without changing anybody's proportions.

`crop` fills the model's size and cuts what is left over; `pad` shows the whole picture and fills
the rest with its border. Either way the intrinsics follow, so that points keep their place in the
world of the photo's own camera.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor

from ..scene import Cameras
from ..shapes import ShapeError

Fit = Literal["crop", "pad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedImage:
    """A picture at the model's size."""

    image: Float[Tensor, "height width 3"]
    """sRGB in [0, 1]."""

    depth: Float[Tensor, "height width"]
    """Of the nearest pixel of the source, never mixed across edges."""

    camera: Cameras
    """That sees exactly this picture, border included."""

    rows: slice
    """Rows that show the picture rather than its border."""

    columns: slice
    """Columns that do."""

    @property
    def content_camera(self) -> Cameras:
        """The photo's camera, for the pixels that show the picture."""
        intrinsics = self.camera.intrinsics.clone()
        intrinsics[:, 0, 2] -= self.columns.start
        intrinsics[:, 1, 2] -= self.rows.start
        return Cameras(
            world_to_camera=self.camera.world_to_camera,
            intrinsics=intrinsics,
            height=self.rows.stop - self.rows.start,
            width=self.columns.stop - self.columns.start,
        )


def fit_to_size(
    image: Float[Tensor, "source_height source_width 3"],
    depth: Float[Tensor, "source_height source_width"],
    camera: Cameras,
    size_hw: tuple[int, int],
    fit: Fit = "crop",
) -> FittedImage:
    """Bring a picture, its depth and its camera to `size_hw` by `crop` or `pad`.

    Raises:
        ShapeError: image, depth and camera differ in size, or `fit` is unknown.
    """
    source_hw = (image.shape[0], image.shape[1])
    if tuple(depth.shape) != source_hw or (camera.height, camera.width) != source_hw:
        raise ShapeError(
            f"The image is {source_hw[0]}x{source_hw[1]}, its depth {depth.shape[0]}x"
            f"{depth.shape[1]} and its camera's image {camera.height}x{camera.width}; "
            "expected the same size."
        )
    if fit not in ("crop", "pad"):
        raise ShapeError(f"fit is {fit!r}; expected crop or pad.")
    ratios = [size / source for size, source in zip(size_hw, source_hw, strict=True)]
    scale = max(ratios) if fit == "crop" else min(ratios)
    scaled_hw = tuple(max(1, round(source * scale)) for source in source_hw)
    resized = camera.resized(*scaled_hw)
    # Where the scaled picture's first row and column come to lie; negative where it is cut.
    top, left = ((size - scaled) // 2 for size, scaled in zip(size_hw, scaled_hw, strict=True))
    intrinsics = resized.intrinsics.clone()
    intrinsics[:, 0, 2] += left
    intrinsics[:, 1, 2] += top
    return FittedImage(
        image=_placed(_resized_colors(image, scaled_hw), size_hw, top, left),
        depth=_placed(_resized_depth(depth, scaled_hw)[..., None], size_hw, top, left)[..., 0],
        camera=Cameras(
            world_to_camera=camera.world_to_camera,
            intrinsics=intrinsics,
            height=size_hw[0],
            width=size_hw[1],
        ),
        rows=slice(max(top, 0), min(top + scaled_hw[0], size_hw[0])),
        columns=slice(max(left, 0), min(left + scaled_hw[1], size_hw[1])),
    )


def extended_to_multiple(
    video: Shaped[Tensor, "frame height width *channel"], multiple: int
) -> Shaped[Tensor, "frame larger_height larger_width *channel"]:
    """Repeat a video's last row and last column until its size is a multiple of a number."""
    rows, columns = (
        torch.arange(-(-size // multiple) * multiple, device=video.device).clamp(max=size - 1)
        for size in video.shape[1:3]
    )
    return video[:, rows][:, :, columns]


def _resized_colors(image: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    if tuple(image.shape[:2]) == size_hw:
        return image
    pixels = rearrange(image, "h w c -> 1 c h w")
    pixels = torch.nn.functional.interpolate(
        pixels, size=size_hw, mode="bicubic", antialias=True, align_corners=False
    )
    return rearrange(pixels.clamp(0, 1), "1 c h w -> h w c")


def _resized_depth(depth: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    pixels = torch.nn.functional.interpolate(depth[None, None], size=size_hw, mode="nearest-exact")
    return pixels[0, 0]


def _placed(picture: Tensor, size_hw: tuple[int, int], top: int, left: int) -> Tensor:
    """Cut or continue a picture's border so that its corner lies at (top, left)."""
    rows = torch.arange(size_hw[0], device=picture.device) - top
    columns = torch.arange(size_hw[1], device=picture.device) - left
    rows = rows.clamp(0, picture.shape[0] - 1)
    return picture[rows][:, columns.clamp(0, picture.shape[1] - 1)]
