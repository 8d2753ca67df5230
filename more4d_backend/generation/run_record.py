"""run.json: what was done, with which settings and weights, and which stages can be reused.

A stage is reused when its settings, its input files and its weights have the same hash as when
its outputs were written, and the outputs are still what was written.
"""

import errno
import hashlib
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..files import FileFormatError, OutputError, replacing
from ..files.strict_json import parse_json, read_text
from ..weights.files import file_sha256

_log = logging.getLogger(__name__)

RUN_FILE = "run.json"
_LOCK_FILE = ".run.lock"
_FORMAT = "more4d-run"
_LIMIT_BYTES = 64 * 2**20
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What some network file systems answer to a lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a run, as it is written to run.json."""

    name: str
    """Such as `scene` or `orbit-left: complete`."""

    inputs_sha256: str
    """Of everything that decides the outputs."""

    outputs: Mapping[str, str]
    """File name in the run's folder -> SHA-256."""

    seconds: float
    """Time it took when it ran."""

    peak_memory_bytes: int | None
    """Largest memory allocated on the CUDA device; None elsewhere."""

    details: Mapping[str, Any]
    """Settings that the stage used."""

    chosen: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen while it ran, such as the memory mode and why; decides nothing."""

    peak_process_bytes: int | None = None
    """Largest host memory that the process had held when the stage ended, earlier stages
    included; None where the system does not tell."""

    earlier: bool = False
    """Of an earlier run, whose settings were others perhaps: this one has not come to it."""


class RunRecord:
    """The stages of one run, in one folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], name: str = "") -> None:
        """Touch nothing yet; `name` begins every line of the log, where runs take turns."""
        self.folder = folder
        self._settings = settings
        self._said = f"{name}, " if name else ""
        self._earlier: dict[str, Stage] = {}
        self._stages: dict[str, Stage] = {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Offer for reuse what an earlier run recorded; keep other processes out meanwhile.

        Raises:
            OutputError: see `only_run_in`.
            FileFormatError: run.json is there and is not ours.
        """
        with only_run_in(self.folder):
            self._earlier = _read_stages(self.folder / RUN_FILE)
            yield

    def stage(
        self,
        name: str,
        details: Any,
        inputs: Sequence[Path],
        outputs: Sequence[str],
        make: Callable[[], Mapping[str, Any] | None],
        weights: Mapping[str, str] | None = None,
    ) -> None:
        """Run `make`, which writes `outputs`, unless they are there from the same inputs.

        What `make` returns is written to run.json as `chosen`.

        `details` (a dataclass or a dict) and the contents of `inputs` and `weights` (name ->
        SHA-256) decide; run.json is rewritten after every stage.
        """
        plain = _plain(details)
        key = _digest({"details": plain, "inputs": _hashes(inputs), "weights": weights or {}})
        earlier = self._earlier.get(name)
        if earlier is not None and earlier.inputs_sha256 == key and self._intact(earlier, outputs):
            _log.info("%s%s: reused, nothing that it depends on has changed.", self._said, name)
            self._stages[name] = replace(earlier, earlier=False)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _measured() as measured:
                chosen = make()
            self._stages[name] = Stage(
                name=name,
                inputs_sha256=key,
                outputs={output: file_sha256(self.folder / output) for output in outputs},
                seconds=measured["seconds"],
                peak_memory_bytes=measured["peak_memory_bytes"],
                peak_process_bytes=measured["peak_process_bytes"],
                details={"settings": plain, "weights_sha256": dict(weights or {})},
                chosen=chosen or {},
            )
            _log.info("%s%s: %.1f s.", self._said, name, measured["seconds"])
        self._write()

    def finish(self) -> None:
        """Forget the stages of earlier runs that this one did not have."""
        if self._earlier.keys() - self._stages.keys():
            self._earlier = {}
            self._write()

    def _intact(self, stage: Stage, outputs: Sequence[str]) -> bool:
        if set(stage.outputs) != set(outputs):
            return False
        for output, digest in stage.outputs.items():
            path = self.folder / output
            if not path.is_file() or file_sha256(path) != digest:
                _log.info(
                    "%s%s: %s is missing or was changed; made again.",
                    self._said,
                    stage.name,
                    output,
                )
                return False
        return True

    def _write(self) -> None:
        # An earlier run's stages stay until this one comes to them: a batch that is interrupted
        # may not have come to stages that are done.
        earlier = {n: replace(stage, earlier=True) for n, stage in self._earlier.items()}
        stages = earlier | self._stages
        document = {
            "format": _FORMAT,
            "version": 1,
            "settings": _plain(self._settings),
            "machine": _machine(),
            "stages": [_plain(stage) for stage in stages.values()],
        }
        text = json.dumps(document, indent=1, sort_keys=False, allow_nan=False)
        with replacing(self.folder / RUN_FILE) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


def stage_table(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: what each stage of a run took when it was made.

    Raises:
        FileFormatError: run.json is not ours.
    """
    stages = [s for s in _read_stages(folder / RUN_FILE).values() if not s.earlier]
    rows = [[s.name, f"{s.seconds:.1f}", _mebibytes(s)] for s in stages]
    peaks = [s.peak_process_bytes for s in stages if s.peak_process_bytes is not None]
    peak = f"{max(peaks) / 2**20:.0f}" if peaks else "unknown"
    rows.append(["all", f"{sum(s.seconds for s in stages):.1f}", peak])
    return ["stage", "seconds", "peak memory so far (MiB)"], rows


def _mebibytes(stage: Stage) -> str:
    host, device = stage.peak_process_bytes, stage.peak_memory_bytes
    told = "unknown" if host is None else f"{host / 2**20:.0f}"
    return told if device is None else f"{told}, on the GPU {device / 2**20:.0f}"


def peak_process_bytes() -> int | None:
    """Return the largest host memory that this process has held; None where nobody tells."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others KiB


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other processes from working in the same folder at the same time.

    The lock is the operating system's: it ends with the process, however that ends.

    Raises:
        OutputError: another run is at work in the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK_FILE).open("a+b")
    except OSError as e:
        raise OutputError(f"The folder {folder} cannot be written: {e.strerror}.") from e
    with file:
        try:
            _lock(file)
        except OSError as e:
            if e.errno not in _NO_LOCKS:
                raise OutputError(
                    f"Another run is writing to {folder}. Wait for it, or choose another folder."
                ) from e
            _log.warning("The disk of %s has no locks: start no second run in it.", folder)
        yield


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _read_stages(path: Path) -> dict[str, Stage]:
    if not path.exists():
        return {}
    document = parse_json(read_text(path, _LIMIT_BYTES, "a run.json"), path.name)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise FileFormatError(f"{path} is not a More4D run.json. Choose another output folder.")
    stages = {}
    for entry in document.get("stages", []):
        try:
            stage = Stage(**entry)
        except TypeError as e:
            raise FileFormatError(f"{path} has a stage that cannot be read: {e}.") from e
        stages[stage.name] = stage
    return stages


@contextmanager
def _measured() -> Iterator[dict[str, Any]]:
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    result: dict[str, Any] = {"peak_memory_bytes": None, "peak_process_bytes": None}
    start = time.perf_counter()
    yield result
    result["seconds"] = round(time.perf_counter() - start, 3)
    result["peak_process_bytes"] = peak_process_bytes()
    if on_cuda:
        result["peak_memory_bytes"] = torch.cuda.max_memory_allocated()


def _machine() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return {
        "device": device or platform.machine(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _hashes(paths: Sequence[Path]) -> list[str]:
    return [file_sha256(path) for path in paths]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Dataclasses, paths and dtypes as JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
