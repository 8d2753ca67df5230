"""What `weights check` and `weights convert` do."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..files import OutputError, replacing
from . import Differences, compare
from .conversion import TABLES, open_model, to_library, to_original
from .files import StoredTensor, WeightsError, first_five
from .keys import renamer
from .kinds import Names, Recognized, WeightKind, expect, recognize
from .model_loading import build_empty, network_names

_log = logging.getLogger(__name__)

_LIBRARY_NAMES_BY_DEFAULT = (WeightKind.UMT5, WeightKind.CLIP_VISION)
"""Everyone who reads these as safetensors expects transformers' names; the rest: original."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReport:
    """What a file is, and what it lacks."""

    path: Path
    """As given."""

    found: Recognized
    """Kind, names, prefix."""

    num_tensors: int
    """Stored under names."""

    num_parameters: int
    """Stored values."""

    dtypes: Mapping[str, int]
    """dtype -> number of tensors."""

    network: str | None
    """Class that it was compared with; None where there is none for its kind."""

    differences: Differences
    """From that network, in the file's own names where they have one; empty without a network."""

    first_names: tuple[str, ...]
    """The first five, for files that are not known."""

    @property
    def is_usable(self) -> bool:
        """Whether it is a weight file that is known, and whole as far as that can be told."""
        if self.found.kind in (WeightKind.UNKNOWN, WeightKind.SCENE):
            return False
        return not self.differences

    def lines(self) -> list[str]:
        """Return the report for a terminal."""
        dtypes = ", ".join(f"{count} {name}" for name, count in self.dtypes.items())
        result = [
            f"{self.path}: {self.found.kind.label}",
            f"  {self.num_tensors} tensors, {self.num_parameters / 1e6:.1f} M values ({dtypes})",
        ]
        if self.found.kind is WeightKind.UNKNOWN:
            return [*result, f"  its names start with {', '.join(self.first_names)}"]
        prefix = f", each after {self.found.prefix!r}" if self.found.prefix else ""
        result.append(f"  {self.found.names} names{prefix}")
        if self.network is None:
            return [*result, "  not compared with a network (none for this kind here)"]
        parts = {
            "missing": self.differences.missing,
            "unexpected": self.differences.unexpected,
            "of another shape": self.differences.wrong_shape,
        }
        for what, names in parts.items():
            if names:
                result.append(f"  {len(names)} {what}: {first_five(names)}")
        verdict = "does NOT fit" if self.differences else "fits"
        return [*result, f"  {verdict} {self.network}"]


def check_file(path: str | os.PathLike[str]) -> WeightsReport:
    """Tell what a weight file is, and compare it with the network that its sizes describe.

    Reads names and shapes only. A folder with the released motion VAE's three parts is one file.

    Raises:
        WeightsError: the file is damaged or unsafe, or contradicts its own kind.
    """
    file = open_model(path)
    found = recognize(file)
    network, differences = None, Differences(missing=(), unexpected=(), wrong_shape=())
    if found.kind is not WeightKind.UNKNOWN:
        with _naming(path):
            network, differences = _compared(found, to_library(found, file.tensors))
    return WeightsReport(
        path=Path(path),
        found=found,
        num_tensors=len(file.tensors),
        num_parameters=file.num_parameters,
        dtypes=Counter(str(t.dtype).removeprefix("torch.") for t in file.tensors.values()),
        network=network,
        differences=differences,
        first_names=tuple(file.tensors)[:5],
    )


def convert_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    names: Names | None = None,
    dtype: torch.dtype | None = None,
) -> WeightsReport:
    """Write a weight file anew: as safetensors, under the names wanted, in the dtype wanted.

    `names` None: transformers' names for UMT5 and CLIP, original names for everything else.
    A folder with `vae`, `encoder_prompt` and `decoder_prompt` becomes one motion-VAE file, one with
    Geo4D's two checkpoints our Geo4D file (in bfloat16 where `dtype` is None). Needs host memory
    for the whole file. Returns the report on the new file.

    Raises:
        WeightsError: the source is not known, damaged, or does not fit its network.
        OutputError: the target is not `.safetensors`, or cannot be written.
    """
    if Path(target).suffix != ".safetensors":
        raise OutputError(f"{target} does not end in .safetensors, the only form written here.")
    if Path(source).resolve() == Path(target).resolve():
        raise OutputError(f"{target} is the source itself. Choose another name.")
    file = open_model(source)
    found = expect(file, *(k for k in WeightKind if k not in _NOT_CONVERTED))
    with _naming(source):
        tensors = to_library(found, file.tensors)
        network, differences = _compared(found, tensors)
    if differences:
        raise WeightsError(f"{source} does not fit {network}. {differences}")
    library = found.kind in _LIBRARY_NAMES_BY_DEFAULT if names is None else names == "diffusers"
    if not library:
        tensors = to_original(found.kind, tensors)
    kind, sizes = found.kind, {}
    if kind is WeightKind.GEO4D_CHECKPOINT:
        from .geo4d_checkpoint import converted

        tensors, sizes = converted(file, tensors)
        kind, dtype = WeightKind.GEO4D, dtype or torch.bfloat16
    metadata = {**file.metadata, **sizes, "format": "pt", "more4d_kind": kind.value}
    with replacing(target) as temporary:
        try:
            save_file(_read(tensors, dtype), temporary, metadata=metadata)
        except (SafetensorError, OSError) as e:
            raise OutputError(f"{target} could not be written: {e}. Is the disk full?") from e
    _log.info("%s: %s, %d tensors.", target, kind.label, len(tensors))
    return check_file(target)


_NOT_CONVERTED = (
    WeightKind.UNKNOWN,
    WeightKind.SCENE,
    WeightKind.OTHER_LORA,
    WeightKind.GEO4D_VAE,  # alone; together with its checkpoint it is converted
)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the file's name before errors that do not know it."""
    try:
        yield
    except WeightsError as e:
        raise WeightsError(f"{path}: {e}") from e


def _compared(
    found: Recognized, tensors: Mapping[str, StoredTensor]
) -> tuple[str | None, Differences]:
    module = build_empty(found.kind, tensors)
    if module is None:
        return None, Differences(missing=(), unexpected=(), wrong_shape=())
    slots = module.state_dict(keep_vars=True)
    differences = compare(slots, network_names(module, found.kind, tensors))
    if found.names == "original" and found.kind in TABLES:
        rename = renamer(TABLES[found.kind], inverse=True)
        differences = Differences(
            missing=tuple(rename(name) or name for name in differences.missing),
            unexpected=differences.unexpected,
            wrong_shape=differences.wrong_shape,
        )
    return type(module).__name__, differences


def _read(tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    result = {}
    for name, tensor in tensors.items():
        value = tensor.read()
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
        # safetensors stores each tensor apart: views of one storage would be refused.
        result[name] = value.contiguous().clone()
    return result
