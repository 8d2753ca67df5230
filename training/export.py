"""Trained weights as one file that the pipelines and, under original names, ComfyUI load."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from more4d_backend.files import replacing
from more4d_backend.weights.conversion import to_original
from more4d_backend.weights.files import stored
from more4d_backend.weights.kinds import WeightKind

_log = logging.getLogger(__name__)


def export_weights(
    tensors: Mapping[str, Tensor],
    kind: WeightKind,
    path: Path,
    *,
    dtype: torch.dtype,
    profile: str | None = None,
) -> None:
    """Write a network's state (library names) under its original names.

    The metadata says what the file is and with which profile the weights were trained.

    Raises:
        OutputError: the place cannot be written.
    """
    from safetensors.torch import save_file

    original = to_original(kind, stored(tensors))
    values = {
        name: tensor.read().to("cpu", dtype).contiguous().clone()
        for name, tensor in original.items()
    }
    metadata = {"format": "pt", "more4d_kind": kind.value}
    if profile is not None:
        metadata["more4d_profile"] = profile
    with replacing(path) as temporary:
        save_file(values, temporary, metadata=metadata)
    _log.info("Wrote %s: %s", path, kind.label)
