"""One run of a trainer: devices, resuming, updates, checkpoints, metrics, and an orderly end.

    run = TrainingRun(config)
    run.prepare(objective, loader)
    for batch in run.batches():
        run.update(batch, lambda: run.objective(...))     # per-sample losses
    run.close()

`objective` is a module whose `forward` returns the loss of each sample. Only it is wrapped for
several ranks, so every gradient passes through its `forward`.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.encoded import EncodedBatch
from ..data.loader import TrainingLoader
from ..data.samples import TrainingBatch
from ..gather import gather_fragments
from .averaging import ParameterAverage
from .checkpoints import CheckpointFolder, check_same_recipe, plain, read_about
from .errors import NotFiniteError, explaining_out_of_memory, not_finite_message
from .fragments import allocate, fragments_of
from .objectives import Objective
from .optimizers import fuse, make_optimizer, trained_parameters
from .records import RunRecords, check_tracker
from .settings import TrainerSettings
from .sharding import (
    Engine,
    check_launch,
    check_same_config,
    check_shared_folder,
    deepspeed_backward,
    deepspeed_step,
    engine_of,
    launch_of,
    new_accelerator,
    offloaded,
    set_engine_up,
)
from .state import RunState
from .termination import EXIT_TERMINATED, on_termination

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

_log = logging.getLogger(__name__)


class TrainingRun:
    """What is the same for every trainer."""

    def __init__(self, config: TrainerSettings) -> None:
        """Take the devices, seed every generator, and look for a run to continue.

        Raises:
            SettingsError: the tracker or DeepSpeed is missing, one process is to share parameters,
                ranks have different settings, configurations or output folders, or the output
                folder has a run and resuming is off.
        """
        from accelerate.utils import set_seed

        self.config, self.settings = config, config.run
        check_tracker(self.settings.tracker)
        check_launch()
        self.output = self.settings.output
        self.accelerator = new_accelerator(self.settings)
        self.device = self.accelerator.device
        self.rank, self.num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.engine: Engine | None = engine_of(self.accelerator)
        self.is_sharded = self.engine is not None
        self._plain_config = plain(config)
        launch = launch_of(self.accelerator)
        check_same_config(self.accelerator, {**self._plain_config, "launch": launch})
        check_shared_folder(self.accelerator, self.output)
        set_seed(self.settings.seed, device_specific=False)
        self.step = 0
        self.progress = 0.0
        self.checkpoints = CheckpointFolder(self.output, self.settings.checkpoints_kept)
        self._checkpoint = self.checkpoints.to_resume(self.settings.resume)
        self._terminated = self._asked_to_stop = False
        self._losses: list[float] = []
        self._wait_s = 0.0

    def prepare(
        self,
        objective: nn.Module,
        loader: TrainingLoader,
        learning_rate_scales: Mapping[str, float] | None = None,
        *,
        fill: Callable[[nn.Module], None] | None = None,
    ) -> None:
        """Make the optimiser, spread the objective over the ranks, and resume.

        `learning_rate_scales` maps the start of parameter names to a factor on the learning rate.
        `fill` gives values to an objective on the meta device, once FSDP2 has split it.

        Raises:
            CheckpointError: the checkpoint to resume from is damaged, or of another recipe.
            SettingsError: what is trained cannot be trained so; see `make_optimizer`.
            TrainingMemoryError: the device is full; says what to change.
        """
        with self._explaining_out_of_memory():
            self._prepare(objective, loader, learning_rate_scales, fill)

    def _prepare(
        self,
        objective: nn.Module,
        loader: TrainingLoader,
        learning_rate_scales: Mapping[str, float] | None,
        fill: Callable[[nn.Module], None] | None,
    ) -> None:
        optimizer, self._names = make_optimizer(
            objective, self.config.optimizer, learning_rate_scales or {}
        )
        self.loader = loader
        if self.is_sharded:
            set_engine_up(self.accelerator, objective, self.config)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.module = cast(nn.Module, self.accelerator.unwrap_model(self.objective))
        if fill is not None:
            allocate(self.module, self.optimizer, self._names, self.device)
            fill(self.module)
        if self.engine not in ("zero2", "zero3"):  # those have flat parameters, and their own ways
            fuse(self.optimizer)
        self.trained = trained_parameters(self.module)
        self.average = self._new_average()
        self.state = RunState(
            accelerator=self.accelerator,
            engine=self.engine,
            module=self.module,
            optimizer=self.optimizer,
            names=self._names,
            average=self.average,
            exports=objective.exports if isinstance(objective, Objective) else (),
        )
        self._resume()
        if self.is_main:
            self.checkpoints.remove_unfinished()
        self._records = RunRecords(self.accelerator, self.output, self._plain_config, self.step)
        self._start_s = time.perf_counter() - self._records.seconds_before
        self._last_step_s = time.perf_counter()
        _log.info(
            "%d parameters in %d tensors are trained on %d ranks, %s, from step %d",
            sum(p.numel() for p in self.trained.values()),
            *(len(self.trained), self.num_ranks, self.device, self.step),
        )

    def batches(self) -> Iterator[TrainingBatch | EncodedBatch]:
        """Yield batches on the device until the last step is done, or time is over; save meanwhile.

        After SIGTERM the update that is running is finished, a checkpoint is written, and
        SystemExit ends the run.
        """
        with on_termination(self._ask_to_stop):
            batches = iter(self.loader)
            while self.step < self.settings.num_steps and self.progress < 1:
                before = self.step
                start = time.perf_counter()
                batch = next(batches).to(self.device)
                self._wait_s += time.perf_counter() - start
                yield batch
                if self.step > before:
                    self._after_update()

    def _after_update(self) -> None:
        done = self.step == self.settings.num_steps or self.progress >= 1
        if done or self._terminated or self.step % self.settings.checkpoint_every == 0:
            self.save()
        if self._terminated and not done:
            _log.warning("SIGTERM: stopped after step %d; the checkpoint is written", self.step)
            self.close()
            raise SystemExit(EXIT_TERMINATED)

    def update(self, batch: TrainingBatch | EncodedBatch, losses: Callable[[], Tensor]) -> None:
        """Compute per-sample losses and their gradient; after `accumulation` batches, step.

        Raises:
            NotFiniteError: a loss or the gradient is NaN or infinite; names the samples.
            TrainingMemoryError: the device is full; says what to change.
        """
        with (
            self._explaining_out_of_memory(),
            self.accelerator.accumulate(self.objective),
        ):
            per_sample = losses()
            has_zero = self.engine in ("zero2", "zero3")
            if not has_zero:  # before the loss is read, which waits for the device
                self.accelerator.backward(per_sample.mean())
            self._losses.append(self._mean_over_ranks(per_sample, batch))
            skipped = self._skips()
            if has_zero and not skipped:  # accelerate would step in the same call
                ends_update = self.accelerator.sync_gradients
                deepspeed_backward(self.objective, per_sample.mean(), ends_update=ends_update)
            if self.accelerator.sync_gradients:
                self._step(batch, skipped=skipped)

    def generator(self, *, same_on_all_ranks: bool = False) -> torch.Generator:
        """Return a generator for the present batch: a function of seed, place and rank alone.

        So random draws do not depend on how often a run was stopped.
        """
        place = [self.settings.seed, self.loader.state.position]
        place += [] if same_on_all_ranks else [1 + self.rank]
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator(self.device).manual_seed(seed)

    @property
    def is_new(self) -> bool:
        """True before the first update."""
        return self.step == 0

    def due(self, every: int) -> bool:
        """Whether something that happens every so many updates happens now."""
        finished = self.accelerator.sync_gradients
        return every > 0 and finished and self.step > 0 and self.step % every == 0

    def averaged(self) -> AbstractContextManager[None]:
        """Compute with the running mean of the parameters inside, if the recipe has one."""
        return nullcontext() if self.average is None else self.average.in_use()

    def record(self, metrics: Mapping[str, float]) -> None:
        """Add metrics of the present step to `metrics.jsonl` and to the tracker."""
        self._records.add(self.step, metrics)

    def show_picture(self, name: str, picture: "Image") -> None:
        """Hand a picture of the present step to the tracker, on rank 0."""
        self._records.show_picture(self.step, name, picture)

    def show_video(
        self, name: str, frames: Float[Tensor, "frame height width 3"], fps: float
    ) -> None:
        """Hand a video of the present step to the tracker, on rank 0; sRGB in [0, 1]."""
        self._records.show_video(self.step, name, frames, fps)

    def inside(self, do: Callable[[], T]) -> T:
        """Call what computes with the network otherwise than by its losses; on every rank alike."""
        with self.accelerator.autocast():
            return self.objective(inside=do)[0] if self.is_sharded else do()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have the objective in evaluation mode, with the running mean if there is one."""
        self.objective.eval()
        try:
            with self._explaining_out_of_memory(), self.averaged():
                yield
        finally:
            self.objective.train()

    def write_weights(self) -> Path:
        """Write the weights for use, the running mean if there is one; every rank calls.

        Sharded ones are gathered from the checkpoint of the last step.
        """
        exports = self.state.exports
        path = self.output / exports[0].file
        if self.is_main and self.is_sharded:
            gather_fragments(self.checkpoints.path(self.step), path)
        elif self.is_main:
            with self.averaged():
                for export in exports:
                    export.write(self.module.state_dict(), self.output / export.file)
        self.accelerator.wait_for_everyone()
        return path

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        if self.is_main:
            self.checkpoints.begin(self.step)
        self.accelerator.wait_for_everyone()
        folder = self.checkpoints.temporary(self.step)
        self.state.save(folder)
        self.accelerator.wait_for_everyone()
        if self.is_main:
            path = self.checkpoints.finish(self.step, self.loader.state, self._plain_config)
            _log.info("Wrote %s", path)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """End the run: metrics are written out."""
        # The process group stays: the process may train something else (`ablations`).
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()

    def _explaining_out_of_memory(self) -> AbstractContextManager[None]:
        return explaining_out_of_memory(
            self.settings, sharded=self.is_sharded, offloads=bool(offloaded(self.accelerator))
        )

    def _new_average(self) -> ParameterAverage | None:
        decay = self.settings.ema_decay
        if decay is None:
            return None
        return ParameterAverage(fragments_of(self.engine, self.module, self.optimizer), decay)

    def _resume(self) -> None:
        path = self._checkpoint
        if path is None:
            return
        about = read_about(path)
        check_same_recipe(about.config, self._plain_config, path)
        self.loader.resume(about.data)
        self.state.load(path)
        self.step = about.step
        if not self.state.load_random_state(path):
            _log.warning("%s has no random state for rank %d: from the seed", path, self.rank)
        _log.info("Continuing %s", path)

    def _ask_to_stop(self) -> None:
        self._asked_to_stop = True

    def _mean_over_ranks(self, per_sample: Tensor, batch: TrainingBatch | EncodedBatch) -> float:
        """Mean loss of all ranks, who learn in the same exchange that one of them must stop."""
        mine = per_sample.detach().float().mean()
        mine_told = mine.new_tensor([float(self._asked_to_stop), self._own_progress()])
        everywhere = cast(Tensor, self.accelerator.gather(torch.cat([mine[None], mine_told])))
        means, stops, progress = everywhere.view(-1, 3).unbind(1)
        self._terminated, self.progress = bool(stops.any()), min(1.0, float(progress.max()))
        mean = float(means.mean())
        if not math.isfinite(mean):
            raise NotFiniteError(not_finite_message(per_sample, batch.names, self.step))
        return mean

    def _own_progress(self) -> float:
        """Share of the run that is done, by updates or by this rank's clock."""
        by_steps, minutes = self.step / self.settings.num_steps, self.settings.minutes
        if minutes is None:
            return by_steps
        return max(by_steps, (time.perf_counter() - self._start_s) / (60 * minutes))

    def _skips(self) -> bool:
        """Whether this batch completes an update that is left out."""
        loss = sum(self._losses) / len(self._losses)
        return self.accelerator.sync_gradients and self.config.optimizer.skips(self.step, loss)

    def _step(self, batch: TrainingBatch | EncodedBatch, *, skipped: bool) -> None:
        settings = self.config.optimizer
        loss = sum(self._losses) / len(self._losses)
        rate = settings.learning_rate_at(self.step, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        metrics = {"loss": loss, "learning_rate": rate}
        if skipped:
            _log.warning("The update after step %d is left out: its loss is %g", self.step, loss)
        else:
            if self.engine in ("zero2", "zero3"):
                norm = deepspeed_step(self.objective, settings.max_norm_at(self.step))
                self._check_norm(norm, batch)
                metrics["gradient_norm"] = norm
            else:
                metrics["gradient_norm"] = self._clipped_norm(batch)
                self.optimizer.step()
            if self.average is not None:
                self.average.update()
        self.optimizer.zero_grad()
        self._losses.clear()
        self.step += 1
        now = time.perf_counter()
        self.record(metrics | {"step_s": now - self._last_step_s, "data_wait_s": self._wait_s})
        self._last_step_s, self._wait_s = now, 0.0

    def _clipped_norm(self, batch: TrainingBatch | EncodedBatch) -> float:
        settings = self.config.optimizer
        limit = settings.max_norm_at(self.step)
        parameters = list(self.trained.values())
        norm = float(cast(Tensor, self.accelerator.clip_grad_norm_(parameters, limit)))
        self._check_norm(norm, batch)
        ratio = norm / limit
        if settings.spike_ratio is not None and (
            self.step >= settings.max_norm_steps and ratio > settings.spike_ratio
        ):
            self.accelerator.clip_grad_norm_(parameters, limit / min(ratio, 10))
        return norm

    def _check_norm(self, norm: float, batch: TrainingBatch | EncodedBatch) -> None:
        if not math.isfinite(norm):
            raise NotFiniteError(
                f"The gradient of the update after step {self.step} is not finite, though every "
                f"loss is. Its last samples were {', '.join(batch.names)}. Nothing was applied."
            )
