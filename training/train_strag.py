"""Train 4D-STraG: motion latents by flow matching, guided by image, depth and text.

    python -m training.train_strag tiny --data.train D/train --data.validation D/validation
    accelerate launch --config_file training/launch/fsdp.yaml -m training.train_strag own
    python -m training.train_strag tiny --run.num-steps 3 --run.precision fp32  # CPU

Writes `strag.safetensors` to the output folder. Settings: `--help` after a recipe's name.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from more4d_backend.strag.conditioning import clip_picture, encode_condition, perceived_picture
from more4d_backend.strag.motion_perception import Guidance
from more4d_backend.strag.pipeline import StragPipeline
from more4d_backend.strag.profile import StragWeightsProfile
from more4d_backend.strag.transformer import StragTransformer
from more4d_backend.tiny.text_encoder import ByteTextEncoder, ByteTextModel
from more4d_backend.wan.sampling import NUM_TRAIN_TIMESTEPS
from more4d_backend.weights.kinds import WeightKind

from . import networks
from .data.conditions import FrozenEncoders, dropped, dropped_captions
from .data.encoded import EncodedBatch, EncodedSamples
from .data.loader import TrainingLoader
from .data.samples import TrainingBatch
from .data.sources import training_samples
from .evaluation.strag_validation import generated_motion
from .losses import add_noise, at_latent_size, flow_matching_loss, visibility_weight
from .recipes import StragConfig
from .run.blocks import set_blocks_up
from .run.command_line import parse_config, train_and_exit
from .run.export import Export
from .run.flow_matching import flow_matching_update, loss_at_fixed_levels
from .run.loop import TrainingRun
from .run.objectives import Objective
from .run.settings import EXPORT_DTYPES
from .run.validation import ValidationSet, fixed_generator, mean_metrics, show
from .targets import normalized_motion

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    from more4d_backend.strag.motion_vae import MotionVAE

_log = logging.getLogger(__name__)

_CAPTIONS_EVERY = 100
"""Updates between two looks at whether captions are used."""
_CAPTIONS_AT = 0.9
"""Noise level for it: with less, the motion itself shows what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StragInputs:
    """What the transformer is given of a batch, besides noise."""

    latent: Float[Tensor, "batch 16 latent_frame latent_height latent_width"]
    """Motion, clean."""

    channels: Float[Tensor, "batch 48 latent_frame latent_height latent_width"]
    """Control, zeros, depth."""

    reference_latent: Float[Tensor, "batch 16 latent_height latent_width"]
    """Leads the video."""

    picture: Float[Tensor, "batch 3 height width"]
    """What motion perception sees, in [0, 1]."""

    text: Float[Tensor, "batch 512 text_dim"] | tuple[str, ...]
    """Text tokens; captions where the text encoder learns."""

    image_tokens: Float[Tensor, "batch token token_dim"] | None
    """CLIP's tokens, for sizes that have them."""

    weight: Float[Tensor, "batch 1 latent_frame latent_height latent_width"]
    """How much each place counts."""


class StragObjective(Objective):
    """The transformer's velocity against the true one."""

    def __init__(
        self,
        transformer: StragTransformer,
        config: StragConfig,
        text_encoder: ByteTextModel | None = None,
    ) -> None:
        """Take the transformer, and a text encoder that learns with it."""
        profile, dtype = networks.strag_profile(config), EXPORT_DTYPES[config.run.export_precision]
        exports = [
            Export(
                kind=WeightKind.STRAG.value,
                prefix="transformer.",
                file="strag.safetensors",
                dtype=dtype,
                profile=profile.name,
            )
        ]
        if text_encoder is not None:
            kind, file = WeightKind.BYTE_TEXT.value, "text_encoder.safetensors"
            exports += [Export(kind=kind, prefix="text_encoder.", file=file, dtype=dtype)]
        super().__init__(*exports)
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.unguided_frame = profile.unguided_frame
        self.motion_perception = config.ablation.motion_perception
        self.max_error = config.max_error

    def losses(
        self, inputs: StragInputs, sigma: Float[Tensor, "batch"], noise: Tensor
    ) -> Float[Tensor, "batch"]:
        """Return the loss of each sample."""
        text, guidance = inputs.text, None
        if isinstance(text, tuple):
            assert self.text_encoder is not None
            text = self.text_encoder(text)
        if self.motion_perception:
            latent_hw = inputs.latent.shape[-2], inputs.latent.shape[-1]
            features = self.transformer.encode_image(inputs.picture, latent_hw)
            guidance = Guidance(features=features, unguided_frame=self.unguided_frame)
        noisy = add_noise(inputs.latent, noise, sigma)
        velocity = self.transformer(
            hidden_states=torch.cat([noisy, inputs.channels], dim=1),
            timestep=NUM_TRAIN_TIMESTEPS * sigma,
            encoder_hidden_states=text,
            encoder_hidden_states_image=inputs.image_tokens,
            reference_latent=inputs.reference_latent,
            guidance=guidance,
            return_dict=False,
        )[0]
        return flow_matching_loss(
            velocity, inputs.latent, noise, inputs.weight, max_error=self.max_error
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StragGiven:
    """The frozen networks, and what lies between the data and the transformer."""

    config: StragConfig
    """The recipe."""

    profile: StragWeightsProfile
    """Its conventions."""

    vae: "AutoencoderKLWan"
    """Encodes pictures."""

    motion_vae: "MotionVAE"
    """Encodes motion."""

    encoders: FrozenEncoders
    """Text and image tokens."""

    @classmethod
    def load(cls, config: StragConfig, device: torch.device) -> "StragGiven":
        """Load the frozen networks onto the device."""
        profile, files, seed = networks.strag_profile(config), config.weights, config.run.seed
        dtype = networks.frozen_dtype(config.run.precision)
        vae = networks.rgb_vae(files, config.size, seed=seed, dtype=dtype)
        motion_vae = networks.motion_vae(files, config.size, profile, seed=seed, dtype=dtype)
        for module in (vae, motion_vae):
            nn.Module.to(module, device)
        text = None
        if config.train_text:
            text = ByteTextEncoder(networks.text_encoder_to_train(files, seed))
        encoders = FrozenEncoders.load(
            files, config.size, seed=seed, dtype=dtype, device=device, text=text
        )
        return cls(
            config=config, profile=profile, vae=vae, motion_vae=motion_vae, encoders=encoders
        )

    @property
    def about(self) -> dict[str, object]:
        """What encoded samples must agree with: see `training.data.encoded`."""
        size = self.config.data.size
        return {
            "kind": "strag",
            "profile": self.profile.name,
            "size": [size.num_frames, size.height, size.width],
        }

    @property
    def learned_text(self) -> ByteTextModel | None:
        """The text encoder, if it learns."""
        model = self.encoders.text_encoder.model if self.config.train_text else None
        assert model is None or isinstance(model, ByteTextModel)
        return model

    @torch.no_grad()
    def encode(
        self, batch: TrainingBatch, generator: torch.Generator | None = None
    ) -> EncodedBatch:
        """Encode a batch, with the VAE's noise from `generator` or without any."""
        motion = normalized_motion(batch, self.profile.motion)
        latent = self.motion_vae.encode(motion, sample=generator is not None, generator=generator)
        image = batch.video[:, 0].float() / 255
        condition = encode_condition(self.vae, image, batch.depth, motion.shape[2], self.profile)
        control, _, depth = condition.channels.chunk(3, dim=1)
        shown = torch.stack([clip_picture(picture, self.profile) for picture in image])
        image_tokens = self.encoders.image_tokens(shown)
        weight = visibility_weight(batch.visibility, self.config.hidden_weight)
        tensors = {
            "latent": latent,
            "control": control,
            "depth": depth,
            "reference": condition.reference_latent,
            "picture": torch.cat([perceived_picture(p, self.profile) for p in image]),
            "weight": at_latent_size(weight),
        }
        if image_tokens is not None:
            tensors["image_tokens"] = image_tokens
        return EncodedBatch(names=batch.names, captions=batch.captions, tensors=tensors)

    @torch.no_grad()
    def inputs(
        self,
        batch: TrainingBatch | EncodedBatch,
        generator: torch.Generator,
        *,
        training: bool = True,
    ) -> StragInputs:
        """Encode a batch, if it is not yet; in training, drop conditions as the recipe says."""
        config, dropouts = self.config, self.config.dropouts
        if isinstance(batch, TrainingBatch):
            batch = self.encode(batch, generator if training else None)
        control, reference = batch["control"], batch["reference"]
        image_tokens = batch["image_tokens"] if "image_tokens" in batch.tensors else None
        if training:
            control = dropped(control, dropouts.control, generator)
            reference = dropped(reference, dropouts.reference, generator)
            image_tokens = dropped(image_tokens, dropouts.image_tokens, generator)
        dropout = dropouts.text if training else 0.0
        if config.train_text:
            text = dropped_captions(batch.captions, dropout, generator)
        else:
            text = self.encoders.text(batch.captions, dropout, generator)
        return StragInputs(
            latent=batch["latent"],
            channels=torch.cat([control, torch.zeros_like(control), batch["depth"]], dim=1),
            reference_latent=reference,
            picture=batch["picture"],
            text=text,
            image_tokens=image_tokens,
            weight=batch["weight"],
        )


def train(config: StragConfig) -> Path:
    """Train, and return the path of the weights."""
    # 1. The run: devices, seeds, what to continue.
    run = TrainingRun(config)

    # 2. The data.
    dataset = training_samples(config.data, run.device, novel_views=False)
    validation = ValidationSet(config.data, config.run.validate_every, run.device)
    loader = TrainingLoader.of_run(dataset, config, run.rank, run.num_ranks)

    # 3. The networks, the objective and its optimiser.
    given = StragGiven.load(config, run.device)
    if isinstance(dataset, EncodedSamples):
        dataset.check(given.about)
    transformer = networks.strag_to_train(config)
    set_blocks_up(transformer, config.run)
    run.prepare(StragObjective(transformer, config, given.learned_text), loader)
    if run.is_new and len(validation):
        run.record(_validate(run, given, validation))

    # 4. The loop.
    for batch in run.batches():
        generator = run.generator()
        inputs = given.inputs(batch, generator)
        noise = flow_matching_update(run, batch, inputs, generator, shift=given.profile.shift)
        if config.train_text and run.due(_CAPTIONS_EVERY):
            run.record({"caption_gain": _caption_gain(run, inputs, noise)})
        if run.due(config.run.validate_every) and len(validation):
            run.record(_validate(run, given, validation))

    # 5. The weights.
    path = run.write_weights()
    run.close()
    return path


@torch.no_grad()
def _caption_gain(run: TrainingRun, inputs: StragInputs, noise: Tensor) -> float:
    """How much larger the loss is with the captions of other samples, relative to it.

    About 0 as long as captions say nothing to the network.
    """
    text, level = inputs.text, torch.full((len(noise),), _CAPTIONS_AT, device=noise.device)
    others = text[1:] + text[:1] if isinstance(text, tuple) else text.roll(1, 0)
    own, other = (
        float(run.objective(replace(inputs, text=said), level, noise).mean())
        for said in (text, others)
    )
    return other / own - 1


@torch.no_grad()
def _validate(run: TrainingRun, given: StragGiven, validation: ValidationSet) -> dict[str, float]:
    """Loss at fixed noise levels with fixed noise; generated motion against the true one."""
    metrics, shown = [], []
    with run.evaluating():
        for index, batch in enumerate(validation.samples(run.device)):
            generator = fixed_generator(index, run.device)
            inputs = given.inputs(batch, generator, training=False)
            loss = loss_at_fixed_levels(run, inputs, generator)
            perceives = given.config.ablation.motion_perception
            result = generated_motion(
                run, _pipeline(run, given), batch, index, motion_perception=perceives
            )
            metrics.append({"loss": loss, **result.metrics})
            shown.append(result.shown)
    show(run, shown)
    return mean_metrics(metrics)


def _pipeline(run: TrainingRun, given: StragGiven) -> StragPipeline:
    transformer = run.module.get_submodule("transformer")
    assert isinstance(transformer, StragTransformer)
    encoders = given.encoders
    return StragPipeline(
        transformer,
        given.vae,
        given.motion_vae,
        encoders.text_encoder,
        encoders.image_encoder,
        profile=given.profile,
    )


if __name__ == "__main__":
    train_and_exit(lambda: parse_config("strag", StragConfig), train)
