"""The weights of a sharded checkpoint as one file, under original names, for the pipelines.

    python -m training.gather runs/strag/checkpoint-00002000
    python -m training.gather runs/strag/checkpoint-00002000 --output s.safetensors --last

Needs neither a GPU nor the engine that trained: memory for the weights once, in float32.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from more4d_backend.files import replacing

from .run.checkpoints import CheckpointError, read_about
from .run.export import Export
from .run.fragments import WEIGHTS

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedWeights:
    """What `weights.json` says."""

    num_ranks: int
    """That wrote fragments."""

    engine: str
    """What split the parameters."""

    averaged: bool
    """Whether there is a running mean."""

    averaged_updates: int = 0
    """Updates that are in it."""

    shapes: dict[str, list[int]]
    """Of every tensor."""

    exports: list[Export]
    """How they are written for use."""

    def write(self, folder: Path) -> None:
        """Write `weights.json`."""
        with replacing(folder / WEIGHTS) as temporary:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "ShardedWeights":
        """Read `weights.json`.

        Raises:
            CheckpointError: it is not there, or damaged.
        """
        try:
            values: dict[str, Any] = json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))
            exports = [Export(**export) for export in values.pop("exports")]
            return cls(**values, exports=exports)
        except FileNotFoundError as e:
            raise CheckpointError(
                f"{folder} holds no fragments: {WEIGHTS} is not there. A run that is not sharded "
                "writes its weights whole, beside its checkpoints."
            ) from e
        except (ValueError, TypeError, KeyError) as e:
            raise CheckpointError(f"{folder / WEIGHTS} is damaged: {e!r}.") from e


def gather(checkpoint: Path, output: Path | None = None, *, averaged: bool | None = None) -> Path:
    """Join the fragments of a checkpoint and write them for use; return the file's path.

    Args:
        checkpoint: folder `checkpoint-<step>` of a sharded run.
        output: file to write; by default beside the checkpoint, under the trainer's name for it.
        averaged: take the running mean; by default if there is one.

    Raises:
        CheckpointError: not a sharded checkpoint, half-written, or without a running mean.
        OutputError: the place cannot be written.
    """
    read_about(checkpoint)
    return gather_fragments(checkpoint, output, averaged=averaged)


def gather_fragments(
    folder: Path, output: Path | None = None, *, averaged: bool | None = None
) -> Path:
    """Do the same with a folder that holds only the weights.

    Raises:
        CheckpointError, OutputError: see `gather`.
    """
    about = ShardedWeights.read(folder)
    if averaged and not about.averaged:
        raise CheckpointError(f"{folder} has no running mean. Take the last parameters.")
    use_mean = about.averaged if averaged is None else averaged
    path = output or folder.parent / about.exports[0].file
    given = [_given(export, folder) for export in about.exports]
    tensors = dict(joined(folder, about, averaged=use_mean))
    _log.info("%s: %d tensors of %d ranks", folder, len(tensors), about.num_ranks)
    for number, (export, besides) in enumerate(zip(about.exports, given, strict=True)):
        export.write(besides | tensors, path.with_name(export.file) if number else path)
    return path


def _given(export: Export, folder: Path) -> dict[str, Tensor]:
    """What the run did not train and a file for use needs: it lies beside the checkpoints."""
    if export.given is None:
        return {}
    file = _opened(folder.parent / export.given)
    return {export.prefix + name: file.get_tensor(name) for name in file.keys()}


def joined(folder: Path, about: ShardedWeights, *, averaged: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor, whole.

    Raises:
        CheckpointError: a rank's file is missing or damaged, or fragments do not fill a tensor.
    """
    weights = [_opened(folder / f"weights-{r}.safetensors") for r in range(about.num_ranks)]
    means = [
        _opened(folder / f"averaged-{r}.safetensors") for r in range(about.num_ranks) if averaged
    ]
    mean_names = {name for file in means for name in file.keys()}
    for name, shape in about.shapes.items():
        files = means if name in mean_names else weights
        pieces = [file.get_tensor(name) for file in files if name in file.keys()]
        numel = torch.Size(shape).numel()
        flat = torch.cat([piece.flatten() for piece in pieces]) if pieces else torch.empty(0)
        if flat.numel() < numel:
            raise CheckpointError(
                f"The fragments of {name} in {folder} hold {flat.numel()} of {numel} numbers. A "
                "rank's file is from another run, or damaged; take another checkpoint."
            )
        yield name, flat[:numel].view(shape)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path} is missing or damaged: {e}") from e


def main(checkpoint: Path, /, *, output: Path | None = None, last: bool = False) -> int:
    """Join the fragments of a sharded checkpoint into one file for the pipelines and ComfyUI.

    Args:
        checkpoint: folder `checkpoint-<step>` of a sharded run.
        output: file to write; by default beside the checkpoint, under the trainer's name for it.
        last: take the last parameters, also where there is a running mean of them.
    """
    print(gather(checkpoint, output, averaged=False if last else None))
    return 0


if __name__ == "__main__":
    import tyro

    from .run.command_line import exit_with

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    exit_with(lambda: tyro.cli(main))
