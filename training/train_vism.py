"""Train 4D-ViSM: to fill the holes of rendered videos, as a LoRA on Fun-InP or whole.

    python -m training.train_vism tiny --data.train D/train --data.validation D/validation
    python -m training.train_vism tiny-lora --weights.base runs/vism/vism_base.safetensors
    accelerate launch --num_processes 8 -m training.train_vism own
    python -m training.train_vism tiny --run.num-steps 3 --run.precision fp32  # CPU

Writes `vism_lora.safetensors` (kohya names, as released) or `vism_base.safetensors` to the output
folder. Settings: `--help` after a recipe's name.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from more4d_backend.strag.profile import OWN
from more4d_backend.vism.conditioning import condition_latent
from more4d_backend.vism.pipeline import VismPipeline, VismSettings
from more4d_backend.wan.latents import encode_video
from more4d_backend.wan.sampling import NUM_TRAIN_TIMESTEPS, SamplingSettings
from more4d_backend.weights.kinds import WeightKind

from . import networks
from .data.conditions import FrozenEncoders, dropped
from .data.encoded import EncodedBatch, EncodedSamples
from .data.holes import HoleSample, holes_of
from .data.loader import TrainingLoader
from .data.samples import TrainingBatch
from .data.sources import training_samples
from .losses import add_noise, flow_matching_loss
from .recipes import VismConfig
from .run.blocks import set_blocks_up
from .run.command_line import parse_config, train_and_exit
from .run.export import Export
from .run.flow_matching import flow_matching_update, loss_at_fixed_levels
from .run.loop import TrainingRun
from .run.objectives import Objective
from .run.settings import EXPORT_DTYPES
from .run.validation import ShownSample, ValidationSet, fixed_generator, mean_metrics, show

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

_log = logging.getLogger(__name__)

_SAMPLING = SamplingSettings(num_steps=20, guidance_scale=1.5)
_MAGENTA = (1.0, 0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class VismInputs:
    """What the transformer is given of a batch, besides noise."""

    latent: Float[Tensor, "batch 16 latent_frame latent_height latent_width"]
    """The whole video, clean."""

    condition: Float[Tensor, "batch 20 latent_frame latent_height latent_width"]
    """Mask, and the video with holes."""

    text: Float[Tensor, "batch 512 text_dim"]
    """Text tokens."""

    image_tokens: Float[Tensor, "batch token token_dim"] | None
    """CLIP's tokens of the first frame, for sizes that have them."""


class VismObjective(Objective):
    """The transformer's velocity against the true one."""

    def __init__(self, transformer: "WanTransformer3DModel", config: VismConfig) -> None:
        is_lora = config.mode == "lora"
        kind = WeightKind.VISM_LORA if is_lora else WeightKind.FUN_INP
        super().__init__(
            Export(
                kind=kind.value,
                prefix="transformer.",
                file="vism_lora.safetensors" if is_lora else "vism_base.safetensors",
                dtype="float32" if is_lora else EXPORT_DTYPES[config.run.export_precision],
                lora_alpha=config.lora_alpha if is_lora else None,
            )
        )
        self.transformer = transformer

    def losses(
        self, inputs: VismInputs, sigma: Float[Tensor, "batch"], noise: Tensor
    ) -> Float[Tensor, "batch"]:
        """Return the loss of each sample."""
        noisy = add_noise(inputs.latent, noise, sigma)
        velocity = self.transformer(
            hidden_states=torch.cat([noisy, inputs.condition], dim=1),
            timestep=NUM_TRAIN_TIMESTEPS * sigma,
            encoder_hidden_states=inputs.text,
            encoder_hidden_states_image=inputs.image_tokens,
            return_dict=False,
        )[0]
        return flow_matching_loss(velocity, inputs.latent, noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class VismGiven:
    """The frozen networks."""

    config: VismConfig
    """The recipe."""

    vae: "AutoencoderKLWan"
    """Encodes videos."""

    encoders: FrozenEncoders
    """Text and image tokens."""

    @classmethod
    def load(cls, config: VismConfig, device: torch.device) -> "VismGiven":
        """Load the frozen networks onto the device."""
        files, size, seed = config.weights, config.size, config.run.seed
        dtype = networks.frozen_dtype(config.run.precision)
        vae = networks.rgb_vae(files, size, seed=seed, dtype=dtype)
        nn.Module.to(vae, device)
        encoders = FrozenEncoders.load(files, size, seed=seed, dtype=dtype, device=device)
        return cls(config=config, vae=vae, encoders=encoders)

    @property
    def about(self) -> dict[str, object]:
        """What encoded samples must agree with: see `training.data.encoded`."""
        size = self.config.data.size
        return {"kind": "vism", "size": [size.num_frames, size.height, size.width]}

    @torch.no_grad()
    def encode(
        self,
        batch: TrainingBatch,
        holes: list[HoleSample],
        generator: torch.Generator | None = None,
    ) -> EncodedBatch:
        """Encode a batch, with the VAE's noise from `generator` or without any."""
        targets = torch.stack([sample.target for sample in holes])
        videos = rearrange(2 * targets - 1, "b f h w c -> b c f h w")
        conditions = [condition_latent(self.vae, h.rendered, h.hole_mask) for h in holes]
        sample = generator is not None
        tensors = {
            "latent": encode_video(self.vae, videos, sample=sample, generator=generator),
            "condition": torch.cat(conditions).float(),
        }
        image_tokens = self.encoders.image_tokens(batch.video[:, 0].float() / 255)
        if image_tokens is not None:
            tensors["image_tokens"] = image_tokens
        return EncodedBatch(names=batch.names, captions=batch.captions, tensors=tensors)

    def encoded(
        self, batch: TrainingBatch | EncodedBatch, generator: torch.Generator
    ) -> EncodedBatch:
        """Draw holes and encode a batch, if it is not encoded yet."""
        if isinstance(batch, EncodedBatch):
            return batch
        return self.encode(batch, self.holes(batch, generator), generator)

    def holes(self, batch: TrainingBatch, generator: torch.Generator) -> list[HoleSample]:
        """Draw the holes of a batch."""
        return holes_of(batch, self.config.holes, generator)

    @torch.no_grad()
    def inputs(
        self, batch: EncodedBatch, generator: torch.Generator, *, training: bool = True
    ) -> VismInputs:
        """Take an encoded batch; in training, drop conditions as often as the recipe says."""
        dropouts = self.config.dropouts
        image_tokens = batch["image_tokens"] if "image_tokens" in batch.tensors else None
        if training:
            image_tokens = dropped(image_tokens, dropouts.image_tokens, generator)
        dropout = dropouts.text if training else 0.0
        return VismInputs(
            latent=batch["latent"],
            condition=batch["condition"],
            text=self.encoders.text(batch.captions, dropout, generator),
            image_tokens=image_tokens,
        )


def train(config: VismConfig) -> Path:
    """Train, and return the path of the weights."""
    # 1. The run: devices, seeds, what to continue.
    run = TrainingRun(config)

    # 2. The data.
    dataset = training_samples(config.data, run.device, novel_views=config.holes.novel > 0)
    if config.holes.novel > 0 and not (
        isinstance(dataset, EncodedSamples) or dataset.has_novel_views
    ):
        _log.warning("Not every sample has a novel view: batches without take other holes.")
    validation = ValidationSet(config.data, config.run.validate_every, run.device)
    loader = TrainingLoader.of_run(dataset, config, run.rank, run.num_ranks)

    # 3. The networks, the objective and its optimiser.
    given = VismGiven.load(config, run.device)
    if isinstance(dataset, EncodedSamples):
        dataset.check(given.about)
    transformer = networks.vism_to_train(config)
    set_blocks_up(transformer, config.run)
    run.prepare(VismObjective(transformer, config), loader)
    if run.is_new and len(validation):
        run.record(_validate(run, given, validation))

    # 4. The loop.
    for batch in run.batches():
        generator = run.generator()
        inputs = given.inputs(given.encoded(batch, generator), generator)
        flow_matching_update(run, batch, inputs, generator, shift=OWN.shift)
        if run.due(config.run.validate_every) and len(validation):
            run.record(_validate(run, given, validation))

    # 5. The weights.
    path = run.write_weights()
    run.close()
    return path


@torch.no_grad()
def _validate(run: TrainingRun, given: VismGiven, validation: ValidationSet) -> dict[str, float]:
    """Loss at fixed noise levels with fixed noise; PSNR of filled holes and of what was known."""
    metrics, shown = [], []
    with run.evaluating():
        for index, batch in enumerate(validation.samples(run.device)):
            generator = fixed_generator(index, run.device)
            holes = holes_of(batch, given.config.holes, generator)
            inputs = given.inputs(given.encode(batch, holes), generator, training=False)
            loss = loss_at_fixed_levels(run, inputs, generator)
            filled = _filled(run, given, batch, holes[0], index)
            metrics.append({"loss": loss, **_psnr(filled, holes[0])})
            shown.append(_shown(batch, filled, holes[0]))
    show(run, shown)
    return mean_metrics(metrics)


def _filled(
    run: TrainingRun, given: VismGiven, batch: TrainingBatch, holes: HoleSample, index: int
) -> Float[Tensor, "frame height width 3"]:
    encoders = given.encoders
    pipeline = VismPipeline(
        _transformer(run), given.vae, encoders.text_encoder, encoders.image_encoder
    )
    settings = VismSettings(sampling=_SAMPLING, window_frames=batch.video.shape[1])
    return run.inside(
        lambda: pipeline.complete(
            holes.rendered,
            holes.hole_mask,
            batch.captions[0],
            image=batch.video[0, 0].float() / 255,
            settings=settings,
            generator=fixed_generator(index, torch.device("cpu")),
        )
    )


def _psnr(filled: Tensor, holes: HoleSample) -> dict[str, float]:
    """Decibels in holes and outside; a region without pixels counts as exact, 99 dB."""
    error = (filled - holes.target).square().mean(-1)
    regions = {"filled_psnr_db": holes.hole_mask, "known_psnr_db": ~holes.hole_mask}
    means = {k: float(error[m].mean()) if m.any() else 0.0 for k, m in regions.items()}
    return {k: min(99.0, -10 * math.log10(mean + 1e-12)) for k, mean in means.items()}


def _shown(batch: TrainingBatch, filled: Tensor, holes: HoleSample) -> ShownSample:
    marked = holes.rendered.clone()
    marked[holes.hole_mask] = marked.new_tensor(_MAGENTA)
    return ShownSample(
        name=batch.names[0],
        about=holes.kind,
        fps=batch.fps[0],
        videos={"holes": marked, "filled": filled, "true": holes.target},
    )


def _transformer(run: TrainingRun) -> "WanTransformer3DModel":
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    transformer = run.module.get_submodule("transformer")
    assert isinstance(transformer, WanTransformer3DModel)
    return transformer


if __name__ == "__main__":
    train_and_exit(lambda: parse_config("vism", VismConfig), train)
