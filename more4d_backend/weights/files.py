"""Weight files as they lie on disk: names, shapes, dtypes, and tensors read one at a time.

safetensors, torch files (`.pth`, `.pt`, `.bin`, `.ckpt`, `.torch`; never with code in them), and
the sharded form of either. What names mean is known to weights/kinds.py and weights/keys.py.
"""

import hashlib
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import FileFormatError

_log = logging.getLogger(__name__)

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CONTAINERS = ("state_dict", "module", "model", "model_state_dict")
"""Where training frameworks put the weights inside a torch file (Lightning, DeepSpeed, others)."""


class WeightsError(FileFormatError):
    """A weight file that is damaged, unsafe, of the wrong kind, or without what a model needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor that is described now and read when it is needed."""

    shape: tuple[int, ...]
    """As stored."""

    dtype: torch.dtype
    """As stored."""

    read: Callable[[], Tensor]
    """Reads the values, on the CPU. Every call reads anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """The contents of a weight file, or of all shards of one."""

    path: Path
    """What the user named: a file, or the index of a sharded one."""

    tensors: Mapping[str, StoredTensor]
    """By the names in the file."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of a safetensors header."""

    @property
    def num_parameters(self) -> int:
        """Number of stored values."""
        return sum(_count(t.shape) for t in self.tensors.values())


def open_weights(path: str | os.PathLike[str]) -> WeightFile:
    """Read the names and shapes of a weight file. Values are read later, tensor by tensor.

    `path` is a file, the `*.index.json` of a sharded file, or a folder that holds exactly one of
    either. A torch file in zip form is mapped into memory, not copied.

    Raises:
        WeightsError: no such file, damaged or truncated, holds code, or holds no named tensors.
    """
    path = _single_file(Path(path))
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    siblings = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\.\w+)", path.name)
    if siblings and int(siblings[2]) > 1:
        raise WeightsError(
            f"{path} is one of {int(siblings[2])} parts. Give the index "
            f"{siblings[1]}{siblings[3]}.index.json beside it, or the folder."
        )
    if _is_safetensors(path):
        return _open_safetensors(path)
    return _open_torch(path)


def stored(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """Describe tensors that are in memory already."""
    return {
        name: StoredTensor(shape=tuple(t.shape), dtype=t.dtype, read=partial(_itself, t))
        for name, t in tensors.items()
    }


def first_five(names: Iterable[str]) -> str:
    """List at most five names, and say how many more there are."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def file_sha256(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> str:
    """Return the SHA-256 of a file in hexadecimal. `progress` gets (bytes done, bytes in all)."""
    digest = hashlib.sha256()
    total = os.path.getsize(path)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
            if progress is not None:
                progress(stream.tell(), total)
    return digest.hexdigest()


def _single_file(path: Path) -> Path:
    if not path.exists():
        raise WeightsError(f"{path} does not exist. Give a weight file or the folder it is in.")
    if not path.is_dir():
        return path
    suffixes = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".torch")
    files = sorted(p for p in path.iterdir() if p.name.endswith(".index.json"))
    if not files:
        files = sorted(p for p in path.iterdir() if p.suffix in suffixes)
    if not files:
        raise WeightsError(
            f"{path} is a folder without weight files; expected one that ends in "
            f"{', '.join(suffixes)}, the .index.json of a sharded one, or the parts of a released "
            "model: folders vae, encoder_prompt and decoder_prompt (motion VAE), or model.ckpt and "
            "vae.ckpt (Geo4D)."
        )
    if len(files) != 1:
        found = first_five(p.name for p in files)
        raise WeightsError(f"{path} is a folder with {len(files)} weight files: {found}. Name one.")
    return files[0]


def _open_shards(path: Path) -> WeightFile:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise WeightsError(f"{path} is not the index of a sharded weight file: {e}") from e
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightsError(f"{path} names the part {name!r}, which is not beside it.")
        if not (path.parent / name).is_file():
            raise WeightsError(f"{path} needs the part {name}, which is missing beside it.")
        part = path.parent / name
        tensors |= (_open_safetensors(part) if _is_safetensors(part) else _open_torch(part)).tensors
    if lost := sorted(set(weight_map) - set(tensors)):
        raise WeightsError(f"{path} lists tensors that its parts lack: {first_five(lost)}.")
    return WeightFile(path=path, tensors=tensors)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(9)
    return path.suffix == ".safetensors" or start[8:9] == b"{"


def _open_safetensors(path: Path) -> WeightFile:
    _refuse_stand_ins(path)
    try:
        file = safe_open(path, "pt")
        metadata = file.metadata() or {}
        tensors = {name: _described(file, name, path) for name in file.keys()}
    except (SafetensorError, OSError) as e:
        raise WeightsError(
            f"{path} is not a whole safetensors file: {e}. It may be truncated; download it again."
        ) from e
    return WeightFile(path=path, tensors=tensors, metadata=metadata)


def _described(file: Any, name: str, path: Path) -> StoredTensor:
    part = file.get_slice(name)
    code = part.get_dtype()
    if code not in _DTYPES:
        raise WeightsError(f"{path}: {name} has the dtype {code}, which is not known.")
    return StoredTensor(
        shape=tuple(part.get_shape()),
        dtype=_DTYPES[code],
        read=partial(file.get_tensor, name),
    )


def _open_torch(path: Path) -> WeightFile:
    _refuse_stand_ins(path)
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as e:
        named = re.search(r"GLOBAL (\S+)", str(e))
        what = f"it names {named[1]}" if named else f"it begins with the bytes {_start(path)}"
        raise WeightsError(
            f"{path} is no torch file, or holds more than tensors, and is refused: {what}. Nothing "
            "of it was run. Weight files are read as tensors only; get a safetensors version of it."
        ) from e
    except Exception as e:  # torch raises many types for damaged archives
        reason = f"{type(e).__name__}: {e}".rstrip(".")
        raise WeightsError(
            f"{path} cannot be read as a torch file ({reason}); it begins with the bytes "
            f"{_start(path)}. If it is one, it is damaged or truncated; download it again."
        ) from e
    return WeightFile(path=path, tensors=stored(_named_tensors(content, path)))


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}; expected tensors by their names."
        )
    for container in _CONTAINERS:
        inner = content.get(container)
        if isinstance(inner, Mapping) and inner:
            _log.info("%s keeps its weights under %r; the rest is ignored.", path, container)
            content = inner
            break
    strangers = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if strangers or not content:
        held = f"other things: {first_five(strangers)}" if strangers else "nothing"
        raise WeightsError(f"{path} should hold tensors by their names, but holds {held}.")
    return {str(name): tensor for name, tensor in content.items()}


def _start(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(8).hex(" ")


def _refuse_stand_ins(path: Path) -> None:
    """What download tools leave in place of a weight file."""
    with path.open("rb") as stream:
        start = stream.read(200)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull`.")
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page, not a weight file. Download the file itself.")
    if not start:
        raise WeightsError(f"{path} is empty.")


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
