"""Convert the released TrajScene-60K archives to training shards.

    python -m training.trajscene SRC DST [--jobs 8]

SRC is one `<range>.tar.gz` or a folder of them. Each becomes `DST/<range>.tar` and
`DST/<range>.rejects.jsonl`, which lists what was left out and why; an archive whose list exists
is not converted again. Archives are read as streams and nothing is unpacked under a name that
they choose; their pickles are read without running code.
"""

import gzip
import json
import logging
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import torch

from more4d_backend.files import FileFormatError, replacing

from .data.samples import SampleError, TrainingSample
from .data.shards import write_shard
from .data.trajscene_samples import SampleFiles, SampleLimits, convert_sample

_log = logging.getLogger(__name__)

# Longest endings first: `x_mask_render.mp4` also ends in `.mp4`.
_MADE_AGAIN = ("_dt3d_render.mp4", "_mask_render.mp4", "_mask_render_binary.npy")
_READ = {"_dt3d_pred.pkl": "prediction", ".mp4": "video", ".txt": "caption"}
_MAX_BYTES = {"prediction": 2 << 30, "video": 1 << 30, "caption": 64 << 10}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Something that was left out."""

    archive: str
    """Name without `.tar.gz`."""

    sample: str | None
    """Number of the sample; None when it is the whole rest of the archive."""

    reason: str
    """A sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveReport:
    """What became of one archive."""

    archive: str
    """Name without `.tar.gz`."""

    num_samples: int
    """Samples in the shard; 0 makes no shard."""

    rejects: tuple[Reject, ...] = field(default=())
    """In the order of the archive."""

    @property
    def failed(self) -> bool:
        """True when the archive itself could not be read to its end."""
        return any(reject.sample is None for reject in self.rejects)


def convert_archive(
    path: Path, destination: Path, limits: SampleLimits | None = None
) -> ArchiveReport:
    """Convert one `<range>.tar.gz`. Samples that fail a check are listed, not raised.

    A damaged or hostile archive is listed as a reject without a sample; what came before it in
    the archive is not used either.
    """
    limits = limits or SampleLimits()
    name = path.name.removesuffix(".tar.gz")
    rejects: list[Reject] = []
    destination.mkdir(parents=True, exist_ok=True)
    shard, written = destination / f"{name}.tar", 0
    try:
        written = write_shard(shard, _converted(path, destination, limits, rejects))
    except FileFormatError as e:
        rejects.append(Reject(archive=name, sample=None, reason=str(e)))
    if not written:
        shard.unlink(missing_ok=True)
    with replacing(destination / f"{name}.rejects.jsonl") as temporary:
        lines = [json.dumps(asdict(reject)) + "\n" for reject in rejects]
        temporary.write_text("".join(lines), encoding="utf-8")
    return ArchiveReport(archive=name, num_samples=written, rejects=tuple(rejects))


def _converted(
    path: Path, destination: Path, limits: SampleLimits, rejects: list[Reject]
) -> Iterator[TrainingSample]:
    archive = path.name.removesuffix(".tar.gz")
    with tempfile.TemporaryDirectory(prefix=f".{archive}-", dir=destination) as spool:
        for files in _samples(path, archive, Path(spool), rejects):
            try:
                yield convert_sample(files, limits)
            except SampleError as e:
                rejects.append(Reject(archive=archive, sample=files.name, reason=str(e)))
            for part in (files.video, files.caption, files.prediction):
                part.unlink()


def _samples(path: Path, archive: str, spool: Path, rejects: list[Reject]) -> Iterator[SampleFiles]:
    """Copy what is read to `spool` under names of our own, and yield each complete sample."""
    parts: dict[str, dict[str, Path]] = {}
    numbers: dict[str, int] = {}
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                if (named := _named(member, path)) is None:
                    continue
                sample, kind = named
                found = parts.setdefault(sample, {})
                if kind in found:
                    raise FileFormatError(f"{path} holds the {kind} of sample {sample} twice.")
                # Files of a sample need not follow each other.
                found[kind] = spool / f"{numbers.setdefault(sample, len(numbers))}-{kind}"
                source = tar.extractfile(member)
                assert source is not None  # a plain file, see _named
                with found[kind].open("wb") as file:
                    while block := source.read(1 << 20):
                        file.write(block)
                if len(found) == len(_READ):
                    yield SampleFiles(name=sample, archive=archive, **found)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise FileFormatError(f"{path} is truncated or not a tar.gz: {e}") from e
    for sample, found in parts.items():
        if missing := sorted(set(_READ.values()) - found.keys()):
            reason = f"The {' and the '.join(missing)} of the sample is missing."
            rejects.append(Reject(archive=archive, sample=sample, reason=reason))


def _named(member: tarfile.TarInfo, path: Path) -> tuple[str, str] | None:
    """Sample and kind of a member that is read; None for folders and files that are not.

    Raises:
        FileFormatError: a member that no honest archive holds.
    """
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or "\\" in member.name:
        raise FileFormatError(f"{path} is refused: its member {member.name!r} leaves the archive.")
    if member.isdir():
        return None
    if not member.isreg():
        raise FileFormatError(
            f"{path} is refused: its member {member.name!r} is a link or a device."
        )
    if place.name.endswith(_MADE_AGAIN):
        return None
    for ending, kind in _READ.items():
        sample = place.name.removesuffix(ending)
        if sample != place.name and re.fullmatch(r"[A-Za-z0-9_-]+", sample):
            if member.size > _MAX_BYTES[kind]:
                raise FileFormatError(
                    f"{path} is refused: its member {member.name!r} has {member.size} bytes; at "
                    f"most {_MAX_BYTES[kind]} are expected."
                )
            return sample, kind
    _log.warning("%s: %s is not part of the released layout and is not read", path, member.name)
    return None


def convert(source: Path, destination: Path, /, *, jobs: int = 4) -> int:
    """Convert every archive and return the exit code: 1 when an archive could not be read.

    Args:
        source: one `<range>.tar.gz` or a folder of them.
        destination: folder of the shards; what is already converted there is kept.
        jobs: archives converted at the same time; each needs about 1 GB of memory.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; expected at least 1.")
    archives = [source] if source.is_file() else sorted(source.glob("*.tar.gz"))
    if not archives:
        raise FileFormatError(f"{source} holds no archive; expected files named <range>.tar.gz.")
    waiting = [archive for archive in archives if not _is_done(archive, destination)]
    _log.info(
        "%d of %d archives are converted already", len(archives) - len(waiting), len(archives)
    )
    failed = 0
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for report in pool.map(convert_archive, waiting, [destination] * len(waiting)):
            failed += report.failed
            _log.info(
                "%s: %d samples, %d rejected",
                report.archive,
                report.num_samples,
                len(report.rejects),
            )
            for reject in report.rejects:
                _log.info("%s %s: %s", reject.archive, reject.sample or "", reject.reason)
    return 1 if failed else 0


def _is_done(archive: Path, destination: Path) -> bool:
    """True when the archive was read to its end; a damaged one may have been replaced since."""
    rejects = destination / (archive.name.removesuffix(".tar.gz") + ".rejects.jsonl")
    if not rejects.exists():
        return False
    lines = rejects.read_text(encoding="utf-8").splitlines()
    return all(json.loads(line)["sample"] is not None for line in lines)


if __name__ == "__main__":
    import tyro

    from .run.command_line import exit_with

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    exit_with(lambda: tyro.cli(convert))
