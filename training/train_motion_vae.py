"""Train the motion VAE: adapters on both sides of a Wan VAE, and the VAE's decoder.

    python -m training.train_motion_vae tiny --data.train D/train --data.validation D/validation
    accelerate launch --num_processes 8 -m training.train_motion_vae own --run.output runs/vae
    python -m training.train_motion_vae tiny --run.num-steps 3 --run.precision fp32  # CPU

Writes `motion_vae.safetensors` to the output folder. Settings: `--help` after a recipe's name.
"""

import logging
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from more4d_backend.strag.motion_vae import MotionVAE
from more4d_backend.weights.kinds import WeightKind

from .data.loader import TrainingLoader
from .data.samples import TrainingBatch
from .data.sources import training_samples
from .losses import divergence_loss, motion_loss, visibility_weight
from .networks import PROFILES, motion_vae_to_train
from .recipes import MotionVaeConfig
from .run.command_line import parse_config, train_and_exit
from .run.export import Export
from .run.loop import TrainingRun
from .run.objectives import Objective
from .run.settings import EXPORT_DTYPES, SettingsError
from .run.validation import (
    ShownSample,
    ValidationSet,
    fixed_generator,
    mean_metrics,
    motion_picture,
    show,
)
from .targets import normalized_motion

_log = logging.getLogger(__name__)


class MotionVaeObjective(Objective):
    """Motion through the VAE and back, against what went in."""

    def __init__(self, motion_vae: MotionVAE, config: MotionVaeConfig) -> None:
        super().__init__(
            Export(
                kind=WeightKind.MOTION_VAE.value,
                prefix="motion_vae.",
                file="motion_vae.safetensors",
                dtype=EXPORT_DTYPES[config.run.export_precision],
                profile=PROFILES[config.profile].name,
            )
        )
        self.motion_vae = motion_vae
        self.divergence_weight = config.divergence_weight

    def losses(
        self,
        motion: Float[Tensor, "batch 3 frame height width"],
        weight: Float[Tensor, "batch 1 frame height width"],
        generator: torch.Generator,
        *,
        squared: bool = False,
    ) -> Float[Tensor, "batch"]:
        """Return the loss of each sample, per element of the motion."""
        posterior = self.motion_vae.distribution(motion)
        latent = self.motion_vae.standardize(posterior.sample(generator))
        error = motion_loss(self.motion_vae.decode(latent), motion, weight, squared=squared)
        divergence = divergence_loss(posterior.mean, posterior.logvar)
        return error + self.divergence_weight * divergence / motion[0].numel()


def train(config: MotionVaeConfig) -> Path:
    """Train, and return the path of the weights.

    Raises:
        SettingsError: the data is encoded already.
    """
    if config.data.encoded is not None:
        raise SettingsError("data.encoded is set, but the motion VAE learns from motion itself.")
    # 1. The run: devices, seeds, what to continue.
    run = TrainingRun(config)
    profile = PROFILES[config.profile]

    # 2. The data.
    dataset = training_samples(config.data, run.device, novel_views=False)
    validation = ValidationSet(config.data, config.run.validate_every, run.device)
    loader = TrainingLoader.of_run(dataset, config, run.rank, run.num_ranks)

    # 3. The network, its objective and its optimiser.
    objective = MotionVaeObjective(motion_vae_to_train(config), config)
    run.prepare(objective, loader, {"motion_vae.vae.decoder.": config.decoder_learning_rate})
    if run.is_new and len(validation):
        run.record(_validate(run, validation, config))

    # 4. The loop.
    for batch in run.batches():
        assert isinstance(batch, TrainingBatch)
        motion = normalized_motion(batch, profile.motion)
        weight = visibility_weight(batch.visibility, config.hidden_weight)
        squared = run.step < config.squared_steps
        run.update(
            batch,
            lambda m=motion, w=weight, s=squared: run.objective(m, w, run.generator(), squared=s),
        )
        if run.due(config.run.validate_every) and len(validation):
            run.record(_validate(run, validation, config))

    # 5. The weights.
    path = run.write_weights()
    run.close()
    return path


@torch.no_grad()
def _validate(
    run: TrainingRun, validation: ValidationSet, config: MotionVaeConfig
) -> dict[str, float]:
    """Loss with fixed noise, and the relative error R of the posterior's mode."""
    metrics, shown = [], []
    with run.evaluating():
        for index, batch in enumerate(validation.samples(run.device)):
            motion = normalized_motion(batch, PROFILES[config.profile].motion)
            weight = visibility_weight(batch.visibility, config.hidden_weight)
            loss = run.objective(motion, weight, fixed_generator(index, run.device))
            decoded = _round_trip(run, motion)
            metrics.append(
                {"loss": float(loss), "relative_error": _relative_error(decoded, motion, batch)}
            )
            videos = {
                "motion": motion_picture(motion[0], motion[0]),
                "decoded": motion_picture(decoded[0], motion[0]),
            }
            shown.append(ShownSample(name=batch.names[0], fps=batch.fps[0], videos=videos))
    show(run, shown)
    return mean_metrics(metrics)


def _round_trip(run: TrainingRun, motion: Tensor) -> Tensor:
    model = run.module.get_submodule("motion_vae")
    assert isinstance(model, MotionVAE)
    return run.inside(lambda: model.decode(model.encode(motion)).float())


def _relative_error(decoded: Tensor, motion: Tensor, batch: TrainingBatch) -> float:
    """Sum of absolute errors over sum of absolute motion, where seen, after frame 0."""
    seen = batch.visibility[:, None, 1:]
    error = ((decoded - motion)[:, :, 1:].abs() * seen).sum()
    return float(error / (motion[:, :, 1:].abs() * seen).sum().clamp_min(1e-12))


if __name__ == "__main__":
    train_and_exit(lambda: parse_config("motion_vae", MotionVaeConfig), train)
