"""The whole STraG pipeline with the real classes at toy size and random weights."""

import dataclasses

import pytest
import torch

from more4d_backend import Cameras, PointTracks
from more4d_backend.depth.lifting import DepthError
from more4d_backend.geometry import intrinsics_from_focal, project
from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE
from more4d_backend.strag.pipeline import StragPipeline, StragSettings
from more4d_backend.strag.profile import OWN, RELEASED
from more4d_backend.strag.sizes import PerceptionSize, StragSize, WanSize
from more4d_backend.strag.transformer import StragTransformer
from more4d_backend.wan.latents import VideoSizeError
from more4d_backend.wan.sampling import SamplingError, SamplingSettings
from more4d_backend.wan.text import PromptError

HEIGHT, WIDTH = 32, 48
TEXT_DIM, IMAGE_DIM = 16, 12
PROMPT = "the ball moves left"
SETTINGS = StragSettings(
    num_frames=5,
    size_hw=(HEIGHT, WIDTH),
    sampling=SamplingSettings(num_steps=2, guidance_scale=2.0),
)


class HashedText:
    """Stands for UMT5: every text has its own tokens."""

    model = torch.nn.Identity()

    def encode(self, prompts):
        return torch.stack(
            [
                torch.randn(512, TEXT_DIM, generator=torch.manual_seed(sum(map(ord, text))))
                for text in prompts
            ]
        )


class MeanImage:
    """Stands for CLIP: every token is the image's mean."""

    def __init__(self):
        self.model = torch.nn.Identity()
        self.seen = []

    def encode(self, image):
        self.seen.append(image)
        return image.mean().expand(1, 257, IMAGE_DIM)


def make_pipeline(profile=OWN, image_dim=None, num_layers=1):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    size = StragSize(
        wan=WanSize(
            in_channels=64,
            num_layers=num_layers,
            num_heads=1,
            head_dim=24,
            ffn_dim=16,
            freq_dim=8,
            text_dim=TEXT_DIM,
            image_dim=image_dim,
        ),
        perception=PerceptionSize(dim=16, depth=1, num_heads=2, feature_dim=8),
    )
    transformer = StragTransformer(**size.config()).eval()
    vae = AutoencoderKLWan(base_dim=4).eval().requires_grad_(False)
    motion_vae = MotionVAE(vae, EncoderAdapter(8), DecoderAdapter(8), profile.latents).eval()
    return StragPipeline(
        transformer, vae, motion_vae, HashedText(), MeanImage() if image_dim else None,
        profile=profile,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def photo(height=HEIGHT, width=WIDTH):
    g = torch.Generator().manual_seed(1)
    camera = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([40.0]), height, width),
        height=height,
        width=width,
    )
    image = torch.rand(height, width, 3, generator=g)
    return image, 1 + torch.rand(height, width, generator=g), camera


def generate(pipeline, inputs=None, settings=SETTINGS, seed=0, prompt=PROMPT):
    generator = torch.Generator().manual_seed(seed)
    return pipeline.generate(*(inputs or photo()), prompt, settings=settings, generator=generator)


def test_a_scene_starts_as_the_lifted_photo(pipeline):
    image, depth, camera = photo()
    scene = generate(pipeline)
    assert isinstance(scene.points, PointTracks)
    assert scene.points.grid_hw == (HEIGHT, WIDTH)
    assert scene.num_frames == 5
    pixels, z = project(scene.points.positions[0], camera.intrinsics[0])
    torch.testing.assert_close(z, depth.reshape(-1))
    x = torch.arange(WIDTH).repeat(HEIGHT) + 0.5
    torch.testing.assert_close(pixels[:, 0], x, rtol=0, atol=1e-3)
    torch.testing.assert_close(scene.points.colors, image.reshape(-1, 3))
    assert scene.points.motion[1:].abs().max() > 0


def test_the_seed_alone_decides(pipeline):
    first, again, other = (generate(pipeline, seed=s).points.positions for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_prompt_reaches_the_network(pipeline):
    left = generate(pipeline).points.positions
    right = generate(pipeline, prompt="the ball moves right").points.positions
    assert not torch.equal(left, right)


def test_a_wide_photo_is_never_squashed(pipeline):
    crop = generate(pipeline, photo(32, 96))
    assert (crop.cameras.height, crop.cameras.width) == (32, 48)
    assert crop.cameras.intrinsics[0, 0, 0] == pytest.approx(40.0)
    pad = generate(pipeline, photo(32, 96), dataclasses.replace(SETTINGS, fit="pad"))
    assert (pad.cameras.height, pad.cameras.width) == (16, 48)
    assert pad.cameras.intrinsics[0, 0, 0] == pytest.approx(20.0)
    assert pad.points.grid_hw == (16, 48)


def test_points_without_depth_are_never_visible(pipeline):
    image, depth, camera = photo()
    depth[:5] = float("nan")
    scene = generate(pipeline, (image, depth, camera))
    visible = scene.points.visibility.reshape(5, HEIGHT, WIDTH)
    assert not visible[:, :5].any()
    assert visible[:, 5:].all()


def test_motion_perception_reaches_the_network(pipeline):
    without = dataclasses.replace(SETTINGS, motion_perception=False)
    with_it, without_it = generate(pipeline), generate(pipeline, settings=without)
    assert not torch.equal(with_it.points.positions, without_it.points.positions)


@pytest.mark.parametrize(("profile", "level"), [(RELEASED, 127 / 255), (OWN, None)])
def test_clip_sees_what_the_profile_says(profile, level):
    pipeline = make_pipeline(profile, image_dim=IMAGE_DIM)
    generate(pipeline)
    (seen,) = pipeline.image_encoder.seen
    expected = photo()[0] if level is None else torch.full_like(seen, level)
    torch.testing.assert_close(seen, expected)


def test_the_shift_is_the_weights_own(pipeline, monkeypatch):
    seen = []

    def record(velocity, noise, text, settings, **_):
        seen.append(settings.shift)
        return noise

    monkeypatch.setattr("more4d_backend.strag.pipeline.denoise", record)
    other = dataclasses.replace(SETTINGS, sampling=SamplingSettings(shift=3.0))
    generate(pipeline, settings=other)
    assert seen == [5.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_frames": 6}, VideoSizeError, "Use 5 or 9"),
        ({"size_hw": (40, 48)}, VideoSizeError, "Use 32 or 48"),
    ],
)
def test_sizes_that_the_network_cannot_take_are_refused(pipeline, change, error, message):
    with pytest.raises(error, match=message):
        generate(pipeline, settings=dataclasses.replace(SETTINGS, **change))


def test_an_empty_prompt_and_a_photo_without_depth_are_refused(pipeline):
    with pytest.raises(PromptError, match="empty"):
        generate(pipeline, prompt="  ")
    image, depth, camera = photo()
    with pytest.raises(DepthError, match="usable depth"):
        generate(pipeline, (image, depth * 0, camera))


def test_nan_from_the_network_stops_and_names_the_step(pipeline, monkeypatch):
    monkeypatch.setattr(
        pipeline, "_velocity", lambda *_: lambda latent, *_: torch.full_like(latent, torch.nan)
    )
    with pytest.raises(SamplingError, match="step 1 of 2"):
        generate(pipeline)


def test_nan_from_the_decoder_stops(pipeline, monkeypatch):
    shape = (1, 3, 5, HEIGHT, WIDTH)
    monkeypatch.setattr(pipeline.motion_vae, "decode", lambda _: torch.full(shape, torch.nan))
    with pytest.raises(SamplingError, match="motion VAE"):
        generate(pipeline)


def test_progress_counts_the_steps_and_can_interrupt(pipeline):
    seen = []
    pipeline.generate(*photo(), PROMPT, settings=SETTINGS, progress=lambda *p: seen.append(p))
    assert seen == [(1, 2), (2, 2)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(*photo(), PROMPT, settings=SETTINGS, progress=stop)


def test_a_single_pixel_becomes_a_scene(pipeline):
    assert generate(pipeline, photo(1, 1)).points.positions.isfinite().all()


def test_a_step_cache_of_an_earlier_run_changes_nothing():
    from diffusers import FirstBlockCacheConfig

    pipeline = make_pipeline(num_layers=2)
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    first, again = (generate(pipeline, seed=3).points.positions for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(("profile", "snaps"), [(RELEASED, False), (OWN, True)])
def test_motion_snaps_to_edges_where_the_settings_or_else_the_profile_say(profile, snaps):
    pipeline = make_pipeline(profile)

    def positions(snap_to_edges):
        settings = dataclasses.replace(SETTINGS, snap_to_edges=snap_to_edges)
        return generate(pipeline, settings=settings).points.positions

    assert not torch.equal(positions(True), positions(False))
    assert torch.equal(positions(None), positions(snaps))
