"""Sizes of the Geo4D networks: the released one, the embedded one, and one for tests."""

from dataclasses import dataclass, field

GEOMETRY_CHANNELS = 16
"""Latent channels that the UNet predicts: four modalities of four channels each."""
LATENT_CHANNELS = 4
"""Latent channels of one picture: of the conditioning video, and of each modality."""
TEXT_TOKENS = 77
"""Context tokens that every frame sees."""
IMAGE_TOKENS_PER_FRAME = 16
"""Context tokens that belong to one frame of the window."""
RELEASED_NUM_STEPS = 5
"""Denoising steps that the released networks are used with; 10 gave slightly better rotations."""
RELEASED_CAMERA_WEIGHT = 0.005
"""Of the camera term in alignment, as the paper has it."""
LARGEST_CAMERA_WEIGHT = 1000.0
"""Points weigh 1: by then nothing but ray maps tells the cameras."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetSize:
    """Sizes of the 3D UNet; the defaults are the released ones."""

    model_channels: int = 320
    """Channels at the first level."""

    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level, in `model_channels`; each level has half the resolution."""

    num_res_blocks: int = 2
    """Residual blocks of a level on the way down; one more on the way up."""

    attention_levels: tuple[int, ...] = (0, 1, 2)
    """Levels with spatial and temporal transformers."""

    head_dim: int = 64
    """Channels of an attention head."""

    init_heads: int = 8
    """Heads of the temporal attention right after the first convolution."""

    context_dim: int = 1024
    """Channels of a context token."""

    norm_groups: int = 32
    """Groups of every group norm."""

    dropout: float = 0.1
    """In residual blocks, while training."""

    @property
    def size_step(self) -> int:
        """Latent heights and widths are multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VAESize:
    """Sizes of the per-frame VAE; the defaults are the released ones."""

    channels: int = 128
    """Channels at full resolution."""

    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level, in `channels`; each level has half the resolution."""

    num_res_blocks: int = 2
    """Residual blocks of an encoder level; a decoder level has one more."""

    norm_groups: int = 32
    """Groups of every group norm."""

    @property
    def reduction(self) -> int:
        """Pixels along the side of one latent pixel."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geo4DSize:
    """Sizes of all networks together."""

    unet: UNetSize = field(default_factory=UNetSize)
    """The denoiser."""

    vae: VAESize = field(default_factory=VAESize)
    """Encoder and both decoders."""

    num_frames: int = 16
    """Frames of a window."""

    @property
    def num_context_tokens(self) -> int:
        """Text tokens and those of all frames."""
        return TEXT_TOKENS + IMAGE_TOKENS_PER_FRAME * self.num_frames

    @property
    def pixel_step(self) -> int:
        """Heights and widths of a window in pixels are multiples of this."""
        return self.unet.size_step * self.vae.reduction


GEO4D_SIZES: dict[str, Geo4DSize] = {
    "full": Geo4DSize(),
    # Embedded in the package: 6 MB in bf16 at most.
    "tiny": Geo4DSize(
        unet=UNetSize(
            model_channels=24,
            channel_mult=(1, 2, 3),
            num_res_blocks=1,
            attention_levels=(2,),
            head_dim=24,
            init_heads=1,
            context_dim=32,
            norm_groups=8,
            dropout=0.0,
        ),
        # A latent pixel has 4 pixels along its side, not 8: 4 numbers tell more of 16 pixels than
        # of 64.
        vae=VAESize(channels=16, channel_mult=(1, 2, 2), num_res_blocks=1, norm_groups=8),
    ),
    # For tests: a window of four frames in a second on one core.
    "toy": Geo4DSize(
        unet=UNetSize(
            model_channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_levels=(0,),
            head_dim=8,
            init_heads=2,
            context_dim=64,
            norm_groups=8,
            dropout=0.0,
        ),
        vae=VAESize(channels=8, channel_mult=(1, 2, 2), num_res_blocks=1, norm_groups=8),
        num_frames=4,
    ),
}
