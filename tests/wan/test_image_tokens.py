import pytest
import torch

from more4d_backend.wan.image_tokens import ClipImageEncoder, zero_image_tokens


def clip(num_layers):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    return CLIPVisionModel(config).eval()


@pytest.fixture(scope="module")
def model():
    return clip(num_layers=3)


def photo(height=40, width=60):
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))


def test_tokens_are_those_before_the_last_layer(model):
    shorter = clip(num_layers=2)
    weights = {k: v for k, v in model.state_dict().items() if ".layers.2." not in k}
    shorter.load_state_dict(weights)
    image = photo(28, 28)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((image - mean) / std).permute(2, 0, 1)[None]  # 1 C H W
    with torch.no_grad():
        wanted = shorter(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(ClipImageEncoder(model).encode(image), wanted)


def test_the_whole_image_is_seen_whatever_its_shape(model):
    encoder = ClipImageEncoder(model)
    image = photo()
    tokens = encoder.encode(image)
    assert tokens.shape == (1, 5, 16)
    for edge in (image[:, -4:], image[:4]):
        edge.zero_()
        assert not torch.equal(encoder.encode(image), tokens)


def test_a_constant_image_gives_the_same_tokens_at_any_size(model):
    encoder = ClipImageEncoder(model)
    grey = 127 / 255
    torch.testing.assert_close(
        encoder.encode(torch.full((1, 1, 3), grey)), encoder.encode(torch.full((30, 50, 3), grey))
    )


def test_zero_tokens_have_the_size_that_the_networks_expect():
    assert zero_image_tokens().shape == (1, 257, 1280)
