"""Weights: loaded strictly into networks, checked, converted.

A file's kind is recognised from its names, so a file in the wrong place is refused with both kinds
named. What a network needs and what a file has must agree name by name and shape by shape.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .conversion import open_model, to_library
from .files import StoredTensor, WeightsError, first_five
from .kinds import WeightKind, expect

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """How the names and shapes of a file differ from those of a network."""

    missing: tuple[str, ...]
    """In the network, not in the file."""

    unexpected: tuple[str, ...]
    """In the file, not in the network."""

    wrong_shape: tuple[str, ...]
    """In both; each with both shapes in words."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        found = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.wrong_shape,
        }
        return " ".join(f"{len(n)} {what}: {first_five(n)}." for what, n in found.items() if n)


def load_weights(path: str | os.PathLike[str], *kinds: WeightKind) -> dict[str, StoredTensor]:
    """Open a file that must be one of `kinds`, under the names of the library class.

    The released motion VAE's folder of three files is taken as one file.

    Raises:
        WeightsError: damaged, unsafe, or of another kind; the message names both kinds.
    """
    file = open_model(path)
    found = expect(file, *kinds)
    _log.info("%s is %s, %d tensors.", path, found.kind.label, len(file.tensors))
    return to_library(found, file.tensors)


def load_into(
    module: nn.Module,
    tensors: Mapping[str, StoredTensor],
    *,
    source: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    float32: Iterable[str] = (),
    allowed_missing: Iterable[str] = (),
) -> None:
    """Fill a network, one tensor at a time, so that never more than one is in memory twice.

    Parameters on the meta device are created on `device` with `dtype` (None: as stored), and
    buffers that the network computed, such as rotation angles, are brought to them. Parameters
    that exist keep their device and dtype. `float32` lists parts of names that stay in float32.
    `allowed_missing` lists names, or beginnings that end in a dot, that the file may lack.

    Raises:
        WeightsError: names or shapes differ, with the first five of each; nothing is changed then.
    """
    allowed = tuple(allowed_missing)
    slots = _slots(module)
    if differences := compare(slots, tensors, allowed):
        raise WeightsError(f"{source} does not fit {type(module).__name__}. {differences}")
    keep = tuple(float32)
    if any(slot.is_meta for slot in slots.values()):
        _bring_buffers(module, device)
        slots = _slots(module)
    with torch.no_grad():
        for names, slot in _grouped(slots):
            given = next((name for name in names if name in tensors), None)
            if given is None:
                continue
            if slot.is_meta:
                wanted = torch.float32 if _mentions(given, keep) else dtype
                _create(module, names, slot, tensors[given], wanted, device)
            else:
                slot.copy_(tensors[given].read())
    _refuse_empty(module, source)


def compare(
    slots: Mapping[str, Tensor],
    tensors: Mapping[str, StoredTensor],
    allowed_missing: tuple[str, ...] = (),
) -> Differences:
    """Compare a network's state dict with a file. Tied names count as one."""
    missing = []
    for names, _ in _grouped(slots):
        if not any(name in tensors for name in names) and not _allowed(names[0], allowed_missing):
            missing.append(names[0])
    wrong = [
        f"{name} {tuple(tensors[name].shape)} (needed {tuple(slot.shape)})"
        for name, slot in slots.items()
        if name in tensors and tuple(slot.shape) != tuple(tensors[name].shape)
    ]
    return Differences(
        missing=tuple(missing),
        unexpected=tuple(name for name in tensors if name not in slots),
        wrong_shape=tuple(wrong),
    )


def _slots(module: nn.Module) -> dict[str, Tensor]:
    return module.state_dict(keep_vars=True)


def _grouped(slots: Mapping[str, Tensor]) -> list[tuple[list[str], Tensor]]:
    """Names that share one tensor (tied weights), together."""
    groups: dict[int, tuple[list[str], Tensor]] = {}
    for name, slot in slots.items():
        groups.setdefault(id(slot), ([], slot))[0].append(name)
    return list(groups.values())


def _create(
    module: nn.Module,
    names: list[str],
    slot: Tensor,
    tensor: StoredTensor,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    value = tensor.read()
    value = value.to(device, dtype if value.is_floating_point() else None)
    made = nn.Parameter(value, slot.requires_grad) if isinstance(slot, nn.Parameter) else value
    for name in names:
        owner_name, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner_name), leaf, made)


def _bring_buffers(module: nn.Module, device: torch.device | str) -> None:
    """Bring what was computed while the network was built to where its parameters will be."""
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and not buffer.is_meta:
                part._buffers[name] = buffer.to(device)


def _refuse_empty(module: nn.Module, source: str) -> None:
    held = [*module.named_parameters(), *module.named_buffers()]
    if empty := [name for name, tensor in held if tensor.is_meta]:
        raise WeightsError(
            f"After loading {source}, {len(empty)} tensors of {type(module).__name__} have no "
            f"values: {first_five(empty)}. Build the network with accelerate.init_empty_weights(), "
            "which keeps computed buffers, and give values to what a file may lack."
        )


def _allowed(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == a or (a.endswith(".") and name.startswith(a)) for a in allowed)


def _mentions(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name.split(".") for part in parts)
