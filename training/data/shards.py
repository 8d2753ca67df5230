"""Training data on disk: tar files of samples, each a json, a safetensors and one or two mp4.

The layout is in docs/training-shards.md and is WebDataset's, so its tools can read it. Our reader
goes to each sample by its offset instead of streaming whole tars: a sample is megabytes, so a
seek costs nothing, and in return every epoch is one global shuffle, no sample is lost or read
twice for any number of ranks and workers, and the place in the data is a single number.
"""

import io
import json
import logging
import os
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from more4d_backend.files import FileFormatError, replacing
from more4d_backend.scene import Cameras

from .lossless_video import decode_video, encode_video
from .samples import SampleError, SampleObject, SampleSize, TrainingSample, check_sample, fit_sample

FORMAT = "more4d-training-sample"
VERSION = 1

_log = logging.getLogger(__name__)


def write_shard(path: str | os.PathLike[str], samples: Iterable[TrainingSample]) -> int:
    """Write samples to one tar and return their number. Equal samples give equal bytes.

    The tar appears under its name when it is complete.

    Raises:
        SampleError: a sample is unfit, or two have one name; nothing is written.
    """
    names: set[str] = set()
    with replacing(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                sample = replace(sample, motion=sample.motion.half())
                check_sample(sample)
                if sample.name in names:
                    raise SampleError(f"Two samples are named {sample.name}; names are unique.")
                names.add(sample.name)
                for extension, data in _encoded(sample).items():
                    member = tarfile.TarInfo(f"{sample.name}.{extension}")  # no time, no owner
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return len(names)


def _encoded(sample: TrainingSample) -> dict[str, bytes]:
    frames, height, width = sample.size_fhw
    about = {
        "format": FORMAT,
        "version": VERSION,
        "name": sample.name,
        "caption": sample.caption,
        "source": sample.source,
        "fps": sample.fps,
        "frames": frames,
        "height": height,
        "width": width,
        "novel": sample.novel_video is not None,
        "objects": [asdict(thing) for thing in sample.objects],
    }
    tensors = {
        "depth": sample.depth.float(),
        "motion": sample.motion,
        "visibility": torch.from_numpy(np.packbits(sample.visibility.numpy())),
        "world_to_camera": sample.cameras.world_to_camera.float(),
        "intrinsics": sample.cameras.intrinsics.float(),
    }
    if sample.object_index is not None:
        tensors["object_index"] = sample.object_index
    files = {"mp4": encode_video(sample.video, sample.fps)}
    if sample.novel_video is not None and sample.novel_cameras is not None:
        tensors["novel_world_to_camera"] = sample.novel_cameras.world_to_camera.float()
        tensors["novel_intrinsics"] = sample.novel_cameras.intrinsics.float()
        files["novel.mp4"] = encode_video(sample.novel_video, sample.fps)
    packed = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return {"json": json.dumps(about, indent=1).encode(), "safetensors": packed, **files}


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """The json of a sample, checked."""

    name: str
    caption: str
    source: str
    fps: float
    frames: int
    height: int
    width: int
    novel: bool
    objects: list

    @classmethod
    def parsed(cls, data: bytes, where: str) -> "_About":
        try:
            values = json.loads(data)
            kind, version = values.pop("format"), values.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError) as e:
            raise FileFormatError(f"{where} is not the description of a sample: {e!r}") from e
        if kind != FORMAT or version != VERSION:
            raise FileFormatError(
                f"{where} says format {kind!r} version {version!r}; this code reads {FORMAT!r} "
                f"version {VERSION}. Make the shard again, or use the code that wrote it."
            )
        allowed = {f.name: (int, float) if f.type is float else (f.type,) for f in fields(cls)}
        wrong = {k for k, v in values.items() if type(v) not in allowed.get(k, ())}
        if wrong := wrong | (allowed.keys() - values.keys()):
            raise FileFormatError(f"{where} lacks, adds or mistypes {', '.join(sorted(wrong))}.")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """Where a sample lies."""

    shard: Path
    about: _About
    members: dict[str, tuple[int, int]]
    """Extension -> (offset, length) in the tar."""

    @property
    def where(self) -> str:
        return f"sample {self.about.name} of {self.shard}"


def _entries(shard: Path) -> list[_Entry]:
    """List the samples of a tar; reads the headers and the json files only."""
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if not member.isreg():
                    raise FileFormatError(f"{shard} holds {member.name}, which is no plain file.")
                groups.setdefault(key, {})[extension] = (member.offset_data, member.size)
            _check_end(file, shard)
            return [_entry(shard, file, key, members) for key, members in groups.items()]
    except (tarfile.TarError, EOFError) as e:
        raise FileFormatError(f"{shard} is truncated or not a tar: {e}") from e


def _check_end(file, shard: Path) -> None:
    # tarfile accepts an archive that stops between two members; its end is two zero blocks.
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1024))
    if size < 1024 or any(file.read(1024)):
        raise FileFormatError(f"{shard} is truncated: the end mark of the tar is missing.")


def _entry(shard: Path, file, key: str, members: dict[str, tuple[int, int]]) -> _Entry:
    where = f"sample {key} of {shard}"
    if "json" not in members:
        raise FileFormatError(f"{where} has no {key}.json.")
    offset, length = members["json"]
    file.seek(offset)
    about = _About.parsed(file.read(length), f"{key}.json of {shard}")
    expected = {"json", "safetensors", "mp4"} | ({"novel.mp4"} if about.novel else set())
    if members.keys() != expected:
        raise FileFormatError(
            f"{where} has the files {sorted(members)}; expected {sorted(expected)}."
        )
    if about.name != key:
        raise FileFormatError(f"{where} calls itself {about.name!r}.")
    if not about.caption.strip():
        raise SampleError(f"{where} has no caption. Remove the sample or caption it.")
    return _Entry(shard=shard, about=about, members=members)


def _read(entry: _Entry) -> TrainingSample:
    with entry.shard.open("rb") as file:
        data = {}
        for extension, (offset, length) in entry.members.items():
            file.seek(offset)
            data[extension] = file.read(length)
    about, where = entry.about, entry.where
    try:
        tensors = load(data["safetensors"])
    except SafetensorError as e:
        raise FileFormatError(f"The tensors of {where} are damaged: {e}") from e
    video = decode_video(data["mp4"], where)
    novel_video = decode_video(data["novel.mp4"], where) if about.novel else None
    try:
        sample = TrainingSample(
            name=about.name,
            caption=about.caption,
            source=about.source,
            fps=about.fps,
            video=video,
            depth=tensors["depth"],
            motion=tensors["motion"],
            visibility=_unpacked(tensors["visibility"], about),
            cameras=_cameras(tensors, "", about),
            novel_video=novel_video,
            novel_cameras=_cameras(tensors, "novel_", about) if about.novel else None,
            objects=_objects(about),
            object_index=tensors["object_index"] if about.objects else None,
        )
    except (KeyError, ValueError) as e:
        raise FileFormatError(f"The tensors of {where} are not what they must be: {e}") from e
    check_sample(sample)
    return sample


def _objects(about: _About) -> tuple[SampleObject, ...]:
    try:
        return tuple(
            SampleObject(**{**thing, "direction": tuple(map(float, thing["direction"]))})
            for thing in about.objects
        )
    except TypeError as e:
        raise ValueError(f"objects is {about.objects!r}: {e}") from e


def _unpacked(bits: Tensor, about: _About) -> Tensor:
    count = about.frames * about.height * about.width
    if bits.shape != ((count + 7) // 8,):  # unpackbits would fill up what is missing
        raise ValueError(f"visibility has shape {tuple(bits.shape)} for {count} bits.")
    seen = np.unpackbits(bits.numpy(), count=count).reshape(about.frames, about.height, -1)
    return torch.from_numpy(seen).bool()


def _cameras(tensors: dict[str, Tensor], prefix: str, about: _About) -> Cameras:
    return Cameras(
        world_to_camera=tensors[f"{prefix}world_to_camera"],
        intrinsics=tensors[f"{prefix}intrinsics"],
        height=about.height,
        width=about.width,
    )


class ShardDataset(torch.utils.data.Dataset[TrainingSample]):
    """All samples of a folder of shards, by number."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        size: SampleSize | None = None,
        max_samples: int | None = None,
    ) -> None:
        """List the samples of every `*.tar` in `folder`; bring each to `size` when it is read.

        `max_samples` takes only the first ones, in the order of names.

        Raises:
            FileFormatError: no shard, or one that is truncated, foreign or of another version.
            SampleError: a caption is missing, or a sample is smaller than `size`.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileFormatError(
                f"The data folder {folder} is not there. Name a folder of shards (*.tar), or say "
                "`procedural` for samples that are made as they are needed."
            )
        # A name that starts with a point is a shard still being written.
        shards = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
        with ThreadPoolExecutor() as pool:
            entries = [entry for part in pool.map(_entries, shards) for entry in part]
        self._entries = entries[:max_samples]
        if not self._entries:
            raise FileFormatError(
                f"The data folder {folder} holds {len(shards)} shards (*.tar) and no sample. "
                "Make some with `python -m training.procedural` or `python -m training.trajscene`."
            )
        self.size = size
        if size is not None:
            self._check_sizes(size)
        _log.info("%s: %d samples in %d shards", folder, len(self), len(shards))

    def _check_sizes(self, size: SampleSize) -> None:
        for entry in self._entries:
            about = entry.about
            if about.frames < size.num_frames or (
                about.height < size.height or about.width < size.width
            ):
                raise SampleError(
                    f"{entry.where} has {about.frames} frames of {about.height}x{about.width}; "
                    f"expected at least {size.num_frames} of {size.height}x{size.width}."
                )

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> TrainingSample:
        sample = _read(self._entries[index])
        return sample if self.size is None else fit_sample(sample, self.size)

    @property
    def has_novel_views(self) -> bool:
        """True when every sample has a second video from a novel path."""
        return all(entry.about.novel for entry in self._entries)
