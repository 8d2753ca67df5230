"""Where the depth of a picture comes from: the options that several commands share."""

import io
import logging
import math
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..depth import (
    DepthError,
    DepthFile,
    DepthPrediction,
    DepthProvider,
    TinyDepth,
    lift_prediction,
    provider_class,
)
from ..files import FileFormatError, decoding, read_limited
from ..generation import DepthSource
from ..scene import Scene4D
from ..tiny import embedded_file

LOGGER = logging.getLogger(__name__)

_FILE_SUFFIXES = (".png", ".exr", ".npy", ".tif", ".tiff")
_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DepthOptions:
    """Depth and field of view of a picture."""

    depth: str | None = None
    """A depth file (16-bit PNG, EXR, npy), or a network: depth-pro, depth-anything-v2-metric,
    unidepth, tiny (embedded, procedural scenes only)."""

    depth_unit_m: float = 0.001
    """Metres per step of a depth file that holds whole numbers (0.001 = millimetres)."""

    depth_weights: str | None = None
    """Folder of the depth network's weights. Default: the local Hugging Face cache."""

    allow_download: bool = False
    """Download the depth network's weights where they are not in the cache."""

    max_depth: float | None = None
    """Leave out points farther than this, in scene units."""

    drop_edges: bool = False
    """Leave out the pixels on both sides of depth edges, where depth is least sure."""

    intrinsics: Path | None = None
    """A 3x3 matrix in pixels of the picture, .npy or text. Default: what the network predicts."""

    fov_deg: float | None = None
    """Horizontal field of view of the picture, where no intrinsics are known."""

    def warn_without_effect(self, scene: Path) -> None:
        """Log which options were set, though a scene has its points already."""
        for field in fields(self):
            if getattr(self, field.name) != field.default:
                option = field.name.replace("_", "-")
                LOGGER.warning("--%s has no effect: %s is a scene, not a photo.", option, scene)

    def lift(self, image_path: Path, *, device: str) -> Scene4D:
        """Read a picture, find its depth, and lift it to a scene of one frame."""
        from ..files.images import load_image

        image = load_image(image_path)
        prediction = self.load(device).predict(image)
        return lift_prediction(
            image,
            prediction,
            fov_rad=None if self.fov_deg is None else math.radians(self.fov_deg),
            max_depth=self.max_depth,
            drop_edges=self.drop_edges,
        )

    def load(self, device: str) -> DepthProvider:
        """Load the provider; intrinsics that the user gave will replace predicted ones."""
        if self.intrinsics is not None and self.fov_deg is not None:
            raise DepthError("Give --intrinsics or --fov-deg, not both.")
        given = None if self.intrinsics is None else load_intrinsics(self.intrinsics)
        return _ProviderOnDevice(provider=self.provider(device), device=device, intrinsics=given)

    def source(self, device: str) -> DepthSource:
        """Return what `generate` needs to know of where depth comes from."""
        files = [Path(self.depth)] if self.depth is not None and self._is_file else []
        if self.intrinsics is not None:
            files.append(self.intrinsics)
        if self.depth == TinyDepth.name:
            files.append(Path(self.depth_weights or embedded_file("depth")))
        return DepthSource(
            load=partial(self.load, device),
            name=f"{self.depth} {self.depth_weights or ''} {self.depth_unit_m}",
            files=tuple(files),
            fov_rad=None if self.fov_deg is None else math.radians(self.fov_deg),
        )

    @property
    def _is_file(self) -> bool:
        path = Path(self.depth or "")
        return path.suffix.lower() in _FILE_SUFFIXES or path.is_file()

    def provider(self, device: str) -> DepthProvider:
        """Return the file or the network that was asked for."""
        if self.depth is None:
            raise DepthError(
                "A photo needs depth: --depth FILE (16-bit PNG, EXR, npy), or --depth with the "
                "name of a network, such as depth-pro, or tiny, which needs no download."
            )
        if self._is_file:
            return DepthFile(path=self.depth, unit_m=self.depth_unit_m)
        return provider_class(self.depth).load(
            self.depth_weights, device=device, download=self.allow_download
        )


@dataclass(frozen=True, kw_only=True)
class _ProviderOnDevice:
    """A provider that is shown the picture where its network is."""

    provider: DepthProvider
    device: str
    intrinsics: Float[Tensor, "3 3"] | None
    """Replace predicted ones."""

    def predict(self, image: Float[Tensor, "height width 3"]) -> DepthPrediction:
        """See `DepthProvider`."""
        prediction = self.provider.predict(image.to(self.device))
        if self.intrinsics is None:
            return prediction
        return replace(prediction, intrinsics=self.intrinsics)


def load_intrinsics(path: Path) -> Float[Tensor, "3 3"]:
    """Read a 3x3 matrix from .npy or from text with three rows of three numbers.

    Raises:
        FileFormatError: not such a file.
    """
    data = read_limited(path, _LIMIT_BYTES, "a 3x3 matrix as .npy or text")
    with decoding(path, "a 3x3 matrix"):
        if data.startswith(b"\x93NUMPY"):
            matrix = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            matrix = np.loadtxt(io.StringIO(data.decode("utf-8")), ndmin=2)
        values = torch.from_numpy(matrix.astype(np.float32, casting="same_kind"))
    if values.shape != (3, 3):
        raise FileFormatError(
            f"{path} holds numbers of shape {tuple(values.shape)}; expected a 3x3 matrix in pixels."
        )
    return values
