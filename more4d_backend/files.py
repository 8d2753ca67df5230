"""Output that is whole or absent, and the error that every reader raises."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FileFormatError(ValueError):
    """A file that is damaged, truncated, foreign, or not what its name says."""


class OutputError(OSError):
    """A place that cannot be written."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block succeeds.

    The temporary name keeps the suffix, because encoders choose a format by it. When the block
    fails, what was written is removed and an older file at `path` stays as it was.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; expected the name of a file to write.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"The folder {path.parent} cannot be made: {e.strerror}.") from e
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"The folder {path.parent} is not writable. Choose another output path.")
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
