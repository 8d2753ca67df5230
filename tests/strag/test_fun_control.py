"""What diffusers' own models compute, 4D-STraG's transformer computes and starts from."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn

from more4d_backend.strag.motion_perception import Guidance
from more4d_backend.strag.omnimae import OmniMAE
from more4d_backend.strag.sizes import FUN_CONTROL_CHANNELS
from more4d_backend.strag.transformer import StragTransformer
from more4d_backend.weights.files import WeightsError, stored


class ReferenceFirst(nn.Module):
    """Written apart from the code under test: both convolutions as matrix products."""

    def __init__(self, convolution, ref_conv):
        super().__init__()
        self.weights = [convolution, ref_conv]

    def forward(self, video):
        convolution, ref_conv = self.weights
        rows = nn.functional.unfold(video.transpose(1, 2).flatten(0, 1), 2, stride=2)
        rows = rows.unflatten(0, (len(video), -1))  # B F CPQ N
        frames = convolution.weight.flatten(1) @ rows + convolution.bias[:, None]
        wide = torch.zeros(len(ref_conv.bias), video.shape[1], 2, 2)
        wide[:, :16] = ref_conv.weight
        frames[:, 0] = wide.flatten(1) @ rows[:, 0] + ref_conv.bias[:, None]
        return frames.transpose(1, 2).unflatten(-1, (video.shape[-2] // 2, video.shape[-1] // 2))


@torch.no_grad()
def plain_velocity(plain, ref_conv, inputs):
    """What diffusers' own model makes of the reference frame followed by the video."""
    plain.patch_embedding = ReferenceFirst(plain.patch_embedding, ref_conv)
    video = inputs["hidden_states"]
    reference = torch.zeros_like(video[:, :, :1])
    reference[:, :16, 0] = inputs["reference_latent"]
    names = ("timestep", "encoder_hidden_states", "encoder_hidden_states_image")
    output = plain(torch.cat([reference, video], dim=2), **{name: inputs[name] for name in names})
    return output.sample[:, :, 1:]


def test_without_guidance_it_is_diffusers_wan_with_a_leading_reference_frame(toy):
    model = toy.make_transformer()
    plain = WanTransformer3DModel(**toy.size.wan.config()).eval()
    plain.load_state_dict({n: model.state_dict()[n] for n in plain.state_dict()})
    inputs = toy.make_inputs(guided=False, text=512)
    expected = plain_velocity(plain, model.ref_conv, inputs)
    with torch.no_grad():
        actual = model(**inputs).sample
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def fun_control(toy):
    """A 48-channel Fun-Control model: diffusers' own class, and the ref_conv it does not know."""
    torch.manual_seed(3)
    wan = replace(toy.size.wan, in_channels=FUN_CONTROL_CHANNELS)
    return WanTransformer3DModel(**wan.config()).eval(), nn.Conv2d(16, wan.dim, 2, stride=2)


def given_weights(plain, ref_conv):
    named = plain.state_dict() | {f"ref_conv.{n}": t for n, t in ref_conv.state_dict().items()}
    return stored(named)


def omnimae_weights(size):
    perception = size.perception
    return stored(OmniMAE(perception.dim, perception.depth, perception.num_heads).state_dict())


def test_training_starts_from_what_fun_control_computes(toy, fun_control):
    plain, ref_conv = copy.deepcopy(fun_control)
    model = StragTransformer.from_fun_control(
        given_weights(plain, ref_conv), omnimae_weights(toy.size), toy.size
    )
    inputs = toy.make_inputs(text=512)
    narrow = inputs | {"hidden_states": inputs["hidden_states"][:, :FUN_CONTROL_CHANNELS]}
    expected = plain_velocity(plain, ref_conv, narrow)
    with torch.no_grad():
        actual = model(**inputs).sample
    # Measured 1e-6: the gates of guidance are not quite zero, so that gradients pass.
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_gradients_reach_every_new_parameter_at_the_first_step(toy, fun_control):
    model = StragTransformer.from_fun_control(
        given_weights(*fun_control), omnimae_weights(toy.size), toy.size
    )
    features = model.encode_image(torch.rand(1, 3, 32, 32), (toy.height, toy.width))
    guidance = Guidance(features=features, unguided_frame=0)
    model(**toy.make_inputs(guidance=guidance)).sample.square().sum().backward()
    new = [n for n, _ in model.named_parameters() if "spatial_guid" in n or "adapter" in n]
    assert len(new) == 3 * 2 * 3 + 4
    for name in [*new, "ref_conv.weight", "ref_conv.bias"]:
        gradient = model.get_parameter(name).grad
        assert gradient is not None, name
        assert gradient.count_nonzero() > 0.9 * gradient.numel(), name
    depth_channels = model.patch_embedding.weight.grad[:, FUN_CONTROL_CHANNELS:]
    assert depth_channels.count_nonzero() == depth_channels.numel()


def test_another_base_than_fun_control_is_refused(toy, fun_control, as_users_run_it):
    weights = given_weights(*fun_control)
    inpainting = WanTransformer3DModel(**replace(toy.size.wan, in_channels=36).config())
    with pytest.raises(WeightsError, match="takes 36 input channels"):
        StragTransformer.from_fun_control(
            given_weights(inpainting, fun_control[1]), omnimae_weights(toy.size), toy.size
        )
    without = {n: t for n, t in weights.items() if not n.startswith("ref_conv")}
    with pytest.raises(WeightsError, match="2 missing: ref_conv"):
        StragTransformer.from_fun_control(without, omnimae_weights(toy.size), toy.size)
