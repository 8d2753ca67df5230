"""The 4D-STraG transformer against the recorded reference."""

import json

import pytest
import torch
from safetensors.torch import load_file

from more4d_backend.strag.motion_perception import Guidance
from more4d_backend.strag.profile import RELEASED
from more4d_backend.strag.sizes import STRAG_SIZES
from more4d_backend.strag.transformer import StragTransformer
from more4d_backend.weights.conversion import OMNIMAE_PREFIX, omnimae_training_parts
from more4d_backend.weights.keys import STRAG_TRANSFORMER, renamer

pytestmark = pytest.mark.parity

DROPPED = {OMNIMAE_PREFIX + name for name in omnimae_training_parts()}


@pytest.fixture(scope="module")
def recorded(parity_dir):
    return load_file(parity_dir / "strag_transformer.safetensors")


@pytest.fixture(scope="module")
def transformer(recorded):
    model = StragTransformer(
        num_attention_heads=1,
        num_layers=2,
        ffn_dim=256,
        added_kv_proj_dim=128,
        perception_dim=96,
        perception_depth=2,
        perception_heads=4,
        feature_dim=96,
    )
    from_original = renamer(STRAG_TRANSFORMER)
    weights = {
        from_original(name.removeprefix("weights.")): tensor.float()
        for name, tensor in recorded.items()
        if name.startswith("weights.") and name.removeprefix("weights.") not in DROPPED
    }
    model.load_state_dict(weights, strict=True)
    return model.eval()


@torch.no_grad()
def velocity(transformer, recorded, guidance):
    contexts = [recorded["in.context0"], recorded["in.context1"]]
    text = torch.stack([torch.cat([c, c.new_zeros(512 - len(c), 4096)]) for c in contexts])
    return transformer(
        torch.cat([recorded["in.x"], recorded["in.y"]], dim=1),
        recorded["in.timestep"],
        text,
        recorded["in.clip_features"],
        reference_latent=recorded["in.reference_latent"],
        guidance=guidance,
    ).sample


@torch.no_grad()
def test_image_features_are_those_of_the_reference(transformer, recorded):
    features = transformer.omnimae_extractor(recorded["in.first_frame_01"])
    torch.testing.assert_close(features, recorded["out.omnimae_patch_features"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_velocity_with_guidance_is_that_of_the_reference(transformer, recorded):
    features = transformer.encode_image(recorded["in.first_frame_01"], (6, 8))
    guidance = Guidance(features=features, unguided_frame=RELEASED.unguided_frame)
    # Measured 2.8e-6 at values up to 2.1.
    torch.testing.assert_close(
        velocity(transformer, recorded, guidance),
        recorded["out.with_guidance"],
        atol=1e-5,
        rtol=0,
    )


def test_the_velocity_without_guidance_is_that_of_the_reference(transformer, recorded):
    torch.testing.assert_close(
        velocity(transformer, recorded, None), recorded["out.without_guidance"], atol=1e-5, rtol=0
    )


def test_the_recording_can_tell_guided_frames_apart(transformer, recorded):
    features = transformer.encode_image(recorded["in.first_frame_01"], (6, 8)).detach()
    corrected = velocity(transformer, recorded, Guidance(features=features, unguided_frame=0))
    assert (corrected - recorded["out.with_guidance"]).abs().max() > 1e-3


def test_the_full_size_has_every_released_parameter_and_no_other(parity_dir):
    released = json.loads((parity_dir / "released_keys.json").read_text())
    wanted = {
        name: tuple(shape)
        for name, shape in released["4D-STraG transformer (VideoX-Fun key names)"].items()
        if name not in DROPPED
    }
    with torch.device("meta"):
        model = StragTransformer(**STRAG_SIZES["14b"].config())
    to_original = renamer(STRAG_TRANSFORMER, inverse=True)
    ours = {to_original(name): tuple(t.shape) for name, t in model.state_dict().items()}
    assert ours == wanted
