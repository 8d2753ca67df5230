"""The 4D-STraG transformer at toy size, and inputs for it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from more4d_backend.strag.sizes import PerceptionSize, StragSize, WanSize

SIZE = StragSize(
    wan=WanSize(
        in_channels=64,
        num_layers=3,
        num_heads=2,
        head_dim=12,
        ffn_dim=32,
        freq_dim=16,
        text_dim=10,
        image_dim=8,
    ),
    perception=PerceptionSize(dim=16, depth=1, num_heads=2, feature_dim=12),
)
FRAMES, HEIGHT, WIDTH = 3, 4, 6
TOKENS = HEIGHT * WIDTH // 4


def make_transformer(size=SIZE, seed=0):
    from more4d_backend.strag.transformer import StragTransformer

    torch.manual_seed(seed)
    model = StragTransformer(**size.config())
    for name, parameter in model.named_parameters():
        if name.endswith("gate") or "norm" in name:
            nn.init.normal_(parameter)
    return model.eval()


def make_inputs(seed=0, guided=True, text=7, **changes):
    from more4d_backend.strag.motion_perception import Guidance

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    features = normal(1, TOKENS, SIZE.perception.feature_dim)
    inputs = {
        "hidden_states": normal(2, 64, FRAMES, HEIGHT, WIDTH),
        "timestep": torch.tensor([100.0, 900.0]),
        "encoder_hidden_states": normal(2, text, 10),
        "encoder_hidden_states_image": normal(2, 257, 8),
        "reference_latent": normal(2, 16, HEIGHT, WIDTH),
        "guidance": Guidance(features=features, unguided_frame=-1) if guided else None,
    }
    return inputs | changes


@torch.no_grad()
def velocity(model, *args, **kwargs):
    return model(**make_inputs(*args, **kwargs)).sample


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """Makers of the transformer, its inputs and its velocity, and the sizes of them."""
    return SimpleNamespace(
        size=SIZE,
        frames=FRAMES,
        height=HEIGHT,
        width=WIDTH,
        tokens=TOKENS,
        make_transformer=make_transformer,
        make_inputs=make_inputs,
        velocity=velocity,
    )
