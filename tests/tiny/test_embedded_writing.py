import subprocess
import sys

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import save_file

from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE
from more4d_backend.strag.profile import OWN
from more4d_backend.tiny import (
    EMBEDDED_FILES,
    FILE_LIMIT_BYTES,
    TOTAL_LIMIT_BYTES,
    relative_path,
)
from more4d_backend.tiny.text_encoder import ByteTextModel
from more4d_backend.tiny.writing import (
    copy_embedded,
    fold_statistics,
    measured_statistics,
    write_embedded,
)
from more4d_backend.wan.latents import decode_video, encode_distribution, encode_video
from more4d_backend.weights.files import WeightsError, open_weights
from more4d_backend.weights.kinds import recognize
from more4d_backend.weights.model_loading import load_byte_text, load_motion_vae, load_wan_vae


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=8).double().eval()


def test_folded_statistics_standardise_latents_and_change_no_decoded_video(vae):
    video = 2 * torch.rand(2, 3, 5, 32, 32, dtype=torch.float64) - 1
    before = decode_video(vae, encode_video(vae, video), clamp=False)
    log_variance = encode_distribution(vae, video).logvar
    mean, std = measured_statistics([encode_video(vae, video)])
    assert (mean.abs() > 0.01).any()  # or there would be nothing to fold
    fold_statistics(vae, mean, std)
    latent = encode_video(vae, video)
    after_mean, after_std = measured_statistics([latent])
    # Latents come in float32.
    torch.testing.assert_close(after_mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(after_std, torch.ones_like(std), atol=1e-5, rtol=0)
    torch.testing.assert_close(decode_video(vae, latent, clamp=False), before, atol=1e-5, rtol=0)
    shift = (encode_distribution(vae, video).logvar - log_variance)[0, :, 0, 0, 0]
    torch.testing.assert_close(shift, -2 * std.log())


def test_a_motion_vae_can_have_statistics_of_its_own_on_a_shared_encoder(vae, tmp_path):
    motion_vae = MotionVAE(vae.float(), EncoderAdapter(8), DecoderAdapter(8), OWN.latents).eval()
    write_embedded("wan_vae", vae, folder=tmp_path)
    motion = torch.rand(1, 3, 5, 32, 32)
    with torch.no_grad():
        fold_statistics(motion_vae.vae, *measured_statistics([motion_vae.encode(motion)]))
        path = write_embedded("motion_vae", motion_vae, folder=tmp_path)
        loaded = load_motion_vae(
            path, OWN.latents, encoder=tmp_path / relative_path("wan_vae"), dtype=torch.float32
        )
        mean, std = measured_statistics([loaded.encode(motion)])
    # The files are bfloat16.
    assert mean.abs().max() < 0.05
    assert (std - 1).abs().max() < 0.05
    names = open_weights(path).tensors
    assert not any(name.startswith("vae.encoder.") for name in names)
    assert "vae.conv1.weight" in names


def test_a_motion_vae_without_an_encoder_asks_for_one(vae, tmp_path):
    motion_vae = MotionVAE(vae, EncoderAdapter(8), DecoderAdapter(8), OWN.latents)
    path = write_embedded("motion_vae", motion_vae, folder=tmp_path)
    with pytest.raises(WeightsError, match="Name that Wan VAE beside it"):
        load_motion_vae(path, OWN.latents)


def test_every_embedded_file_is_recognised_as_what_it_is(random_embedded):
    for name, kind in EMBEDDED_FILES.items():
        file = open_weights(random_embedded / relative_path(name))
        assert recognize(file).kind is kind, name
        assert file.metadata["more4d_kind"] == kind.value
        assert {t.dtype for t in file.tensors.values()} == {torch.bfloat16}


def test_the_embedded_layout_stays_within_its_limits(random_embedded):
    sizes = [path.stat().st_size for path in random_embedded.rglob("*.safetensors")]
    assert len(sizes) == len(EMBEDDED_FILES)
    assert max(sizes) <= FILE_LIMIT_BYTES
    assert sum(sizes) <= TOTAL_LIMIT_BYTES


def test_an_embedded_vae_comes_back_as_it_was_but_for_rounding(random_embedded, vae, tmp_path):
    path = write_embedded("wan_vae", vae, folder=tmp_path)
    loaded = load_wan_vae(path).state_dict()
    for name, value in vae.state_dict().items():
        assert torch.equal(loaded[name], value.bfloat16()), name


def test_networks_with_nan_or_too_many_values_are_not_written(tmp_path):
    from more4d_backend.tiny.text_encoder import ByteTextSize

    model = ByteTextModel()
    model.output.bias.data[3] = torch.nan
    with pytest.raises(WeightsError, match=r"output\.bias is not finite"):
        write_embedded("text_encoder", model, folder=tmp_path)
    large = ByteTextModel(ByteTextSize(width=2048, num_layers=0, num_convolutions=0))
    with pytest.raises(WeightsError, match="at most 15"):
        write_embedded("text_encoder", large, folder=tmp_path)
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_a_fold_of_an_unused_channel_is_refused(vae):
    with pytest.raises(ValueError, match="unused"):
        fold_statistics(vae, torch.zeros(16), torch.zeros(16))


def test_text_and_depth_load_where_neither_accelerate_nor_diffusers_is(random_embedded):
    # As inside a ComfyUI host, in a process of its own.
    code = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("accelerate", "diffusers", "transformers"):
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
import torch
from more4d_backend.depth import TinyDepth
from more4d_backend.weights.model_loading import load_byte_text
text, depth = sys.argv[1:]
assert load_byte_text(text)(["left"]).dtype == torch.bfloat16
assert TinyDepth.load(depth).predict(torch.rand(32, 48, 3)).valid.all()
"""
    paths = [str(random_embedded / relative_path(name)) for name in ("text_encoder", "depth")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, timeout=120)


def test_what_a_trainer_wrote_becomes_an_embedded_file(tmp_path):
    torch.manual_seed(0)
    model = ByteTextModel()
    source = tmp_path / "trained.safetensors"
    save_file(dict(model.state_dict()), source)
    path = copy_embedded("text_encoder", source, folder=tmp_path, recipe="a command")
    with safe_open(path, "pt") as file:
        assert file.metadata()["more4d_recipe"] == "a command"
    loaded = load_byte_text(path, dtype=torch.float32)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float())
    with pytest.raises(WeightsError, match="text encoder"):
        copy_embedded("wan_vae", source, folder=tmp_path)
