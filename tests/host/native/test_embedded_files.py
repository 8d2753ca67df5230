"""Every embedded file in the host: loaded by its own loaders, computing what it does headless."""

import pytest
import torch

from more4d_backend import tiny
from more4d_backend.depth import TinyDepth
from more4d_backend.strag.motion_perception import Guidance
from more4d_backend.strag.profile import OWN
from more4d_backend.tiny.text_encoder import ByteTextEncoder
from more4d_backend.vism.lora import load_lora
from more4d_backend.wan.latents import decode_video, encode_distribution
from more4d_backend.weights.model_loading import (
    load_byte_text,
    load_motion_vae,
    load_strag,
    load_wan_transformer,
    load_wan_vae,
)

pytestmark = pytest.mark.host

TEXTS = ("a red ball moves left; a blue box stays still in a room.", "")
LATENT = (3, 8, 12)


@pytest.fixture(scope="module", params=["random", "trained"])
def folder(request):
    """Random values, so that every part counts; and what is committed."""
    if request.param == "random":
        return request.getfixturevalue("random_embedded")
    if not tiny.has_embedded_weights():
        pytest.skip("the trained embedded weights are not in this checkout")
    return tiny.WEIGHTS_FOLDER


@pytest.fixture(scope="module")
def draw():
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=generator)


def file(folder, name):
    return folder / tiny.relative_path(name)


def close(found, wanted, tolerance=1e-4):
    """Within a part of the largest value."""
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.fixture(scope="module")
def text(folder):
    """Tokens of both halves of guidance."""
    model = load_byte_text(file(folder, "text_encoder"), dtype=torch.float32)
    return ByteTextEncoder(model).encode(TEXTS)


def test_the_text_encoder_gives_the_same_tokens(native_host, folder, text):
    for said, wanted in zip(TEXTS, text, strict=True):
        found = native_host.call("embedded_files.text_tokens", folder=str(folder), text=said)
        close(found["tokens"][0], wanted)
        assert found["tokens"].shape == (1, 512, 4096)


@torch.no_grad()
def test_strag_with_guidance_gives_the_same_velocity(native_host, folder, draw, text):
    path = file(folder, "strag")
    model = load_strag(path, dtype=torch.float32)
    gates = [p for name, p in model.named_parameters() if name.endswith(".gate")]
    assert min(float(gate.abs().max()) for gate in gates) > 1e-3
    x, reference, image = draw(2, 64, *LATENT), draw(2, 16, *LATENT[1:]), draw(1, 3, 64, 96)
    image = image.sigmoid()
    timestep = torch.tensor([800.0, 300.0])
    features = model.encode_image(image, LATENT[1:])

    def headless(guidance):
        return model(
            x, timestep, text, reference_latent=reference, guidance=guidance, return_dict=False
        )[0]

    wanted = headless(Guidance(features=features, unguided_frame=OWN.unguided_frame))
    assert (wanted - headless(None)).abs().max() > 1e-3 * wanted.abs().max()
    found = native_host.call(
        "networks.velocity", path=str(path), x=x, timestep=timestep, context=text,
        reference=reference, image=image, unguided_frame=OWN.unguided_frame,
    )  # fmt: skip
    assert found["config"] == "STraG"
    close(found["velocity"], wanted)


@torch.no_grad()
def test_vism_with_its_lora_gives_the_same_velocity(native_host, folder, draw, text):
    path, lora = file(folder, "vism"), file(folder, "vism_lora")
    x, timestep = draw(2, 36, *LATENT), torch.tensor([800.0, 300.0])
    model = load_wan_transformer(path, dtype=torch.float32)
    base = model(x, timestep, text, return_dict=False)[0]
    call = {"path": str(path), "x": x, "timestep": timestep, "context": text}
    close(native_host.call("networks.velocity", **call)["velocity"], base)
    load_lora(model, lora, lora_weight=1.0)
    wanted = model(x, timestep, text, return_dict=False)[0]
    assert (wanted - base).abs().max() > 1e-3 * base.abs().max()
    close(native_host.call("networks.velocity", lora=str(lora), **call)["velocity"], wanted)


@torch.no_grad()
def test_the_vae_gives_the_same_latents_and_videos(native_host, folder, draw):
    video = draw(9, 32, 48, 3).sigmoid()
    found = native_host.call("embedded_files.video_round_trip", folder=str(folder), video=video)
    vae = load_wan_vae(file(folder, "wan_vae"), dtype=torch.float32)
    clip = (2 * video - 1).permute(3, 0, 1, 2)[None]  # b c f h w
    close(found["latent"], encode_distribution(vae, clip).mode())
    mean, std = (
        torch.tensor(vae.config[f"latents_{s}"])[:, None, None, None] for s in ("mean", "std")
    )
    back = decode_video(vae, (found["latent"] - mean) / std)[0].permute(1, 2, 3, 0)
    close(found["video"], (back + 1) / 2)


@torch.no_grad()
def test_the_motion_vae_gives_the_same_latents_and_motion(native_host, folder, draw):
    motion = 0.2 * draw(9, 32, 48, 3)
    found = native_host.call("embedded_files.motion_round_trip", folder=str(folder), motion=motion)
    assert found["profile"] == "own"
    vae = load_motion_vae(
        file(folder, "motion_vae"),
        OWN.latents,
        encoder=file(folder, "wan_vae"),
        dtype=torch.float32,
    )
    close(found["latent"], vae.encode(motion.permute(3, 0, 1, 2)[None]))
    close(found["motion"], vae.decode(found["latent"])[0].permute(1, 2, 3, 0))


def test_the_depth_network_gives_the_same_depth_and_camera(native_host, folder, draw):
    image = draw(40, 60, 3).sigmoid()
    found = native_host.call("embedded_files.depth", folder=str(folder), image=image)
    wanted = TinyDepth.load(file(folder, "depth")).predict(image)
    close(found["depth"], wanted.depth)
    close(found["intrinsics"], wanted.intrinsics)
