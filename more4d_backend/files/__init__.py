"""Output that is whole or absent, and the error that every reader raises."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FULL_IN_TEXT = _FULL | ({112, 39} if os.name == "nt" else set())
"""Windows' own numbers for a full disk."""


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
        OutputError: the folder cannot be made or written, or its disk is full.
    """
    path = Path(path)
    if os.path.isdir(path):  # Path.is_dir raises for names that are too long
        raise OutputError(f"{path} is a folder; expected the name of a file to write.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"The folder {path.parent} cannot be made: {e.strerror}.") from e
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"The folder {path.parent} is not writable. Choose another output path.")
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    mode = _mode_of_new_files(temporary)
    try:
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    except (OSError, SafetensorError) as e:
        if not _says_full(e):
            raise
        raise _no_space(path) from e
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse, before any work, a folder that cannot be made or written.

    Raises:
        OutputError: see above.
    """
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file; expected a folder to write to.")
    if not os.access(there, os.W_OK):
        raise OutputError(f"The folder {there} is not writable. Choose another output folder.")


def _mode_of_new_files(path: Path) -> int:
    """Permissions that new files get here. Some writers (safetensors) give them to the owner only.

    On Windows this is also what finds out whether files may be made in the folder.
    """
    try:
        path.touch(exist_ok=False)
    except OSError as e:
        raise OutputError(f"No file can be made in {path.parent}: {e.strerror}.") from e
    try:
        return stat.S_IMODE(path.stat().st_mode)
    finally:
        path.unlink()


def _no_space(path: Path) -> OutputError:
    return OutputError(
        f"{path} could not be written: no space is left for it. Free some, or choose another "
        "output folder."
    )


def _says_full(error: Exception) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL:
        return True
    # Rust's errors keep the number only in their text, in one form or (safetensors 0.4) another.
    forms = [form for full in _FULL_IN_TEXT for form in (f"(os error {full})", f"code: {full},")]
    return any(form in str(error) for form in forms)


@contextmanager
def replacing_folder(path: str | os.PathLike[str], pattern: str) -> Iterator[Path]:
    """Give a temporary folder beside `path`; rename it to `path` when the block succeeds.

    An older folder at `path` is replaced as a whole, but only when every file in it matches
    `pattern` (such as `frame_*.ply`), so that a mistyped name can never delete anything else.

    Raises:
        OutputError: the folder cannot be made, or holds files of another kind.
    """
    path = Path(path)
    if path.is_dir():
        foreign = next((item for item in path.iterdir() if not item.match(pattern)), None)
        if foreign is not None:
            raise OutputError(
                f"{path} holds {foreign.name}, which is not one of {pattern}. "
                "Choose a new or empty folder."
            )
    elif path.exists():
        raise OutputError(f"{path} is a file; expected the name of a folder for {pattern}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        temporary.mkdir()
    except OSError as e:
        raise OutputError(f"A folder cannot be made in {path.parent}: {e.strerror}.") from e
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        if path.is_dir():
            path.rename(old)
        temporary.rename(path)
    except (OSError, SafetensorError) as e:
        if not _says_full(e):
            raise
        raise _no_space(path) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.is_dir():  # put it back when the new one did not arrive
            shutil.rmtree(old) if path.exists() else old.rename(path)


def read_limited(path: str | os.PathLike[str], limit_bytes: int, expected: str) -> bytes:
    """Read a whole file, which `expected` describes in errors ("a PNG picture").

    Raises:
        FileFormatError: the file is empty, or larger than any such file would be.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > limit_bytes:
        raise FileFormatError(
            f"{path} has {size} bytes; expected {expected} of at most {limit_bytes}."
        )
    data = path.read_bytes()
    if not data:
        raise FileFormatError(f"{path} is empty; expected {expected}.")
    return data


@contextmanager
def decoding(path: str | os.PathLike[str], expected: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a FileFormatError that names the file.

    For calls of third-party decoders on bytes already at hand, and nothing else: each library
    raises errors of many types for damaged input, and there all of them mean damaged input.
    """
    try:
        yield
    except FileFormatError:
        raise
    except Exception as e:
        reason = str(e).rstrip(".") or type(e).__name__
        raise FileFormatError(
            f"{path} cannot be read as {expected}: {reason}. It is cut off, damaged or something "
            "else: copy it, or make it, again."
        ) from e
