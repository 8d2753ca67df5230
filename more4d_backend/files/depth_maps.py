"""Depth maps from and to files. Depth is camera z; 0 means missing."""

import io
import math
import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from . import FileFormatError, decoding, read_limited, replacing, replacing_folder
from .exr import MAGIC as EXR_MAGIC
from .exr import decode_exr, encode_exr
from .images import MAX_PIXELS, open_picture

_LIMIT_BYTES = 2**30
_EXPECTED = "a depth map (16-bit PNG, EXR or npy)"


def load_depth(
    path: str | os.PathLike[str], *, unit_m: float = 0.001
) -> Float[Tensor, "height width"]:
    """Read a depth map; the first bytes, not the suffix, say which format it is.

    Floating-point values, in EXR (channel Z, V, depth or Y) and npy (height, width), come back
    as they are stored. Integers, in 16-bit PNG and npy, are multiplied by `unit_m`, metres per
    step: 0.001 for millimetres, 1/5000 for TUM. 0 (missing) stays 0.

    Raises:
        FileFormatError: not such a file, damaged, or not one depth per pixel.
    """
    if not unit_m > 0:
        raise ValueError(f"unit_m is {unit_m}; expected metres per step, such as 0.001.")
    data = read_limited(path, _LIMIT_BYTES, _EXPECTED)
    if data.startswith(b"\x89PNG"):
        return torch.from_numpy(_decode_png16(path)).float() * unit_m
    with decoding(path, _EXPECTED):
        if data.startswith(EXR_MAGIC):
            return torch.from_numpy(decode_exr(data, MAX_PIXELS))
        if data.startswith(b"\x93NUMPY"):
            return torch.from_numpy(_decode_npy(data, unit_m))
    raise FileFormatError(
        f"{path} begins with the bytes {data[:8].hex(' ')}; expected {_EXPECTED}."
    )


def save_depth_png16(
    path: str | os.PathLike[str],
    depth: Float[Tensor, "height width"],
    *,
    unit_m: float = 0.001,
) -> None:
    """Write depth in steps of `unit_m` metres, rounded: half a step is the largest error.

    Depth that is not finite or not positive is written as 0, missing.

    Raises:
        ValueError: a depth needs more than 65535 steps.
    """
    steps = _to_steps(depth, unit_m)
    with replacing(path) as temporary:
        _write_png16(temporary, steps)


def save_depth_exr(path: str | os.PathLike[str], depth: Float[Tensor, "height width"]) -> None:
    """Write depth as one float32 channel Y, bit for bit, NaN and infinity included."""
    with replacing(path) as temporary:
        temporary.write_bytes(encode_exr(depth.detach().float().cpu().numpy()))


def save_depth_frames(
    folder: str | os.PathLike[str],
    depth: Float[Tensor, "frame height width"],
    *,
    suffix: str = ".exr",
    unit_m: float = 0.001,
) -> None:
    """Write `depth_0000.exr` (or 16-bit `.png`), ... into a folder that appears when all is done.

    Raises:
        ValueError: the suffix is neither, or a depth does not fit into a PNG.
    """
    if suffix not in (".exr", ".png"):
        raise ValueError(f"suffix is {suffix!r}; expected '.exr' or '.png'.")
    with replacing_folder(folder, f"depth_*{suffix}") as temporary:
        for number, frame in enumerate(depth):
            path = temporary / f"depth_{number:04d}{suffix}"
            if suffix == ".exr":
                save_depth_exr(path, frame)
            else:
                save_depth_png16(path, frame, unit_m=unit_m)


def _to_steps(depth: Float[Tensor, "height width"], unit_m: float) -> np.ndarray:
    if not unit_m > 0:
        raise ValueError(f"unit_m is {unit_m}; expected metres per step, such as 0.001.")
    depth = depth.detach().cpu().double()
    steps = torch.where(depth.isfinite() & (depth > 0), depth / unit_m, 0).round()
    if steps.max() > 65535:
        raise ValueError(
            f"Depth reaches {depth[depth.isfinite()].max():.6g}; 16-bit PNG in steps of {unit_m:g} "
            f"ends at {65535 * unit_m:g}. Use a larger unit_m, or EXR."
        )
    return steps.numpy().astype(np.uint16)


def _write_png16(path: Path, steps: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(steps).save(path, format="PNG")


def _decode_png16(path: str | os.PathLike[str]) -> np.ndarray:
    image = open_picture(path)
    if not image.mode.startswith("I"):
        raise FileFormatError(
            f"{path} is a PNG with mode {image.mode}; expected 16-bit grey. Is it a coloured "
            "preview of a depth map?"
        )
    with decoding(path, "a 16-bit PNG"):
        return np.array(image).astype(np.int32)


def _decode_npy(data: bytes, unit_m: float) -> np.ndarray:
    stream = io.BytesIO(data)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(stream)]
    shape, _, dtype = read_header(stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"it holds {dtype}; expected numbers")
    if math.prod(shape) * dtype.itemsize > len(data):
        raise ValueError(f"it claims the shape {shape}, which its {len(data)} bytes cannot hold")
    values = np.load(io.BytesIO(data), allow_pickle=False)
    while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"it has the shape {shape}; expected (height, width)")
    return values.astype(np.float32) * (1.0 if dtype.kind == "f" else unit_m)
