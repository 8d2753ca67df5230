"""Which images `generate` is to make scenes of: one, a folder of them, or a CSV file."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from ..files import FileFormatError, decoding
from ..files.strict_json import read_text

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm")
_LIMIT_CSV_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One image of a batch."""

    image: Path
    """The picture."""

    prompt: str
    """What happens in it."""

    depth: str | None = None
    """Depth file of this picture, where the batch has one per picture."""


def is_batch(source: Path) -> bool:
    """Tell many images from one."""
    return source.is_dir() or source.suffix.lower() == ".csv"


def find_jobs(source: Path, prompt: str | None) -> list[Job]:
    """List the images of a photo, a folder or a CSV file, with their prompts.

    Raises:
        FileFormatError: no images, or a CSV file that is none.
        ValueError: no prompt.
    """
    if not source.exists():
        raise FileFormatError(f"{source} is not there; expected a photo, folder or CSV.")
    if source.suffix.lower() == ".csv":
        return _with_own_folders(_read_csv(source, prompt), source)
    if prompt is None:
        raise ValueError("--prompt is missing: say what moves in the photo, and where to.")
    if source.is_dir():
        images = sorted(p for p in source.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
        if not images:
            raise FileFormatError(f"{source} holds no picture ({', '.join(_IMAGE_SUFFIXES)}).")
        return _with_own_folders([Job(image=path, prompt=prompt) for path in images], source)
    return [Job(image=source, prompt=prompt)]


def _read_csv(path: Path, prompt: str | None) -> list[Job]:
    """Read the columns image, prompt and (optional) depth; paths are relative to the file."""
    text = read_text(path, _LIMIT_CSV_BYTES, "a CSV file")
    with decoding(path, "a CSV file"):
        rows = list(csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True))
    if not rows or "image" not in rows[0]:
        raise FileFormatError(f"{path} has no rows with a column named image.")
    jobs = []
    for number, row in enumerate(rows, start=2):
        text = row.get("prompt") or prompt
        if not row["image"] or not text:
            raise FileFormatError(f"{path}, line {number}: the image or the prompt is missing.")
        depth = row.get("depth")
        jobs.append(
            Job(
                image=path.parent / row["image"],
                prompt=text,
                depth=str(path.parent / depth) if depth else None,
            )
        )
    return jobs


def _with_own_folders(jobs: list[Job], source: Path) -> list[Job]:
    """Refuse pictures whose results would go into one folder."""
    stems = [job.image.stem for job in jobs]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise FileFormatError(
            f"{source} has several images named {', '.join(twice)}: they would share a folder. "
            "Rename them."
        )
    return jobs
