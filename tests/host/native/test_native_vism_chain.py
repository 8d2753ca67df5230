"""The nodes of ViSM around the host's KSampler, against the headless pipeline."""

import pytest
import torch

from more4d_backend.vism.lora import add_lora, load_lora, save_lora
from more4d_backend.vism.pipeline import VismPipeline, VismSettings
from more4d_backend.wan.sampling import SamplingSettings
from more4d_backend.weights.kinds import WeightKind

pytestmark = pytest.mark.host

FRAMES, HEIGHT, WIDTH, STEPS, CFG, SEED, LORA = 5, 32, 48, 3, 2.0, 11, 0.55


class Given:
    """Stands for a text or an image encoder: returns the tokens that it was given."""

    model = torch.nn.Identity()

    def __init__(self, tokens):
        self.tokens = tokens

    def encode(self, _):
        return self.tokens


@pytest.fixture(scope="module", params=[False, True], ids=["no-image-tokens", "image-tokens"])
def models(request, toy_networks, write_original, tmp_path_factory):
    networks = toy_networks(request.param)
    folder = tmp_path_factory.mktemp("toy")
    files = {
        "fun-inp": write_original(
            folder / "fun-inp.safetensors", WeightKind.FUN_INP, networks["fun-inp"]
        ),
        "wan-vae": write_original(
            folder / "wan-vae.safetensors", WeightKind.WAN_VAE, networks["wan-vae"]
        ),
        "vism-lora": str(folder / "vism-lora.safetensors"),
    }
    transformer = networks["fun-inp"]
    add_lora(transformer, rank=4, alpha=2.0)
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_lora(transformer, files["vism-lora"])
    transformer.delete_adapters("vism")
    load_lora(transformer, files["vism-lora"], lora_weight=LORA)
    return networks, files, request.param


def video(height, width):
    g = torch.Generator().manual_seed(3)
    rendered = torch.rand(FRAMES, height, width, 3, generator=g)
    holes = torch.zeros(FRAMES, height, width, dtype=torch.bool)
    holes[1:, 4:13, 10:31] = True
    holes[:, :, -3:] = True
    return rendered, holes


def tokens(with_image):
    g = torch.Generator().manual_seed(4)
    prompts = torch.zeros(2, 512, 4096)
    prompts[0, :9] = torch.randn(9, 4096, generator=g)
    prompts[1, :2] = torch.randn(2, 4096, generator=g)
    return prompts, torch.randn(1, 257, 1280, generator=g) if with_image else None


def headless(networks, rendered, holes, prompts, clip, **settings):
    image = None if clip is None else rendered[0]
    pipeline = VismPipeline(
        networks["fun-inp"],
        networks["wan-vae"],
        Given(prompts),
        Given(clip) if clip is not None else None,
    )
    return pipeline.complete(
        rendered,
        holes,
        "p",
        image=image,
        settings=VismSettings(
            sampling=SamplingSettings(num_steps=STEPS, guidance_scale=CFG), **settings
        ),
        generator=torch.Generator().manual_seed(SEED),
    )


def hosted(native_host, files, rendered, holes, prompts, clip, **more):
    return native_host.call(
        "chains.vism", files=files, rendered=rendered, holes=holes.float(), prompt=prompts[:1],
        negative=prompts[1:], clip=clip, steps=STEPS, cfg=CFG, seed=SEED, lora_strength=LORA,
        **more,
    )["video"]  # fmt: skip


@pytest.mark.parametrize("everything", [False, True])
def test_the_nodes_fill_holes_as_the_pipeline_does(native_host, models, everything):
    networks, files, with_image = models
    rendered, holes = video(HEIGHT, WIDTH)
    holes = holes | everything
    prompts, clip = tokens(with_image)
    wanted = headless(networks, rendered, holes, prompts, clip)
    other = headless(networks, rendered, ~holes, prompts, clip)
    found = hosted(native_host, files, rendered, holes, prompts, clip)
    error = (found - wanted.clamp(0, 1)).abs().max()
    # The mask must matter more than the tolerance, or the comparison says nothing of it.
    assert (other - wanted).abs().max() > 1e-3
    assert error < 1e-5


def test_a_video_of_any_size_is_filled_and_the_known_pixels_come_back(native_host, models):
    _, files, with_image = models
    rendered, holes = video(27, 45)
    prompts, clip = tokens(with_image)
    found = hosted(native_host, files, rendered, holes, prompts, clip, feather_px=0)
    assert found.shape == rendered.shape
    assert torch.equal(found[~holes], rendered[~holes])
    assert not torch.equal(found[holes], rendered[holes])


def test_one_mask_holds_for_all_frames(native_host, models):
    _, files, with_image = models
    rendered, holes = video(HEIGHT, WIDTH)
    prompts, clip = tokens(with_image)
    every = holes[1:2].repeat(FRAMES, 1, 1)
    one, all_of_them = (
        hosted(native_host, files, rendered, mask, prompts, clip, feather_px=4)
        for mask in (holes[1:2], every)
    )
    assert torch.equal(one, all_of_them)
