"""The whole configuration of each trainer, and three recipes for it.

| recipe | what it is |
|---|---|
| released | the published hyperparameters (reference code, training scripts), at 49x368x512 |
| own | the same networks, trained with visibility, true cameras and all kinds of holes |
| tiny | the embedded networks, for one small GPU, a laptop or a test |
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from .data.holes import HoleSettings
from .data.samples import SampleSize
from .run.settings import DataSettings, OptimizerSettings, RunSettings, SettingsError

ProfileName = Literal["released", "own"]
SizeName = Literal["14b", "1.3b", "tiny"]

_RELEASED_SIZE = SampleSize(num_frames=49, height=368, width=512)
_TINY_SIZE = SampleSize(num_frames=49, height=128, width=176)
_TINY_OPTIMIZER = OptimizerSettings(
    learning_rate=1e-3, weight_decay=1e-2, eps=1e-10, warmup_steps=300, decay="cosine"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """Files of the networks that a trainer begins with or takes as given.

    None stands for what `python -m more4d_backend download` fetched, and in the tiny size for the
    embedded file; `base` stands there for a new network, but for a LoRA.
    """

    base: Path | None = None
    """The transformer to begin with: Fun-Control or a 4D-STraG one; Fun-InP for 4D-ViSM."""

    omnimae: Path | None = None
    """Image features, when beginning from Fun-Control."""

    motion_vae: Path | None = None
    """What the motion VAE trainer wrote, or the released one (converted to one file)."""

    wan_vae: Path | None = None
    """RGB VAE."""

    umt5: Path | None = None
    """Text encoder."""

    umt5_tokenizer: Path | None = None
    """Its tokenizer."""

    clip: Path | None = None
    """Image encoder, for sizes with image tokens."""

    text_encoder: Path | None = None
    """The text encoder that reads bytes, for the tiny size, in place of UMT5."""

    from_scratch: bool = False
    """Use no embedded file: a tiny network that is not named has random values from the seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropouts:
    """How often a sample is trained without one of its conditions."""

    text: float = 0.1
    """The empty text in place of the caption."""

    image_tokens: float = 0.1
    """Zeros in place of CLIP's tokens."""

    control: float = 0.0
    """Zeros in place of the control latent (4D-STraG)."""

    reference: float = 0.0
    """Zeros in place of the reference latent (4D-STraG)."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(
                    f"dropouts.{name} is {getattr(self, name)}; expected 0 to less than 1."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionVaeConfig:
    """Everything that decides a training of the motion VAE."""

    run: RunSettings
    """See `RunSettings`."""

    data: DataSettings
    """See `DataSettings`."""

    optimizer: OptimizerSettings
    """See `OptimizerSettings`."""

    profile: ProfileName
    """How motion is normalised and decoded."""

    size: SizeName
    """Only `tiny` may begin with random networks."""

    adapter_width: int = 128
    """Channels inside the adapters."""

    adapter_norm: bool = True
    """Group norms in the adapters, as released; narrow ones do better without."""

    decoder_learning_rate: float = 0.1
    """Of the VAE's decoder, relative to the adapters'."""

    hidden_weight: float = 0.1
    """How much the motion of a point counts where it is hidden; 1 where it is seen."""

    divergence_weight: float = 1e-6
    """Of the latents' divergence from a normal distribution, summed, against the summed error."""

    squared_steps: int = 0
    """Updates at the beginning with the squared instead of the absolute error. The absolute one
    alone, from scratch, settles at no motion at all."""

    weights: WeightFiles = field(default_factory=WeightFiles)
    """`wan_vae` to begin with, or `motion_vae` to go on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """Parts of 4D-STraG that can be left out, to see what they do (paper, table 4)."""

    depth_normalization: bool = True
    """Divide motion by the depth of each point; otherwise by the median depth of the picture."""

    motion_perception: bool = True
    """Guide the blocks by image features."""

    depth_latent: bool = True
    """Tell the network the depth of frame 0."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the parts that are."""
        names = ("depth_normalization", "motion_perception", "depth_latent")
        return tuple(name.replace("_", "-") for name in names if not getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class StragConfig:
    """Everything that decides a training of 4D-STraG."""

    run: RunSettings
    """See `RunSettings`."""

    data: DataSettings
    """See `DataSettings`."""

    optimizer: OptimizerSettings
    """See `OptimizerSettings`."""

    profile: ProfileName
    """What lies between the data and the network."""

    size: SizeName
    """Of the transformer."""

    dropouts: Dropouts = field(default_factory=Dropouts)
    """See `Dropouts`."""

    hidden_weight: float = 0.1
    """How much the motion of a point counts where it is hidden; 1 where it is seen."""

    max_error: float | None = None
    """Elements that are off by more are left out of the loss."""

    train_text: bool = False
    """Train the text encoder that reads bytes along, in the tiny size; it is written too, and
    stays as it is for 4D-ViSM."""

    train_perception: bool = False
    """Train the image encoder of motion perception too; without a pretrained one it must be."""

    ablation: Ablation = field(default_factory=Ablation)
    """See `Ablation`."""

    weights: WeightFiles = field(default_factory=WeightFiles)
    """See `WeightFiles`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VismConfig:
    """Everything that decides a training of 4D-ViSM."""

    run: RunSettings
    """See `RunSettings`."""

    data: DataSettings
    """See `DataSettings`."""

    optimizer: OptimizerSettings
    """See `OptimizerSettings`."""

    size: SizeName
    """Of the transformer."""

    mode: Literal["lora", "full"] = "lora"
    """Train a LoRA on the base, or the whole transformer."""

    lora_rank: int = 128
    """Of every adapted layer."""

    lora_alpha: float = 64.0
    """The LoRA acts with alpha / rank."""

    dropouts: Dropouts = field(default_factory=Dropouts)
    """Of text and image tokens."""

    holes: HoleSettings = field(default_factory=HoleSettings)
    """Where the holes to be filled come from."""

    weights: WeightFiles = field(default_factory=WeightFiles)
    """See `WeightFiles`."""


def _data(data: Path, size: SampleSize) -> DataSettings:
    return DataSettings(train=data / "train", validation=data / "validation", size=size)


def motion_vae_released(data: Path, output: Path) -> MotionVaeConfig:
    """Published: 5 000 steps of single samples at 384x512, L1, decoder at a tenth of the rate."""
    return MotionVaeConfig(
        run=RunSettings(output=output, num_steps=5000, batch_size=1, seed=40),
        data=_data(data, SampleSize(num_frames=49, height=384, width=512)),
        optimizer=OptimizerSettings(learning_rate=5e-6, weight_decay=1e-2, warmup_steps=100),
        profile="released",
        size="14b",
        hidden_weight=1.0,
    )


def motion_vae_own(data: Path, output: Path) -> MotionVaeConfig:
    """Adapters that learn, hidden points that count less, squared error first."""
    released = motion_vae_released(data, output)
    return replace(
        released,
        optimizer=replace(released.optimizer, learning_rate=2e-5),
        profile="own",
        hidden_weight=0.1,
        squared_steps=1000,
    )


def motion_vae_tiny(data: Path, output: Path) -> MotionVaeConfig:
    """The embedded one: VAE of width 16, narrow adapters."""
    return MotionVaeConfig(
        run=RunSettings(
            output=output, num_steps=20_000, batch_size=4, ema_decay=0.999, checkpoint_every=500
        ),
        data=_data(data, _TINY_SIZE),
        optimizer=OptimizerSettings(learning_rate=5e-4, weight_decay=1e-3, warmup_steps=100),
        profile="own",
        size="tiny",
        adapter_width=32,
        adapter_norm=False,
        decoder_learning_rate=1.0,
        squared_steps=2000,
    )


def strag_released(data: Path, output: Path) -> StragConfig:
    """Published: 2 000 steps on the first 6 000 samples, 3 per GPU on 4 GPUs."""
    return StragConfig(
        run=RunSettings(
            output=output, num_steps=2000, batch_size=3, checkpoint_every=50, checkpoints_kept=5
        ),
        data=replace(_data(data, _RELEASED_SIZE), max_samples=6000),
        optimizer=OptimizerSettings(
            learning_rate=2e-5,
            weight_decay=3e-2,
            eps=1e-10,
            warmup_steps=100,
            max_norm=0.05,
            max_norm_start=0.25,
            max_norm_steps=1000,
            spike_ratio=5.0,
            skip_above=0.25,
        ),
        profile="released",
        size="14b",
        dropouts=Dropouts(text=0.1, image_tokens=0.02, control=0.02, reference=0.02),
        hidden_weight=1.0,
        max_error=50.0,
    )


def strag_own(data: Path, output: Path) -> StragConfig:
    """All samples, the true cameras, hidden points that count less, no update left out."""
    released = strag_released(data, output)
    return replace(
        released,
        data=replace(released.data, max_samples=None),
        optimizer=replace(released.optimizer, skip_above=None, spike_ratio=None),
        profile="own",
        hidden_weight=0.1,
        max_error=None,
    )


def strag_tiny(data: Path, output: Path) -> StragConfig:
    """The embedded one: 6 layers of width 256, image features and text encoder trained along."""
    return StragConfig(
        run=RunSettings(
            output=output,
            num_steps=20_000,
            batch_size=64,
            ema_decay=0.998,
            gradient_checkpointing=False,
            checkpoint_every=1000,
            validate_every=1000,
        ),
        data=_data(data, _TINY_SIZE),
        optimizer=_TINY_OPTIMIZER,
        profile="own",
        size="tiny",
        dropouts=Dropouts(text=0.1, image_tokens=0.0, control=0.02, reference=0.02),
        train_text=True,
        train_perception=True,
    )


def vism_released(data: Path, output: Path) -> VismConfig:
    """Published: 10 000 steps of a LoRA of rank 128, on holes from the original viewpoint alone."""
    return VismConfig(
        run=RunSettings(
            output=output, num_steps=10_000, batch_size=2, checkpoint_every=100, checkpoints_kept=5
        ),
        data=_data(data, _RELEASED_SIZE),
        optimizer=OptimizerSettings(
            learning_rate=1e-4, weight_decay=3e-2, eps=1e-10, max_norm=0.05
        ),
        size="14b",
        holes=HoleSettings(original=1.0, round_trip=0.0, novel=0.0),
    )


def vism_own(data: Path, output: Path) -> VismConfig:
    """Also holes from camera parallax and frame borders."""
    return replace(vism_released(data, output), holes=HoleSettings())


def vism_tiny(data: Path, output: Path) -> VismConfig:
    """The embedded base, 3 layers of width 256, trained whole."""
    return VismConfig(
        run=RunSettings(
            output=output,
            num_steps=20_000,
            batch_size=32,
            ema_decay=0.998,
            gradient_checkpointing=False,
            checkpoint_every=1000,
            validate_every=1000,
        ),
        data=_data(data, _TINY_SIZE),
        optimizer=_TINY_OPTIMIZER,
        size="tiny",
        mode="full",
        dropouts=Dropouts(text=0.1, image_tokens=0.0),
    )


def vism_tiny_lora(data: Path, output: Path) -> VismConfig:
    """The embedded LoRA, on the embedded base: name it with `--weights.base`."""
    base = vism_tiny(data, output)
    return replace(
        base,
        run=replace(base.run, num_steps=5000),
        optimizer=replace(base.optimizer, learning_rate=2e-3),
        mode="lora",
        lora_rank=16,
        lora_alpha=16.0,
    )


Recipe = Callable[[Path, Path], MotionVaeConfig | StragConfig | VismConfig]

_VISM: dict[str, Recipe] = {"released": vism_released, "own": vism_own}

RECIPES: dict[str, dict[str, Recipe]] = {
    "motion_vae": {
        "released": motion_vae_released,
        "own": motion_vae_own,
        "tiny": motion_vae_tiny,
    },
    "strag": {"released": strag_released, "own": strag_own, "tiny": strag_tiny},
    "vism": _VISM | {"tiny": vism_tiny, "tiny-lora": vism_tiny_lora},
}
"""Trainer -> recipe -> its function of (data folder, output folder)."""
