"""Trained weights as one file that the pipelines and, under original names, ComfyUI load."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from more4d_backend.files import replacing
from more4d_backend.vism.lora import PREFIX
from more4d_backend.weights.conversion import to_original
from more4d_backend.weights.files import stored
from more4d_backend.weights.keys import WAN_TRANSFORMER, renamer
from more4d_backend.weights.kinds import WeightKind

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What becomes of an objective's tensors when they are written for use."""

    kind: str
    """A `WeightKind`'s value; that of a LoRA writes the adapters alone."""

    prefix: str
    """Of the tensors' names in the objective."""

    file: str
    """Name of the file."""

    dtype: str
    """Of the file, such as `bfloat16`."""

    profile: str | None = None
    """Name of the profile that the weights are trained with, for 4D-STraG and its VAE."""

    lora_alpha: float | None = None
    """Of a LoRA."""

    given: str | None = None
    """Name of a file beside the checkpoints: tensors that the objective does not hold."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of the file, besides its kind and profile."""

    @property
    def writes_frozen(self) -> bool:
        """Whether what is not trained is written too."""
        return self.kind != WeightKind.VISM_LORA.value

    def write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write whole tensors, by their names in the objective.

        Raises:
            OutputError: the place cannot be written.
        """
        inside = {
            name.removeprefix(self.prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(self.prefix)
        }
        dtype: torch.dtype = getattr(torch, self.dtype)
        if self.writes_frozen:
            kind = WeightKind(self.kind)
            export_weights(
                inside, kind, path, dtype=dtype, profile=self.profile, metadata=self.metadata
            )
        else:
            assert self.lora_alpha is not None
            _export_lora(inside, self.lora_alpha, path, dtype)


def _export_lora(
    tensors: Mapping[str, Tensor], alpha: float, path: Path, dtype: torch.dtype
) -> None:
    from safetensors.torch import save_file

    original_name = renamer(WAN_TRANSFORMER, inverse=True)
    parts = {".lora_A.vism.weight": "lora_down.weight", ".lora_B.vism.weight": "lora_up.weight"}
    values = {}
    for name, tensor in tensors.items():
        for ending, part in parts.items():
            original = original_name(name.removesuffix(ending)) if name.endswith(ending) else None
            if original is not None:
                released = PREFIX + original.replace(".", "_")
                values[f"{released}.{part}"] = tensor.to("cpu", dtype).contiguous()
                values[f"{released}.alpha"] = torch.tensor(alpha)
    with replacing(path) as temporary:
        save_file(values, temporary, metadata={"format": "pt"})
    _log.info("Wrote %s: %s", path, WeightKind.VISM_LORA.label)


def export_weights(
    tensors: Mapping[str, Tensor],
    kind: WeightKind,
    path: Path,
    *,
    dtype: torch.dtype,
    profile: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network's state (library names) under its original names.

    The header says what the file is, with which profile the weights were trained, and `metadata`.

    Raises:
        OutputError: the place cannot be written.
    """
    from safetensors.torch import save_file

    original = to_original(kind, stored(tensors))
    values = {
        name: tensor.read().to("cpu", dtype).contiguous().clone()
        for name, tensor in original.items()
    }
    header = dict(metadata or {}) | {"format": "pt", "more4d_kind": kind.value}
    if profile is not None:
        header["more4d_profile"] = profile
    with replacing(path) as temporary:
        save_file(values, temporary, metadata=header)
    _log.info("Wrote %s: %s", path, kind.label)
