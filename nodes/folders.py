"""Files of the user: only in the host's own folders, whatever name comes with a workflow."""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..more4d_backend.files import OutputError

OUR_FOLDER = "more4d"
"""Sub-folder of the output folder where our nodes write, unless they are told otherwise."""

_DATE = re.compile(r"%date:([^%]+)%")
_DATE_PARTS = {
    "yyyy": "%Y", "yy": "%y", "MM": "%m", "dd": "%d", "hh": "%H", "mm": "%M", "ss": "%S",
}  # fmt: skip
_REFUSED = '<>:"|?*' if os.name == "nt" else ""
"""Characters that Windows has in no name: it takes what follows a colon for a part of a file."""


class PlaceError(ValueError):
    """A file that is not there, or a name that leads out of the host's folders."""


def listed_files(suffixes: Sequence[str]) -> list[str]:
    """Files with one of these endings in the input folder, and in our part of the output folder.

    Names are the host's: relative to the input folder, or followed by " [output]".
    """
    output = Path(folder_paths.get_output_directory())
    ours = _found(output / OUR_FOLDER, output, suffixes)
    root = Path(folder_paths.get_input_directory())
    return [*_found(root, root, suffixes), *(f"{name} [output]" for name in ours)]


def file_at(name: str) -> Path:
    """Return where a file of the user is.

    Raises:
        PlaceError: the name leads out of the host's folders, or nothing is there.
    """
    relative, root = folder_paths.annotated_filepath(name)
    root = root or folder_paths.get_input_directory()
    path = _inside(root, relative)
    if not path.is_file():
        raise PlaceError(
            f"There is no file {relative!r} in {root}. Put it there and choose it again (R reloads "
            "the lists)."
        )
    return path


def fingerprint(name: str | None) -> tuple[str, int, int] | None:
    """Return what changes when a file does, so that the host runs its node again.

    None stands for a name that only comes when the workflow runs.
    """
    if name is None:
        return None
    state = file_at(name).stat()
    return name, state.st_size, state.st_mtime_ns


def prefix_input(default: str) -> Any:
    """Return the input for what `new_output` takes."""
    return io.String.Input(
        "filename_prefix", default=default,
        tooltip="Name in the output folder, without ending; a number is added. "
        "%date:yyyy-MM-dd-hh-mm-ss% is the time, in any such form.",
    )  # fmt: skip


def check_prefix(prefix: str) -> None:
    """Refuse a name for output that leads out of the output folder, or names nothing.

    Raises:
        PlaceError: says what to write instead.
    """
    prefix = _with_date(prefix)
    if os.path.basename(prefix.replace("\\", "/")) in ("", ".", ".."):
        raise PlaceError(
            f"The file name {prefix!r} names no file. Write one such as more4d/scene, without an "
            "ending."
        )
    _inside(folder_paths.get_output_directory(), prefix)
    if refused := sorted(set(os.path.splitdrive(prefix)[1]) & set(_REFUSED)):
        raise PlaceError(
            f"The file name {prefix!r} has {' '.join(refused)} in it, which Windows has in no file "
            "name. Write one such as more4d/scene."
        )


def new_output(prefix: str, suffix: str) -> Path:
    """Return a new path in the output folder; numbered, so that nothing is overwritten.

    An empty suffix is that of a folder, whose name has no dots: what follows one is an ending.

    Raises:
        PlaceError: the name leads out of the output folder.
        OutputError: the folder cannot be made.
    """
    check_prefix(prefix)
    prefix = _with_date(prefix)
    if not suffix:
        parent, name = os.path.split(prefix)
        prefix = os.path.join(parent, name.replace(".", "_"))
    root = folder_paths.get_output_directory()
    try:
        folder, name, number, *_ = folder_paths.get_save_image_path(prefix, root)
    except OSError as e:
        raise OutputError(f"No folder can be made for {prefix} in {root}: {e.strerror}.") from e
    return Path(folder) / f"{name}_{number:05}{suffix}"


def shown(path: Path) -> str:
    """Return the name of a file in the output folder, as the loading nodes list it."""
    root = os.path.realpath(folder_paths.get_output_directory())
    return f"{Path(os.path.relpath(os.path.realpath(path), root)).as_posix()} [output]"


def refusal(check: Callable[[str], object], value: str | None) -> bool | str:
    """Run a check as the host's `validate_inputs` answers: True, or the sentence to show.

    None stands for a value that only comes when the workflow runs.
    """
    if value is None:
        return True
    try:
        check(value)
    except ValueError as e:
        return str(e)
    return True


def _with_date(prefix: str) -> str:
    """Put in the time, as the host's page does for the host's own nodes that save."""
    parts, now = "|".join(_DATE_PARTS), time.localtime()

    def formatted(found: re.Match[str]) -> str:
        return re.sub(parts, lambda part: time.strftime(_DATE_PARTS[part[0]], now), found[1])

    return _DATE.sub(formatted, prefix)


def _inside(root: str, relative: str) -> Path:
    root = os.path.realpath(root)
    try:
        path = os.path.realpath(os.path.join(root, relative))
        if os.path.commonpath((root, path)) == root:
            return Path(path)
    except ValueError:  # a null byte; on Windows, another drive
        pass
    raise PlaceError(
        f"{relative!r} leads out of the folder {root}. Files are read and written only in "
        "ComfyUI's own folders: put the file there, and give its name relative to it."
    )


def _found(folder: Path, root: Path, suffixes: Sequence[str]) -> list[str]:
    names, _ = folder_paths.recursive_search(str(folder), excluded_dir_names=[".git"])
    start = Path(os.path.relpath(folder, root))
    fitting = [name for name in names if Path(name).suffix.lower() in suffixes]
    return sorted((start / name).as_posix() for name in fitting)
