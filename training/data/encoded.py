"""Encoded samples: what the frozen networks make of a data set, computed once and kept.

    python -m training.encode strag own --data.train D/train --data.encoded D/encoded/strag
    python -m training.train_strag own --data.encoded D/encoded/strag

A folder holds files of some hundred samples each. A sample is a row of every tensor (float16, or
bytes for pictures) beside its name and caption. Captions stay words, because text is dropped, and
may be learned, as training goes on. What is random in encoding, the VAE's own noise, is left out.
"""

import json
import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from more4d_backend.files import FileFormatError, replacing

from .samples import SampleError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """Some samples, stacked."""

    names: tuple[str, ...]
    """One per sample."""

    captions: tuple[str, ...]
    """One per sample."""

    tensors: Mapping[str, Tensor]
    """By name; the first axis is the samples'."""

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.names)

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor as float32; bytes as 0 to 1."""
        tensor = self.tensors[name]
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()

    def compact(self) -> "EncodedBatch":
        """Return the batch as it is stored: pictures as bytes, the rest as float16.

        Raises:
            SampleError: a value is not finite, or too large for it.
        """
        small = {
            name: (t * 255).round().to(torch.uint8) if name == "picture" else t.half()
            for name, t in self.tensors.items()
        }
        wrong = [
            name for name, t in small.items() if t.is_floating_point() and not t.isfinite().all()
        ]
        if wrong:
            raise SampleError(
                f"{', '.join(wrong)} of {', '.join(self.names)} is not finite as float16; the "
                "encoders or the samples are damaged."
            )
        return replace(self, tensors=small)

    def to(self, device: torch.device | str) -> "EncodedBatch":
        """Return a copy on another device; from pinned memory this does not block."""
        moved = {name: t.to(device, non_blocking=True) for name, t in self.tensors.items()}
        return replace(self, tensors=moved)


class EncodedWriter:
    """Writes encoded samples to a folder, file after file."""

    def __init__(
        self, folder: Path, about: Mapping[str, Any], *, samples_per_file: int, rank: int = 0
    ) -> None:
        """Begin a folder, or a rank's part of it; what trains on it must agree with `about`."""
        self._folder, self._about, self._wanted = folder, dict(about), samples_per_file
        self._prefix = f"encoded-{rank:03d}"
        self._batches: list[EncodedBatch] = []
        self._num_files = 0
        self.num_samples = 0

    def add(self, batch: EncodedBatch) -> None:
        """Take samples; write a file when there are enough.

        Raises:
            OutputError: the place cannot be written.
        """
        self._batches.append(batch.to("cpu"))
        self.num_samples += batch.num_samples
        if sum(b.num_samples for b in self._batches) >= self._wanted:
            self.flush()

    def flush(self) -> None:
        """Write what is left."""
        from safetensors.torch import save_file

        if not self._batches:
            return
        tensors = {
            name: torch.cat([b.tensors[name] for b in self._batches]).contiguous()
            for name in self._batches[0].tensors
        }
        metadata = {
            "about": json.dumps(self._about),
            "names": json.dumps([n for b in self._batches for n in b.names]),
            "captions": json.dumps([c for b in self._batches for c in b.captions]),
        }
        path = self._folder / f"{self._prefix}-{self._num_files:05d}.safetensors"
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        self._num_files += 1
        self._batches.clear()


class EncodedSamples:
    """A folder of encoded samples, read from its files or kept on a device."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        """Open a folder; with a device, everything is kept there.

        Raises:
            FileFormatError: there are no files, or they are not of one kind.
        """
        from safetensors import SafetensorError, safe_open

        paths = sorted(folder.glob("encoded-*.safetensors"))
        if not paths:
            raise FileFormatError(
                f"{folder} holds no encoded samples (encoded-*.safetensors). Make them with: "
                "python -m training.encode"
            )
        self.folder = folder
        self._files, self._names, self._captions, counts = [], [], [], []
        self.about: dict[str, Any] = {}
        for path in paths:
            try:
                file = safe_open(path, framework="pt")
                metadata = file.metadata() or {}
                about, names = json.loads(metadata["about"]), json.loads(metadata["names"])
                captions = json.loads(metadata["captions"])
            except (SafetensorError, KeyError, json.JSONDecodeError) as e:
                raise FileFormatError(f"{path} is not a file of encoded samples: {e!r}.") from e
            if about != (self.about or about):
                raise FileFormatError(f"{path} was encoded otherwise than {paths[0]}: {about}.")
            self.about = about
            self._files.append(file)
            self._names += names
            self._captions += captions
            counts.append(len(names))
        self._ends = list(accumulate(counts))
        self._kept: dict[str, Tensor] | None = None
        if device is not None:
            self._kept = {
                name: torch.cat([f.get_tensor(name).to(device) for f in self._files])
                for name in self._files[0].keys()
            }
            size = sum(t.nbytes for t in self._kept.values())
            _log.info("%d encoded samples on %s: %.1f GB", len(self), device, size / 1e9)

    def __len__(self) -> int:
        return self._ends[-1]

    def check(self, about: Mapping[str, Any]) -> None:
        """Refuse samples that were encoded for something else.

        Raises:
            FileFormatError: names what differs.
        """
        wrong = {k: (self.about.get(k), v) for k, v in about.items() if self.about.get(k) != v}
        if wrong:
            told = "; ".join(f"{k} is {is_!r}, expected {v!r}" for k, (is_, v) in wrong.items())
            raise FileFormatError(f"{self.folder} was encoded for another training: {told}.")

    def batch(self, numbers: Sequence[int]) -> EncodedBatch:
        """Return samples by number, where they are kept (in main memory when in files)."""
        if self._kept is not None:
            device = next(iter(self._kept.values())).device
            rows = torch.tensor(numbers).to(device, non_blocking=True)
            tensors = {name: kept[rows] for name, kept in self._kept.items()}
        else:
            tensors = {
                name: torch.cat([self._row(name, number) for number in numbers])
                for name in self._files[0].keys()
            }
        return EncodedBatch(
            names=tuple(self._names[n] for n in numbers),
            captions=tuple(self._captions[n] for n in numbers),
            tensors=tensors,
        )

    def batches(self, size: int) -> Iterator[EncodedBatch]:
        """Yield all samples in their order."""
        for first in range(0, len(self), size):
            yield self.batch(range(first, min(first + size, len(self))))

    def _row(self, name: str, number: int) -> Tensor:
        file = bisect_right(self._ends, number)
        row = number - (self._ends[file - 1] if file else 0)
        return self._files[file].get_slice(name)[row : row + 1]
