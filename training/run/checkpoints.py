"""Checkpoints: whole or absent, the newest few kept, and nothing lost on resuming.

A checkpoint is a folder `checkpoint-00000200` with

| file | content |
|---|---|
| `checkpoint.json` | format, step, place in the data, the whole config, size of every other file |
| `trainable.safetensors` | the trained parameters, fp32, by name |
| `averaged.safetensors` | their running mean, where the recipe has one |
| `optimizer.pt` | the optimiser's state: tensors and plain values, read with `weights_only=True` |
| `random-<rank>.pt` | random states of Python, numpy, torch and CUDA, per rank |
| `sharded/` | the engine's own files, in place of the former where FSDP or DeepSpeed is used |
| `weights.json` | there: shapes of all tensors, number of ranks, what is written for use |
| `weights-<rank>.safetensors` | there: the rank's fragments of parameters, for `training.gather` |
| `averaged-<rank>.safetensors` | there: those of the running mean |

Nothing of ours runs code from these files. The readers of torch and accelerate for `sharded/` use
pickle: resume a sharded run from your own checkpoints alone.

`checkpoint.json` is written last and the folder renamed after that, so a folder under its final
name is whole; its file sizes tell when a disk or a copy lost something later.
"""

import json
import logging
import os
import random
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.loader import LoaderState
from .settings import SettingsError

_log = logging.getLogger(__name__)

VERSION = 1
ABOUT = "checkpoint.json"

MAY_CHANGE = (
    "run.output",
    "run.num_steps",
    "run.resume",
    "run.tracker",
    "run.checkpoint_every",
    "run.checkpoints_kept",
    "run.validate_every",
    "run.export_precision",
    "run.kept_blocks",
    "run.minutes",
    "data.train",
    "data.validation",
    "data.encoded",
    "data.encoded_on_device",
    "data.num_validation_samples",
    "data.num_workers",
)
"""Settings that change no number of the training itself; all others must be as they were."""

_OF_THE_DECAY = {"run.num_steps", "run.minutes"}
"""Must be as they were where the learning rate falls towards the end."""


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or that another recipe made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What `checkpoint.json` says."""

    step: int
    """Updates done."""

    data: LoaderState
    """Place in the data."""

    config: dict[str, Any]
    """The whole recipe, as `plain` makes it."""

    files: dict[str, int]
    """Bytes of every other file, by its name in the folder."""


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, kept: int = 3) -> None:
        """Look after the checkpoints in `folder`; keep the newest `kept`."""
        self.folder = folder
        self.kept = kept

    def path(self, step: int) -> Path:
        """Return the name of the checkpoint of a step."""
        return self.folder / f"checkpoint-{step:08d}"

    def temporary(self, step: int) -> Path:
        """Return the name under which it is written."""
        return self.folder / f".checkpoint-{step:08d}.writing"

    def steps(self) -> list[int]:
        """Return the steps of which there is a checkpoint, oldest first."""
        found = (re.fullmatch(r"checkpoint-(\d{8})", path.name) for path in self._entries())
        return sorted(int(match[1]) for match in found if match)

    def begin(self, step: int) -> Path:
        """Make an empty temporary folder for the checkpoint of a step. On one rank only."""
        temporary = self.temporary(step)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return temporary

    def finish(self, step: int, data: LoaderState, config: Mapping[str, Any]) -> Path:
        """Seal what was written, give it its name, and remove what is too old. On one rank only."""
        temporary, final = self.temporary(step), self.path(step)
        about = About(step=step, data=data, config=dict(config), files=_sizes(temporary))
        text = json.dumps({"version": VERSION, **asdict(about)}, indent=1)
        with (temporary / ABOUT).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():  # the same step once more, after a resume from an older one
            shutil.rmtree(final)
        temporary.rename(final)
        for old in self.steps()[: -self.kept]:
            shutil.rmtree(self.path(old))
        return final

    def remove_unfinished(self) -> None:
        """Remove what a killed run was writing. On one rank only."""
        for path in self._entries():
            if re.fullmatch(r"\.checkpoint-\d{8}\.writing", path.name):
                _log.warning("%s was never finished and is removed", path)
                shutil.rmtree(path)

    def latest(self) -> Path | None:
        """Return the newest checkpoint, if there is one."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def to_resume(self, resume: str) -> Path | None:
        """Return the checkpoint that `run.resume` means; None: a new run.

        Raises:
            SettingsError: there is one, and `resume` is "never".
        """
        latest = self.latest()
        if resume == "latest":
            return latest
        if resume != "never":
            return Path(resume)
        if latest is not None:
            raise SettingsError(
                f"{self.folder} already holds {latest.name} and run.resume is 'never'. Choose "
                "another output folder, or run.resume 'latest'."
            )
        return None

    def _entries(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.is_dir() else []


def read_about(path: Path) -> About:
    """Read `checkpoint.json` and check that every file is there in full.

    Raises:
        CheckpointError: not a checkpoint, of another version, or half-written; names the file.
    """
    try:
        values = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        version = values.pop("version")
        about = About(**{**values, "data": LoaderState(**values["data"])})
    except OSError as e:
        raise CheckpointError(
            f"{path} is no whole checkpoint: {ABOUT} cannot be read ({e.strerror}). Resume from "
            "another one."
        ) from e
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise CheckpointError(f"{path / ABOUT} is damaged: {e!r}.") from e
    if version != VERSION:
        raise CheckpointError(f"{path} has version {version!r}; this code reads {VERSION}.")
    there = _sizes(path)
    for name, size in about.files.items():
        if name not in there:
            raise CheckpointError(
                f"{path} is not whole: {name} is missing. Every rank's files must be in one folder "
                "that all machines share; copy it there, or resume from another checkpoint."
            )
        if there[name] != size:
            raise CheckpointError(
                f"{path} is half-written: {name} has {there[name]} of {size} bytes. Remove "
                "this checkpoint and resume from the one before it."
            )
    return about


def check_same_recipe(stored: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with other settings than the checkpoint's or run's `stored` ones.

    Raises:
        CheckpointError: shows every setting that differs.
    """
    there, here = _flat(stored), _flat(config)
    absent = "absent"
    may_change = set(MAY_CHANGE)
    if here.get("optimizer.decay", "none") != "none":
        may_change -= _OF_THE_DECAY
    differing = [
        f"  {name}: {there.get(name, absent)} in the checkpoint, {here.get(name, absent)} here"
        for name in sorted(there.keys() | here.keys())
        if name not in may_change and there.get(name, absent) != here.get(name, absent)
    ]
    if differing:
        raise CheckpointError(
            f"{path} was made by another recipe. These settings differ:\n"
            + "\n".join(differing)
            + "\nUse the same settings, or start a new run in another output folder."
        )


def plain(config: Any) -> dict[str, Any]:
    """Return a config dataclass as what JSON can hold and give back unchanged."""
    return json.loads(json.dumps(asdict(config), default=str))


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name."""
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def load_tensors_into(targets: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors from a file into those of a run, name by name.

    Raises:
        CheckpointError: damaged, or names or shapes differ; nothing is changed then.
    """
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path} is damaged: {e}") from e
    wrong = sorted(stored.keys() ^ targets.keys())
    wrong += [n for n in stored.keys() & targets.keys() if stored[n].shape != targets[n].shape]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the network: {len(wrong)} tensors are missing, unexpected or of "
            f"another shape, first {', '.join(wrong[:5])}."
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(stored[name])


def save_random_state(path: Path) -> None:
    """Write the states of every global random generator of this process."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(state, path)


def load_random_state(path: Path) -> None:
    """Put the global random generators where `save_random_state` found them."""
    state = load_plain(path)
    random.setstate(state["python"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy(), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def load_plain(path: Path) -> Any:
    """Read a file of tensors and plain values; no code in it is run.

    Raises:
        CheckpointError: damaged, or it holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many kinds for damage; all mean the same here
        raise CheckpointError(f"{path} is damaged or not a checkpoint's file: {e}") from e


def _sizes(folder: Path) -> dict[str, int]:
    files: Iterable[Path] = (p for p in folder.rglob("*") if p.is_file() and p.name != ABOUT)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(files)}


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix: values}
    named = ((f"{prefix}.{k}" if prefix else k, v) for k, v in values.items())
    return {name: leaf for key, value in named for name, leaf in _flat(value, key).items()}
