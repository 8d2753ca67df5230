"""All networks of Geo4D as one module: what a weight file holds, and what a trainer trains."""

import torch
from torch import nn

from .layers import to_channels_last
from .network import Geo4DUNet
from .sizes import RELEASED_CAMERA_WEIGHT, RELEASED_NUM_STEPS, Geo4DSize
from .vae import Geo4DVAE

_CONTEXT_START = 0.02


class Geo4DNetworks(nn.Module):
    """UNet, VAE with both decoders, and the context. Its names are those in our weight files."""

    def __init__(self, size: Geo4DSize) -> None:
        """Make networks with random values (seed torch first)."""
        super().__init__()
        self.size = size
        # What these weights are best at; their file says it: denoising steps, how much the cameras
        # of their ray maps count in alignment, and whether they see each window mirrored, too.
        self.num_steps = RELEASED_NUM_STEPS
        self.camera_weight = RELEASED_CAMERA_WEIGHT
        self.mirrored_windows = False
        self.unet = Geo4DUNet(size)
        self.vae = Geo4DVAE(size.vae)
        # The released model always sees one prompt and one grey picture, so what its encoders make
        # of them is a constant: 77 tokens for all frames, then 16 for each frame of the window.
        shape = (1, size.num_context_tokens, size.unet.context_dim)
        self.context = nn.Parameter(_CONTEXT_START * torch.randn(shape))

    @property
    def num_parameters(self) -> int:
        """Number of values in all networks."""
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.context.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the networks compute."""
        return self.context.dtype

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Make activations again in the backward pass, block by block: less memory, more time."""
        self.unet.gradient_checkpointing = enabled
        self.vae.set_gradient_checkpointing(enabled)

    def to_channels_last(self) -> "Geo4DNetworks":
        """Lay the weights of convolutions as they are fastest, in place. Loading does it."""
        to_channels_last(self)
        return self
