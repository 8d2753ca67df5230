"""The nodes of STraG around the host's KSampler, against the headless pipeline."""

import dataclasses

import pytest
import torch

from more4d_backend.scene import Cameras
from more4d_backend.strag.pipeline import StragPipeline, StragSettings
from more4d_backend.strag.profile import OWN, RELEASED
from more4d_backend.wan.sampling import SamplingSettings
from more4d_backend.weights.kinds import WeightKind

pytestmark = pytest.mark.host

HEIGHT, WIDTH, STEPS, CFG, SEED = 32, 48, 4, 3.0, 7
PROFILES = {profile.name: profile for profile in (OWN, RELEASED)}


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
    kinds = {
        "strag": WeightKind.STRAG,
        "wan-vae": WeightKind.WAN_VAE,
        "motion-vae": WeightKind.MOTION_VAE,
    }
    files = {
        name: write_original(folder / f"{name}.safetensors", kind, networks[name])
        for name, kind in kinds.items()
    }
    return networks, files, request.param


def photo(height, width):
    g = torch.Generator().manual_seed(1)
    intrinsics = torch.tensor(
        [[1.1 * width, 0, width / 2], [0, 1.1 * width, height / 2], [0, 0, 1]]
    )
    depth = 1 + torch.rand(height, width, generator=g)
    depth[:3, :5] = torch.nan
    return torch.rand(height, width, 3, generator=g), depth, intrinsics


def tokens(seed, with_image):
    g = torch.Generator().manual_seed(seed)
    prompts = torch.zeros(2, 512, 4096)
    prompts[0, :9] = torch.randn(9, 4096, generator=g)
    prompts[1, :2] = torch.randn(2, 4096, generator=g)
    return prompts, torch.randn(1, 257, 1280, generator=g) if with_image else None


def headless(networks, profile, picture, prompts, clip, settings):
    image, depth, intrinsics = picture
    camera = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics[None],
        height=image.shape[0],
        width=image.shape[1],
    )
    networks["motion-vae"].settings = profile.latents
    pipeline = StragPipeline(
        networks["strag"],
        networks["wan-vae"],
        networks["motion-vae"],
        Given(prompts),
        Given(clip) if clip is not None else None,
        profile=profile,
    )
    generator = torch.Generator().manual_seed(SEED)
    return pipeline.generate(image, depth, camera, "p", settings=settings, generator=generator)


@pytest.mark.parametrize("profile", ["own", "released"])
@pytest.mark.parametrize(
    ("size_hw", "fit"), [((HEIGHT, WIDTH), "crop"), ((40, 100), "crop"), ((40, 100), "pad")]
)
def test_the_nodes_make_the_scene_that_the_pipeline_makes(
    native_host, models, profile, size_hw, fit
):
    networks, files, with_image = models
    picture, (prompts, clip) = photo(*size_hw), tokens(2, with_image)
    settings = StragSettings(
        num_frames=5,
        size_hw=(HEIGHT, WIDTH),
        fit=fit,
        sampling=SamplingSettings(num_steps=STEPS, guidance_scale=CFG),
    )
    wanted = headless(networks, PROFILES[profile], picture, prompts, clip, settings)
    still = headless(
        networks, PROFILES[profile], picture, prompts, clip,
        dataclasses.replace(settings, motion_perception=False),
    )  # fmt: skip
    image, depth, intrinsics = picture
    found = native_host.call(
        "chains.strag", files=files, profile=profile, image=image, depth=depth,
        intrinsics=intrinsics, prompt=prompts[:1], negative=prompts[1:], clip=clip,
        size_hw=(HEIGHT, WIDTH), fit=fit, num_frames=5, steps=STEPS, cfg=CFG, seed=SEED,
    )  # fmt: skip
    moved = wanted.points.motion.abs().max()
    assert moved > 0.01
    # Guidance must matter far more than the tolerance, or the comparison says nothing of it.
    assert (still.points.positions - wanted.points.positions).abs().max() > 0.01 * moved
    error = (found["positions"] - wanted.points.positions).abs().max()
    assert error < 1e-4 * moved
    torch.testing.assert_close(found["colors"], wanted.points.colors)
    assert torch.equal(found["visibility"], wanted.points.visibility)
    assert found["grid_hw"] == wanted.points.grid_hw
    torch.testing.assert_close(found["intrinsics"], wanted.cameras.intrinsics)


def test_without_clip_image_tokens_are_zero_as_in_the_pipeline(native_host, models):
    networks, files, with_image = models
    picture, (prompts, _) = photo(HEIGHT, WIDTH), tokens(2, with_image)
    sampling = SamplingSettings(num_steps=STEPS, guidance_scale=CFG)
    settings = StragSettings(num_frames=5, size_hw=(HEIGHT, WIDTH), sampling=sampling)
    wanted = headless(networks, OWN, picture, prompts, None, settings)
    image, depth, intrinsics = picture
    found = native_host.call(
        "chains.strag", files=files, profile="own", image=image, depth=depth,
        intrinsics=intrinsics, prompt=prompts[:1], negative=prompts[1:], clip=None,
        size_hw=(HEIGHT, WIDTH), fit="crop", num_frames=5, steps=STEPS, cfg=CFG, seed=SEED,
    )  # fmt: skip
    error = (found["positions"] - wanted.points.positions).abs().max()
    assert error < 1e-4 * wanted.points.motion.abs().max()
