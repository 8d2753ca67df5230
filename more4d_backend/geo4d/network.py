"""The denoiser of Geo4D: a 3D UNet that predicts velocity for all four modalities at once.

The network of DynamiCrafter (Xing et al. 2024) with 20 channels in and 16 out, as Geo4D has it
(arXiv 2504.07961, section 3). Module names are those of the released files.

Axes: B window, T frame, H height, W width, C channel.
"""

import math
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import Conv2d, GroupNorm, Pointwise2d, TemporalConv, damped, upsampled
from .sizes import GEOMETRY_CHANNELS, LATENT_CHANNELS, Geo4DSize, UNetSize
from .transformers import FrameContext, SpatialTransformer, TemporalTransformer

_NORM_EPS = 1e-5
_LONGEST_PERIOD = 10000
_NUM_TEMPORAL_CONVS = 4


class LatentSizeError(ValueError):
    """A window whose number of frames or size the network cannot take."""


class Geo4DUNet(nn.Module):
    """Noisy geometry latents and the video's latents to velocity."""

    def __init__(self, size: Geo4DSize) -> None:
        super().__init__()
        self.size = size
        self.gradient_checkpointing = False
        unet = size.unet
        channels = unet.model_channels
        self.time_embed = _embedding(channels)
        self.fps_embedding = _embedding(channels)
        self.init_attn = nn.ModuleList([TemporalTransformer(channels, unet, unet.init_heads)])
        self.input_blocks, skips = _way_down(unet)
        channels = skips[-1]
        self.middle_block = nn.ModuleList(
            [
                ResBlock(channels, channels, unet),
                SpatialTransformer(channels, unet),
                TemporalTransformer(channels, unet),
                ResBlock(channels, channels, unet),
            ]
        )
        self.output_blocks = _way_up(unet, skips)
        first = unet.model_channels
        self.out = nn.Sequential(
            GroupNorm(unet.norm_groups, first, _NORM_EPS, silu=True),
            nn.Identity(),
            damped(Conv2d(first, GEOMETRY_CHANNELS, 3, padding=1)),
        )

    def forward(
        self,
        latents: Float[Tensor, "window 20 frame height width"],
        timestep: Int[Tensor, " window"],
        context: Float[Tensor, "#window token context_dim"],
        fps: Int[Tensor, " window"],
    ) -> Float[Tensor, "window 16 frame height width"]:
        """Return the velocity `sqrt(a) noise - sqrt(1 - a) clean`, in the weights' dtype.

        The channels are 16 of noisy geometry (see geo4d/modalities.py) and the video's 4.
        `timestep` is 0 (clean) to 999 (noise).

        Raises:
            LatentSizeError: another number of frames, or a height or width that does not halve.
        """
        self._check(latents, context)
        dtype = next(self.parameters()).dtype
        split = FrameContext.split(context.to(dtype))
        channels = self.size.unet.model_channels
        embedding = self.time_embed(sinusoids(timestep, channels).to(dtype))
        embedding = embedding + self.fps_embedding(sinusoids(fps, channels).to(dtype))
        run = partial(self._run, embedding=embedding, context=split)

        hidden = latents.to(dtype).permute(0, 2, 3, 4, 1).contiguous()  # B T H W C
        skips = []
        for index, block in enumerate(self.input_blocks):
            hidden = run(block, hidden)
            if index == 0:
                hidden = run(self.init_attn, hidden)
            skips.append(hidden)
        hidden = run(self.middle_block, hidden)
        for block in self.output_blocks:
            hidden = run(block, torch.cat([hidden, skips.pop()], dim=-1))
        velocity = _each_frame(self.out, hidden)
        return velocity.permute(0, 4, 1, 2, 3)  # B C T H W

    def _run(
        self, layers: nn.Module, hidden: Tensor, *, embedding: Tensor, context: FrameContext
    ) -> Tensor:
        for layer in layers.children():
            arguments = ()
            if isinstance(layer, ResBlock):
                arguments = (embedding,)
            elif isinstance(layer, SpatialTransformer):
                arguments = (context,)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, *arguments, use_reentrant=False)
            else:
                hidden = layer(hidden, *arguments)
        return hidden

    def _check(self, latents: Tensor, context: Tensor) -> None:
        frames, height, width = latents.shape[2:]
        if frames != self.size.num_frames:
            raise LatentSizeError(
                f"The window has {frames} frames; this network was made for "
                f"{self.size.num_frames}. Pad shorter windows."
            )
        step = self.size.unet.size_step
        if height % step or width % step:
            raise LatentSizeError(
                f"The latents are {height} x {width}; expected multiples of {step}, which are "
                f"multiples of {self.size.pixel_step} in pixels."
            )
        if context.shape[1] != self.size.num_context_tokens:
            raise LatentSizeError(
                f"The context has {context.shape[1]} tokens; {frames} frames need "
                f"{self.size.num_context_tokens}."
            )


class ResBlock(nn.Module):
    """Two spatial convolutions with the time embedding between them, then four over time."""

    def __init__(self, in_channels: int, out_channels: int, size: UNetSize) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(size.norm_groups, in_channels, _NORM_EPS, silu=True),
            nn.Identity(),
            Conv2d(in_channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * size.model_channels, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(size.norm_groups, out_channels, _NORM_EPS, silu=True),
            nn.Identity(),
            nn.Dropout(size.dropout),
            damped(Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else Pointwise2d(in_channels, out_channels)
        # The released files spell it so.
        self.temopral_conv = TemporalConvBlock(out_channels, size)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Map (B T H W C) and an embedding (B E) to (B T H W C)."""
        inner = _each_frame(self.in_layers, hidden)
        inner = inner + self.emb_layers(embedding)[:, None, None, None]
        inner = _each_frame(self.out_layers, inner)
        return self.temopral_conv(self.skip_connection(hidden) + inner)


class TemporalConvBlock(nn.Module):
    """Four convolutions over time. Their norms see all frames of a window together."""

    def __init__(self, channels: int, size: UNetSize) -> None:
        super().__init__()
        for number in range(1, _NUM_TEMPORAL_CONVS + 1):
            conv = TemporalConv(channels)
            last = number == _NUM_TEMPORAL_CONVS
            layers = [
                GroupNorm(size.norm_groups, channels, _NORM_EPS, silu=True),
                nn.Identity(),
                *([] if number == 1 else [nn.Dropout(size.dropout)]),
                damped(conv) if last else conv,
            ]
            self.add_module(f"conv{number}", nn.Sequential(*layers))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B T H W C) to the same."""
        inner = hidden
        for layers in self.children():
            inner = layers(inner)
        return hidden + inner


class Downsample(nn.Module):
    """Half the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B T H W C) to (B T H/2 W/2 C)."""
        return _each_frame(self.op, hidden)


class Upsample(nn.Module):
    """Twice the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B T H W C) to (B T 2H 2W C)."""
        return _each_frame(self.conv, upsampled(hidden.flatten(0, 1)), frames=hidden.shape[1])


class _FirstConv(Conv2d):
    """The convolution into the UNet, of all frames of a window."""

    def forward(self, input: Tensor) -> Tensor:
        return _each_frame(super().forward, input)


def sinusoids(values: Int[Tensor, " window"], dim: int) -> Float[Tensor, "window dim"]:
    """Embed timesteps or frame rates: `dim / 2` cosines, then as many sines, in float32."""
    half = dim // 2
    steps = torch.arange(half, device=values.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(_LONGEST_PERIOD) / half * steps)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _embedding(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels)
    )


def _each_frame(layer, hidden: Tensor, frames: int | None = None) -> Tensor:
    """Apply a layer for pictures to (B T H W C), or to pictures that are `frames` to a window."""
    pictures = hidden.flatten(0, 1) if frames is None else hidden
    return layer(pictures).unflatten(0, (-1, frames or hidden.shape[1]))


def _way_down(size: UNetSize) -> tuple[nn.ModuleList, list[int]]:
    """Return the blocks, and the channels that each of them leaves for the way up."""
    channels = size.model_channels
    first = _FirstConv(GEOMETRY_CHANNELS + LATENT_CHANNELS, channels, 3, padding=1)
    blocks = [nn.ModuleList([first])]
    skips = [channels]
    for level, multiple in enumerate(size.channel_mult):
        for _ in range(size.num_res_blocks):
            out_channels = multiple * size.model_channels
            blocks.append(_level_block(channels, out_channels, level, size))
            channels = out_channels
            skips.append(channels)
        if level < len(size.channel_mult) - 1:
            blocks.append(nn.ModuleList([Downsample(channels)]))
            skips.append(channels)
    return nn.ModuleList(blocks), skips


def _way_up(size: UNetSize, skips: list[int]) -> nn.ModuleList:
    blocks = []
    channels, skips = skips[-1], list(skips)
    for level, multiple in reversed(list(enumerate(size.channel_mult))):
        for _ in range(size.num_res_blocks + 1):
            out_channels = multiple * size.model_channels
            blocks.append(_level_block(channels + skips.pop(), out_channels, level, size))
            channels = out_channels
        if level > 0:
            blocks[-1].append(Upsample(channels))
    return nn.ModuleList(blocks)


def _level_block(in_channels: int, out_channels: int, level: int, size: UNetSize) -> nn.ModuleList:
    layers: list[nn.Module] = [ResBlock(in_channels, out_channels, size)]
    if level in size.attention_levels:
        layers.append(SpatialTransformer(out_channels, size))
        layers.append(TemporalTransformer(out_channels, size))
    return nn.ModuleList(layers)
