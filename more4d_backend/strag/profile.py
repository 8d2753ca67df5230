"""What the pipeline must do as the weights were trained.

The networks are the same for all weights. Around them the released training differs in places from
what is right, and from the released inference; not all of it is known for the released weights.
`RELEASED` follows them as far as known, `OWN` is what this project's trainer does.
"""

from dataclasses import dataclass
from typing import Literal

from ..motion import OWN_MOTION, RELEASED_MOTION, MotionNormalization
from .motion_vae import MotionLatentSettings

GREY_LEVEL = 127
"""The uint8 value that the reference's motion map of frame 0, all zeros, becomes as a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StragWeightsProfile:
    """One training's conventions."""

    name: str
    """For logs and files."""

    motion: MotionNormalization
    """How motion is divided by depth and focal length.

    Known: the released training code uses constants (x 1.04348, y 1.0) for every video. Not known:
    the true intrinsics of its data; the networks only ever saw what these constants made."""

    latents: MotionLatentSettings
    """What lies between the motion VAE and the transformer.

    Second standardisation. Known: inference code from May 2026 on has it with these constants, and
    the weights are younger. Not known: whether they were trained with it, because the training code
    published with them encodes without. To settle it, decode a known motion both ways: a static
    scene must come out still.

    Clamp. Known: the reference clamps the VAE's output before the decoder adapter, in training and
    in inference."""

    unguided_frame: int | None
    """Which latent frame of the transformer's sequence has no guidance (`Guidance`).

    Known: the reference pads at the end of the sequence while its reference frame is at the start,
    so guidance falls on the reference frame and misses the last latent frame. The released weights
    were trained so."""

    reference_latent: Literal["zeros", "image"]
    """What leads the video as its reference frame.

    Known: the released training code always feeds zeros, its inference code the image. Not known:
    which code made the released weights; zeros follow the training code."""

    clip_image: Literal["grey", "image"]
    """Which picture CLIP encodes, for sizes with image tokens.

    Known: released training and inference both feed a constant grey picture (`GREY_LEVEL`)."""

    perception_range: tuple[float, float]
    """The range that black and white have when OmniMAE sees the image; it was trained on [0, 1].

    Known: the inference code never feeds an image at all, and the training code would shift [0, 1]
    to [0.5, 1] but stops with an error before. Not known: what the weights' own training fed."""

    shift: float
    """Shift of the flow-matching schedule (`SamplingSettings.shift`).

    Known: 5.0 in the released training and, whatever its command line says, in inference."""

    snap_to_edges: bool = False
    """Whether decoded motion is sharpened along the edges of image and depth (`edge_snapping`),
    where the user does not say.

    The reference does not, and what it would do to the released weights' motion is not measured.
    For a VAE of our size it takes a third and more of the error away."""

    depth_latent: bool = True
    """Whether the network is told the depth of frame 0; zeros otherwise, to see what it does."""


RELEASED = StragWeightsProfile(
    name="released",
    motion=RELEASED_MOTION,
    latents=MotionLatentSettings(
        clamp_decoded=True,
        latent_mean=(
            *(0.9336646795272827, -1.5638998746871948, 0.09716760367155075, -0.0003718015505000949),
            *(-0.4085753560066223, 2.252105474472046, -1.7826536893844604, 1.4354853630065918),
            *(-0.9819669127464294, -0.7372986078262329, 1.0731526613235474, -1.6012202501296997),
            *(-1.4650976657867432, -0.640479326248169, -0.23738965392112732, -1.252833604812622),
        ),
        latent_std=(
            *(0.4107, 0.5508, 0.2565, 0.3021, 0.2372, 0.5350, 0.3000, 0.4359),
            *(0.2033, 0.4194, 0.2107, 0.3985, 0.3314, 0.4098, 0.3906, 0.2863),
        ),
    ),
    unguided_frame=-1,
    reference_latent="zeros",
    clip_image="grey",
    perception_range=(0.0, 1.0),
    shift=5.0,
)
"""For the weights published as Yanran21/MoGe4D."""

OWN = StragWeightsProfile(
    name="own",
    motion=OWN_MOTION,
    latents=MotionLatentSettings(clamp_decoded=False),
    unguided_frame=0,
    reference_latent="image",
    clip_image="image",
    perception_range=(0.0, 1.0),
    shift=5.0,
    snap_to_edges=True,
)
"""For weights of this project's trainer."""
