"""Motion VAE and ViSM give on CUDA, in float32, what they give on the CPU."""

import pytest
import torch

from more4d_backend.strag.motion_vae import (
    DecoderAdapter,
    EncoderAdapter,
    MotionLatentSettings,
    MotionVAE,
)
from more4d_backend.vism.lora import add_lora, load_lora, save_lora
from more4d_backend.vism.pipeline import VismPipeline, VismSettings
from more4d_backend.wan.latents import decode_video
from more4d_backend.wan.rms_norm import norm_silu
from more4d_backend.wan.sampling import SamplingSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("full_precision"),
]


def wan_vae():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=8).eval().requires_grad_(False)


def transformer():
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=24,
        in_channels=36,
        out_channels=16,
        text_dim=8,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
    ).eval()


class ConstantText:
    model = torch.nn.Identity()

    def encode(self, prompts):
        return torch.ones(len(prompts), 512, 8) * torch.arange(1.0, len(prompts) + 1)[:, None, None]


@torch.no_grad()
def test_the_motion_vae_takes_motion_of_any_device_and_agrees_with_the_cpu():
    torch.manual_seed(0)
    settings = MotionLatentSettings(clamp_decoded=False)
    motion_vae = MotionVAE(wan_vae(), EncoderAdapter(16), DecoderAdapter(16), settings)
    motion = torch.randn(1, 3, 5, 32, 48, generator=torch.Generator().manual_seed(1))
    latent = motion_vae.encode(motion)
    decoded = motion_vae.decode(latent)
    motion_vae.cuda()
    torch.testing.assert_close(motion_vae.encode(motion).cpu(), latent, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(motion_vae.decode(latent).cpu(), decoded, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_unclamped_decoding_in_half_precision_is_the_clamped_one_inside_the_range():
    vae = wan_vae()
    vae.decoder.conv_out.weight *= 10
    latent = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(1)).cuda()
    for dtype in (torch.bfloat16, torch.float16):
        vae.to("cuda", dtype)
        unclamped = decode_video(vae, latent, clamp=False)
        # float16 loses digits of values below 2e-2 when they are scaled by 2^-8.
        tolerance = 0 if dtype is torch.bfloat16 else 1e-4
        torch.testing.assert_close(
            decode_video(vae, latent), unclamped.clamp(-1, 1), atol=tolerance, rtol=0
        )


def test_a_seed_gives_the_same_completed_video_on_both_devices(tmp_path):
    wan, vae = transformer(), wan_vae()
    donor = transformer()
    add_lora(donor, rank=4, alpha=2.0)
    for name, parameter in donor.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_lora(donor, tmp_path / "lora.safetensors")
    rendered = torch.rand(5, 16, 32, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(5, 16, 32, dtype=torch.bool)
    mask[:, 4:12, 8:16] = True
    videos = []
    for device in ("cpu", "cuda"):
        wan.to(device)
        vae.to(device)
        if not videos:
            load_lora(wan, tmp_path / "lora.safetensors")
        videos.append(
            VismPipeline(wan, vae, ConstantText()).complete(
                rendered,
                mask,
                "a ball rolls",
                settings=VismSettings(sampling=SamplingSettings(num_steps=3, guidance_scale=2.0)),
                generator=torch.Generator().manual_seed(0),
            )
        )
    assert videos[1].device.type == "cpu"
    torch.testing.assert_close(videos[0], videos[1], atol=1e-3, rtol=0)


def test_a_lora_loads_onto_the_device_of_its_transformer(tmp_path):
    donor = transformer()
    add_lora(donor, rank=4, alpha=2.0)
    save_lora(donor, tmp_path / "lora.safetensors")
    wan = transformer().to("cuda", torch.bfloat16)
    load_lora(wan, tmp_path / "lora.safetensors")
    placed = {(p.device.type, p.dtype) for n, p in wan.named_parameters() if "lora_" in n}
    assert placed == {("cuda", torch.bfloat16)}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("channels", [16, 64, 96])
def test_norm_and_silu_in_one_kernel_are_those_of_the_cpu_and_so_is_the_gradient(layout, channels):
    torch.manual_seed(0)
    values, gradient = torch.randn(2, 3, channels, 5, 30, 41)
    gamma = torch.randn(channels)

    def computed(device):
        laid = values.to(device).contiguous(memory_format=layout).requires_grad_()
        factor = gamma.to(device, copy=True).requires_grad_()
        result = norm_silu(laid, factor)
        result.backward(gradient.to(device))
        return [tensor.cpu() for tensor in (result, laid.grad, factor.grad)]

    for ours, expected in zip(computed("cuda"), computed("cpu"), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)
