from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from more4d_backend.shapes import ShapeError
from more4d_backend.vism.conditioning import mask_latent
from more4d_backend.vism.pipeline import VismPipeline, VismSettings
from more4d_backend.wan.latents import VideoSizeError, decode_video, encode_video
from more4d_backend.wan.sampling import SamplingError, SamplingSettings
from more4d_backend.wan.text import PromptError

HEIGHT, WIDTH = 16, 32
TEXT_DIM, IMAGE_DIM = 8, 12
QUICK = SamplingSettings(num_steps=2, guidance_scale=2.0)


class HashedText:
    """Stands for UMT5: every text has its own tokens."""

    def __init__(self, num_tokens=512):
        self.model = torch.nn.Identity()
        self.num_tokens = num_tokens
        self.seen = []

    def encode(self, prompts):
        self.seen.append(list(prompts))
        rows = [
            torch.randn(self.num_tokens, TEXT_DIM, generator=torch.manual_seed(sum(map(ord, text))))
            for text in prompts
        ]
        return torch.stack(rows)


class FlatImage:
    """Stands for CLIP: every token is the image's mean."""

    def __init__(self):
        self.model = torch.nn.Identity()

    def encode(self, image):
        return image.mean().expand(1, 257, IMAGE_DIM)


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=4).eval().requires_grad_(False)


@pytest.fixture
def transformer():
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=24,
        in_channels=36,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        image_dim=IMAGE_DIM,
        added_kv_proj_dim=24,
    ).eval()


@pytest.fixture
def pipeline(transformer, vae):
    return VismPipeline(transformer, vae, HashedText(), FlatImage())


@pytest.fixture
def inputs(transformer, monkeypatch):
    """Everything that the transformer was called with, in order."""
    calls = []
    forward = transformer.forward

    def recording(**arguments):
        calls.append(SimpleNamespace(**arguments))
        return forward(**arguments)

    monkeypatch.setattr(transformer, "forward", recording)
    return calls


def rendered(frames=5, seed=0):
    return torch.rand(frames, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


def hole_mask(frames=5):
    mask = torch.zeros(frames, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, 4:12, 8:16] = True
    return mask


def complete(pipeline, frames=5, seed=0, **settings):
    return pipeline.complete(
        rendered(frames),
        hole_mask(frames),
        "a red ball rolls left",
        settings=VismSettings(**({"sampling": QUICK} | settings)),
        generator=torch.Generator().manual_seed(seed),
    )


def test_a_completed_video_has_the_size_and_range_of_the_rendered_one(pipeline):
    video = complete(pipeline)
    assert video.shape == (5, HEIGHT, WIDTH, 3)
    assert video.min() >= 0
    assert video.max() <= 1
    assert video.std() > 0


def test_the_seed_decides_and_only_the_seed(pipeline):
    assert torch.equal(complete(pipeline, seed=1), complete(pipeline, seed=1))
    assert not torch.equal(complete(pipeline, seed=1), complete(pipeline, seed=2))


def test_the_network_sees_noise_then_mask_then_masked_video(pipeline, inputs, vae):
    complete(pipeline)
    first = inputs[0]
    assert first.hidden_states.shape == (2, 36, 2, 2, 4)
    noise = torch.randn(1, 16, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    for row in range(2):
        assert torch.equal(first.hidden_states[row : row + 1, :16], noise)
        assert torch.equal(first.hidden_states[row : row + 1, 16:20], mask_latent(hole_mask()))
    grey = (rendered() * 2 - 1).masked_fill(hole_mask()[..., None], 0).permute(3, 0, 1, 2)[None]
    torch.testing.assert_close(first.hidden_states[:1, 20:], encode_video(vae, grey))
    assert first.timestep.tolist() == [1000, 1000]


def test_the_negative_text_comes_first_and_both_branches_share_the_rest(pipeline, inputs):
    complete(pipeline, negative_prompt="blurry")
    assert pipeline.text_encoder.seen == [["a red ball rolls left", "blurry"]]
    prompt, negative = HashedText().encode(["a red ball rolls left", "blurry"])
    assert torch.equal(inputs[0].encoder_hidden_states, torch.stack([negative, prompt]))


def test_image_tokens_come_from_the_image_and_are_zero_without_one(pipeline, inputs, caplog):
    complete(pipeline)
    assert inputs[0].encoder_hidden_states_image.shape == (2, 257, IMAGE_DIM)
    assert inputs[0].encoder_hidden_states_image.abs().max() == 0
    pipeline.complete(
        rendered(),
        hole_mask(),
        "a ball",
        image=torch.full((8, 8, 3), 0.25),
        settings=VismSettings(sampling=QUICK),
    )
    assert (inputs[-1].encoder_hidden_states_image == 0.25).all()


def test_the_video_is_what_the_network_knows_to_be_the_answer(pipeline, vae, monkeypatch):
    wanted = rendered(seed=7).permute(3, 0, 1, 2)[None] * 2 - 1
    target = encode_video(vae, wanted)

    def velocity(hidden_states, timestep, **_):
        sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
        return ((hidden_states[:, :16] - target) / sigma,)

    monkeypatch.setattr(pipeline.transformer, "forward", velocity)
    decoded = decode_video(vae, target)[0].permute(1, 2, 3, 0) / 2 + 0.5
    torch.testing.assert_close(complete(pipeline), decoded, atol=1e-4, rtol=0)


def test_pasting_keeps_every_known_pixel_beyond_the_seam(pipeline):
    plain = complete(pipeline)
    pasted = complete(pipeline, paste_known_pixels=True, feather_px=0)
    mask = hole_mask()
    assert torch.equal(pasted[mask], plain[mask])
    assert torch.equal(pasted[~mask], rendered()[~mask])
    assert not torch.equal(plain[~mask], rendered()[~mask])


def test_a_long_video_is_filled_in_windows_and_each_knows_what_the_one_before_filled(
    pipeline, inputs
):
    sampling = SamplingSettings(num_steps=1, guidance_scale=1.0)
    video = complete(pipeline, frames=12, window_frames=9, overlap_frames=5, sampling=sampling)
    assert video.shape == (12, HEIGHT, WIDTH, 3)
    assert len(inputs) == 2
    taken_over = hole_mask(9)
    taken_over[:6] = False
    assert torch.equal(inputs[0].hidden_states[:, 16:20], mask_latent(hole_mask(9)))
    assert torch.equal(inputs[1].hidden_states[:, 16:20], mask_latent(taken_over))
    assert not torch.equal(inputs[0].hidden_states[:, :16], inputs[1].hidden_states[:, :16])


def test_frames_of_the_first_window_alone_are_not_changed_by_the_second(pipeline):
    sampling = SamplingSettings(num_steps=1, guidance_scale=1.0)
    long = complete(pipeline, frames=12, window_frames=9, overlap_frames=5, sampling=sampling)
    settings = VismSettings(sampling=sampling)
    generator = torch.Generator().manual_seed(0)
    short = pipeline.complete(
        rendered(12)[:9],
        hole_mask(9),
        "a red ball rolls left",
        settings=settings,
        generator=generator,
    )
    torch.testing.assert_close(long[:3], short[:3])
    assert not torch.allclose(long[3:9], short[3:9])


def test_progress_counts_the_steps_of_all_windows(pipeline):
    seen = []
    pipeline.complete(
        rendered(12),
        hole_mask(12),
        "a ball",
        settings=VismSettings(sampling=QUICK, window_frames=9, overlap_frames=5),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_nan_from_the_network_stops_and_names_the_step(pipeline):
    pipeline.transformer.proj_out.weight.data.fill_(float("nan"))
    with pytest.raises(SamplingError, match="step 1 of 2"):
        complete(pipeline)


def test_nan_from_the_vae_is_not_handed_out_as_a_video(transformer):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    broken = AutoencoderKLWan(base_dim=4).requires_grad_(False)
    broken.decoder.conv_out.weight.fill_(float("nan"))
    with pytest.raises(SamplingError, match="The VAE decoded NaN"):
        complete(VismPipeline(transformer, broken, HashedText()))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("video", "mask", "prompt", "error", "says"),
    [
        (rendered(), hole_mask(), "  ", PromptError, "The prompt is empty"),
        (rendered(6), hole_mask(6), "a", VideoSizeError, "num_frames is 6.*Use 5 or 9"),
        (rendered()[:, :12], hole_mask()[:, :12], "a", VideoSizeError, "The height is 12.*16"),
        (rendered(), hole_mask(9), "a", ShapeError, "hole_mask has shape"),
        (rendered() * 255, hole_mask(), "a", ValueError, "expected sRGB from 0 to 1"),
    ],
)
def test_bad_input_is_refused_before_any_network_runs(
    pipeline, inputs, video, mask, prompt, error, says
):
    with pytest.raises(error, match=says):
        pipeline.complete(video, mask, prompt)
    assert pipeline.text_encoder.seen == []
    assert inputs == []


def test_a_text_encoder_that_gives_another_number_of_tokens_is_refused(transformer, vae):
    short = VismPipeline(transformer, vae, HashedText(num_tokens=20))
    with pytest.raises(ShapeError, match=r"text_tokens has shape \(2, 20, 8\)"):
        complete(short)


def test_networks_are_placed_only_while_they_are_used(transformer, vae, inputs):
    used = []

    @contextmanager
    def using(*modules):
        used.extend(modules)
        yield

    plan = SimpleNamespace(device=torch.device("cpu"), sequential_cfg=True)
    pipeline = VismPipeline(transformer, vae, HashedText(), FlatImage())
    pipeline.placement = SimpleNamespace(plan=plan, using=using)
    complete(pipeline)
    assert [type(m).__name__ for m in used] == [
        "Identity",
        "AutoencoderKLWan",
        "WanTransformer3DModel",
        "AutoencoderKLWan",
    ]
    assert [call.hidden_states.shape[0] for call in inputs] == [1, 1, 1, 1], "guidance in sequence"


def test_step_caches_keep_nothing_from_one_run_to_the_next(transformer, vae):
    from diffusers.hooks import FirstBlockCacheConfig

    transformer.blocks.append(transformer.blocks[0])
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    pipeline = VismPipeline(transformer, vae, HashedText())
    sampling = SamplingSettings(num_steps=4)
    assert torch.equal(complete(pipeline, sampling=sampling), complete(pipeline, sampling=sampling))


def test_a_transformer_without_image_tokens_is_given_none(vae):
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=24,
        in_channels=36,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
    )
    assert complete(VismPipeline(transformer, vae, HashedText())).shape == (5, HEIGHT, WIDTH, 3)
