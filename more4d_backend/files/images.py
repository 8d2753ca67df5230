"""Pictures from and to files. Colours are sRGB in [0, 1]; embedded colour profiles are ignored."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from . import FileFormatError, OutputError, decoding, read_limited, replacing

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 2**26
"""Largest picture that is read, 67 megapixels: a few bytes can claim any size."""

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
_EXPECTED = "a PNG, JPEG, WebP, TIFF, BMP or PPM picture"
_LIMIT_BYTES = 2**30


def load_image(
    path: str | os.PathLike[str], *, background: float = 1.0
) -> Float[Tensor, "height width 3"]:
    """Read a PNG, JPEG, WebP, TIFF, BMP or PPM picture, turned upright by its EXIF orientation.

    Grey, palette, 16-bit and CMYK pictures become RGB (16-bit colour is read at 8 bits, 16-bit
    grey at 16). Where a picture is transparent, the grey level `background` shows through.

    Raises:
        FileFormatError: not such a picture, damaged, or larger than `MAX_PIXELS`.
    """
    from PIL import ImageOps

    image = open_picture(path)
    with decoding(path, "a picture"):
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            return _from_sixteen_bit(image, path)
        if image.mode == "F":
            raise FileFormatError(
                f"{path} holds floating-point values, as depth maps do; expected colours."
            )
        if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
            return torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
        rgba = torch.from_numpy(np.array(image.convert("RGBA"))).float() / 255
        return rgba[..., :3] * rgba[..., 3:] + background * (1 - rgba[..., 3:])


def save_image(path: str | os.PathLike[str], image: Float[Tensor, "height width 3"]) -> None:
    """Write an 8-bit picture; the suffix chooses PNG, JPEG, WebP, TIFF or BMP.

    Raises:
        OutputError: the suffix is not one of these, or the place cannot be written.
    """
    from PIL import Image

    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"):
        raise OutputError(f"{path} ends in {suffix!r}; expected .png, .jpg, .webp, .tif or .bmp.")
    options: dict[str, Any] = {}
    if suffix in (".jpg", ".jpeg", ".webp"):
        options["quality"] = 95
    with replacing(path) as temporary:
        Image.fromarray(to_bytes(image).numpy()).save(temporary, **options)


def to_bytes(values: Float[Tensor, "*axes"]) -> Tensor:
    """Round values in [0, 1] to uint8 on the CPU; what lies outside is clamped, NaN becomes 0."""
    return (values.detach().nan_to_num(0.0).clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def open_picture(path: str | os.PathLike[str]) -> "Image":
    """Open a picture without decoding it, by a short list of formats that run no programs.

    Raises:
        FileFormatError: not such a picture, or larger than `MAX_PIXELS`.
    """
    return open_picture_bytes(read_limited(path, _LIMIT_BYTES, _EXPECTED), str(path))


def open_picture_bytes(data: bytes, source: str) -> "Image":
    """Open a picture in memory. `source` is what errors call it. See `open_picture`."""
    from PIL import Image, UnidentifiedImageError

    with decoding(source, _EXPECTED):
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:  # its text names an object in memory
            raise ValueError(f"it begins with the bytes {data[:8].hex(' ')}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise FileFormatError(
            f"{source} says that it has {width}x{height} pixels; expected at most {MAX_PIXELS}. "
            "Make it smaller first."
        )
    return image


def _from_sixteen_bit(
    image: "Image", path: str | os.PathLike[str]
) -> Float[Tensor, "height width 3"]:
    grey = torch.from_numpy(np.array(image).astype(np.int32))
    if grey.min() < 0 or grey.max() > 65535:
        raise FileFormatError(
            f"{path} holds integers from {grey.min()} to {grey.max()}; expected a picture of at "
            "most 16 bits."
        )
    return (grey.float() / 65535)[..., None].expand(*grey.shape, 3).contiguous()
