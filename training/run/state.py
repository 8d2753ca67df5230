"""What a run keeps in a checkpoint besides its place in the data: parameters and optimiser.

Unsharded, everything is in files of tensors. Sharded, the engine writes its own state into
`sharded/`, for resuming with as many ranks, and every rank its fragments of the weights and of
their running mean, which `training.gather` joins without the engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..gather import ShardedWeights
from .averaging import ParameterAverage
from .checkpoints import (
    CheckpointError,
    load_plain,
    load_random_state,
    load_tensors_into,
    save_random_state,
    save_tensors,
)
from .export import Export
from .fragments import WEIGHTS, Fragments, fragments_of, save_fragments, shapes_of
from .sharding import Engine

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What is trained, as one rank sees it."""

    accelerator: "Accelerator"
    """Prepared with both."""

    engine: Engine | None
    """What splits parameters over ranks."""

    module: nn.Module
    """The objective, unwrapped."""

    optimizer: Any
    """As accelerate gave it back."""

    names: list[list[str]]
    """Of the parameters in each group of the optimiser."""

    average: ParameterAverage | None
    """The running mean, if the recipe has one."""

    exports: Sequence[Export]
    """How the weights are written for use; needed where they are sharded."""

    @property
    def fragments(self) -> Fragments:
        """This rank's part of what is trained."""
        return fragments_of(self.engine, self.module, self.optimizer)

    def save(self, folder: Path) -> None:
        """Write into a folder that all ranks share. Every rank calls."""
        rank, is_main = self.accelerator.process_index, self.accelerator.is_main_process
        if self.engine is not None:
            self.save_weights(folder)
            if self.average is not None:
                save_tensors(self.average.mean, folder / f"averaged-{rank}.safetensors")
            self.accelerator.save_state(str(folder / "sharded"))
        elif is_main:
            trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
            save_tensors(trained, folder / "trainable.safetensors")
            state = {"names": self.names, "state": self.optimizer.state_dict()}
            state["averaged_updates"] = self.average.num_updates if self.average else 0
            torch.save(state, folder / "optimizer.pt")
            if self.average is not None:
                save_tensors(self.average.mean, folder / "averaged.safetensors")
        save_random_state(folder / f"random-{rank}.pt")

    def save_weights(self, folder: Path) -> None:
        """Write only the weights of a sharded run, for `training.gather`."""
        assert self.engine is not None
        assert self.exports, "A sharded run needs an Objective, which says what to write"
        frozen = any(export.writes_frozen for export in self.exports)
        rank = self.accelerator.process_index
        save_fragments(folder, self.fragments, self.module, rank=rank, frozen=frozen)
        shapes = shapes_of(self.module, frozen=frozen)
        if rank == 0:
            ShardedWeights(
                num_ranks=self.accelerator.num_processes,
                engine=self.engine,
                averaged=self.average is not None,
                averaged_updates=self.average.num_updates if self.average else 0,
                shapes=shapes,
                exports=list(self.exports),
            ).write(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            CheckpointError: it was written by another engine, by more or fewer ranks, or does not
                fit the network.
        """
        if self.engine is not None:
            self._load_sharded(folder)
        elif (folder / WEIGHTS).exists():
            raise CheckpointError(
                f"{folder} was written by a run split over ranks, and this one is not. Launch it "
                "as it was, or make its weights whole with `python -m training.gather`."
            )
        else:
            trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
            load_tensors_into(trained, folder / "trainable.safetensors")
            self._load_optimizer(folder / "optimizer.pt")
            if self.average is not None:
                load_tensors_into(self.average.mean, folder / "averaged.safetensors")

    def load_random_state(self, folder: Path) -> bool:
        """Put the random generators where they were; False if this rank's were not written."""
        path = folder / f"random-{self.accelerator.process_index}.pt"
        if path.exists():
            load_random_state(path)
        return path.exists()

    def _load_sharded(self, folder: Path) -> None:
        about = ShardedWeights.read(folder)
        here = (self.engine, self.accelerator.num_processes)
        if (about.engine, about.num_ranks) != here:
            raise CheckpointError(
                f"{folder} was written by {about.num_ranks} ranks of {about.engine}; here are "
                f"{here[1]} of {here[0]}. Launch as many, with the same configuration."
            )
        self.accelerator.load_state(str(folder / "sharded"))
        if self.average is not None:
            rank = self.accelerator.process_index
            load_tensors_into(self.average.mean, folder / f"averaged-{rank}.safetensors")
            self.average.num_updates = about.averaged_updates

    def _load_optimizer(self, path: Path) -> None:
        stored = load_plain(path)
        if stored["names"] != self.names:
            raise CheckpointError(f"{path} belongs to parameters of other names or another order.")
        self.optimizer.load_state_dict(stored["state"])
        if self.average is not None:
            self.average.num_updates = stored["averaged_updates"]
