"""The embedded parts are trained here on stand-in clips, a few updates long."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks

from more4d_backend.strag.profile import OWN
from more4d_backend.wan.latents import decode_video, encode_video
from more4d_backend.weights.model_loading import load_motion_vae, load_wan_vae
from training import train_tiny
from training.data.samples import SampleSize
from training.procedural.dataset import procedural_sample, procedural_tiny
from training.procedural.generated import GeneratedBatches
from training.procedural.pictures import Pictures
from training.procedural.settings import ProceduralSettings
from training.run.averaging import ParameterAverage
from training.run.convolution_layout import set_layout, use_fastest_layout
from training.run.errors import NotFiniteError
from training.tiny import loop as tiny_loop
from training.tiny import vaes as tiny_vaes
from training.tiny.clip_pool import ClipPool
from training.tiny.vaes import TinyVaes


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(tiny_vaes, "TINY_VAE_WIDTH", 4)


@pytest.fixture
def pool():
    generator = torch.Generator().manual_seed(0)
    moves = torch.rand(3, 1, 1, 64, 64, generator=generator) > 0.8
    motion = torch.randn(3, 3, 17, 1, 1, generator=generator) * moves * 0.3
    motion[:, :, 0] = 0
    video = torch.randint(0, 255, (3, 3, 17, 64, 64), dtype=torch.uint8, generator=generator)
    depth = torch.rand(3, 3, 1, 64, 64, generator=generator)
    return ClipPool(
        motion=motion.half(), image=video[:, :, :1], depth_picture=depth.half(), video=video
    )


@pytest.fixture
def training(monkeypatch, pool, tmp_path):
    monkeypatch.setattr(ClipPool, "filled", classmethod(lambda _cls, *_: pool))
    monkeypatch.setattr(train_tiny, "_pictures", lambda _training: None)
    for name, frames, size in (("_SHORT", 5, 32), ("_LONG", 9, 32), ("_WHOLE", 17, 64)):
        crops = train_tiny._Crops(
            size=SampleSize(num_frames=frames, height=size, width=size),
            num_pictures=3,
            num_motions=4,
        )
        monkeypatch.setattr(train_tiny, name, crops)
    monkeypatch.setattr(train_tiny, "_WHOLE_SHARE", 0.5)
    small = replace(procedural_tiny(), size=SampleSize(num_frames=5, height=32, width=48))
    monkeypatch.setitem(train_tiny.PROCEDURAL_RECIPES, "tiny", lambda: small)
    return replace(
        train_tiny.RECIPES["vae"],
        output=tmp_path,
        steps=2,
        device="cpu",
        precision="fp32",
        workers=0,
    )


def test_both_vaes_are_written_and_load(training):
    train_tiny.train_vaes(training)
    rgb, motion = (
        next(training.output.rglob(f"*{name}_vae.safetensors")) for name in ("wan", "motion")
    )
    start = training.output / "motion_vae_start.safetensors"
    assert load_wan_vae(rgb, dtype=torch.float32).config["base_dim"] == 4
    clip = torch.randn(1, 3, 5, 16, 16) * 0.3
    decoded = []
    for path, encoder in ((start, None), (motion, rgb)):
        model = load_motion_vae(path, OWN.latents, encoder=encoder, dtype=torch.float32)
        decoded.append(model.decode(model.encode(clip)))
    # The embedded file is rounded to bfloat16; measured 0.02.
    assert (decoded[0] - decoded[1]).norm() < 0.1 * decoded[0].norm()


def test_clips_grow_in_the_course_of_the_training():
    generator = torch.Generator().manual_seed(0)
    drawn = [
        {train_tiny._crops(progress, 0.55, generator) for _ in range(20)}
        for progress in (0.1, 0.7, 0.95)
    ]
    short, long, whole = train_tiny._SHORT, train_tiny._LONG, train_tiny._WHOLE
    assert drawn == [{short}, {short, long}, {whole}]
    assert whole.size == procedural_tiny().size
    assert long.size.num_frames == whole.size.num_frames > short.size.num_frames


def test_a_training_goes_on_from_what_another_one_wrote(training):
    train_tiny.train_vaes(training)
    rgb = load_wan_vae(next(training.output.rglob("*wan_vae*")), dtype=torch.float32)
    start = training.output / "motion_vae_start.safetensors"
    motion = load_motion_vae(start, OWN.latents, dtype=torch.float32)
    continued = train_tiny._continued(training.output).eval()
    clip = torch.randn(2, 3, 5, 32, 32).clamp(-1, 1) * 0.5
    with torch.no_grad():
        ended = motion.decode(motion.encode(clip))
        shown = continued.motion.encoder_prompt(clip)
        latent = continued.rgb.encode(shown, return_dict=False)[0].mode()
        gone_on = continued.motion.decode(continued.motion.standardize(latent))
        pictures = [decode_video(v, encode_video(v, clip)) for v in (rgb, continued.rgb)]
    # The file of the VAE of pictures is rounded to bfloat16, and with it the latents' scales.
    assert (gone_on - ended).norm() < 0.02 * ended.norm()
    assert (pictures[1] - pictures[0]).norm() < 0.02 * pictures[0].norm()
    train_tiny.train_vaes(replace(training, start=training.output, output=training.output / "on"))
    assert (training.output / "on" / "motion_vae_start.safetensors").exists()


def test_what_is_told_at_the_end_is_of_the_weights_that_are_written(training, monkeypatch):
    told, measured = [], train_tiny._measured

    def keeping(model, clips):
        told.append((measured(model, clips), copy.deepcopy(model), clips))
        return told[0][0]

    monkeypatch.setattr(train_tiny, "_measured", keeping)
    train_tiny.train_vaes(replace(training, precision="bf16"))
    said, model, clips = told[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert said == measured(model, clips)


def test_latents_of_both_vaes_have_mean_zero_and_std_one(training, pool):
    model = TinyVaes().eval()
    with torch.no_grad():
        train_tiny._fold_statistics(model, pool)
        latents = [model.motion.encode(clip[None].float()) for clip in pool.motion]
    rows = torch.cat(latents).transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(rows.std(1), torch.ones(16), atol=1e-2, rtol=0)


def test_a_training_that_was_stopped_ends_as_one_that_was_not(training, monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_loop, "_SAVE_EVERY", 1)
    train_tiny.train_vaes(training)
    stopped = replace(training, output=tmp_path / "stopped")
    update, count = ParameterAverage.update, 0

    def failing(average):
        nonlocal count
        update(average)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ParameterAverage, "update", failing)
        with pytest.raises(KeyboardInterrupt):
            train_tiny.train_vaes(stopped)
    train_tiny.train_vaes(stopped)
    name = "motion_vae_start.safetensors"
    ended, continued = load_file(training.output / name), load_file(stopped.output / name)
    assert ended.keys() == continued.keys()
    assert all(torch.equal(ended[key], continued[key]) for key in ended)


def test_signals_reach_the_latents_and_the_output_from_the_first_step_on():
    torch.manual_seed(0)
    model = TinyVaes().eval()
    clips = torch.rand(4, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        means = model.rgb.encode(clips, return_dict=False)[0].mean
        decoded = tiny_vaes.decode_own_units(model.rgb, means)
    assert means.std(0).mean() > 0.02
    assert decoded.std(0).mean() > 0.02


def test_the_decoder_of_motion_starts_from_that_of_pictures():
    model = TinyVaes()
    average = ParameterAverage(dict(model.named_parameters()), 0.9)
    with torch.no_grad():
        for parameter in model.rgb.decoder.parameters():
            parameter.add_(1.0)
    average.update()
    model.split_decoders(average)
    for name, parameter in model.rgb.decoder.named_parameters():
        assert torch.equal(parameter, model.motion.vae.decoder.get_parameter(name))
        means = (average.mean[f"{side}.decoder.{name}"] for side in ("rgb", "motion.vae"))
        assert torch.equal(*means)


def test_generated_batches_are_the_samples_of_their_seeds():
    size = SampleSize(num_frames=5, height=16, width=32)
    settings = ProceduralSettings(size=size, novel_paths=(), samples=1)
    batches = list(
        GeneratedBatches(
            settings=settings,
            first_seed=7,
            batch_size=2,
            num_batches=2,
            device=torch.device("cpu"),
            num_workers=0,
        )
    )
    assert [b.names for b in batches] == [
        ("procedural-000000007", "procedural-000000008"),
        ("procedural-000000009", "procedural-000000010"),
    ]
    sample = procedural_sample(9, settings)
    assert torch.equal(batches[1].motion[0], sample.motion)
    assert torch.equal(batches[1].video[0], sample.video)


def fake_training(**settings):
    return replace(
        train_tiny.RECIPES["depth"], **({"device": "cpu", "precision": "fp32"} | settings)
    )


def fake_losses(values, model):
    return lambda _progress, _average: {"loss": model.weight.sum() * 0, "R": values}


def test_a_training_that_does_not_learn_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_loop, "_SAY_EVERY", 5)
    training = fake_training(output=tmp_path, steps=40, must_fall=("R", 0.9, 10))
    model, generator = torch.nn.Linear(1, 1), torch.Generator()
    with pytest.raises(tiny_loop.DeadTrainingError, match=r"R is 1\.000 after 10 updates"):
        tiny_loop.train_tiny(model, fake_losses(torch.tensor(1.0), model), training, generator)
    tiny_loop.train_tiny(model, fake_losses(torch.tensor(0.8), model), training, generator)


def test_a_value_that_is_not_finite_ends_a_training(tmp_path):
    model = torch.nn.Linear(1, 1)
    losses = fake_losses(torch.tensor(float("nan")), model)
    with pytest.raises(NotFiniteError):
        tiny_loop.train_tiny(model, losses, fake_training(output=tmp_path), torch.Generator())


def test_a_training_with_a_time_ends_with_it_and_its_learning_rate(tmp_path, monkeypatch):
    clock, seen = iter(range(10_000)), []
    monkeypatch.setattr(tiny_loop.time, "perf_counter", lambda: float(next(clock)))
    model = torch.nn.Linear(1, 1)

    def losses(progress, _average):
        seen.append(progress)
        return {"loss": model.weight.sum()}

    training = fake_training(output=tmp_path, steps=10_000, minutes=1.0)
    tiny_loop.train_tiny(model, losses, training, torch.Generator())
    assert 20 <= len(seen) <= 60
    assert seen == sorted(seen)
    assert seen[-1] > 0.9
    assert training.learning_rate_at(len(seen), seen[-1]) < 0.03 * training.learning_rate


def test_drawn_pictures_are_kept_and_those_that_are_missing_are_added(tmp_path, monkeypatch):
    small = replace(procedural_tiny(), size=SampleSize(num_frames=5, height=32, width=48))
    monkeypatch.setitem(train_tiny.PROCEDURAL_RECIPES, "tiny", lambda: small)
    drawing = train_tiny.Drawing(output=tmp_path, count=3, per_file=2, workers=0)
    train_tiny.draw(drawing)
    first, second = sorted((tmp_path / "pictures").iterdir())
    assert len(Pictures.load([first, second])) == 3
    written, _ = first.stat().st_mtime_ns, second.unlink()
    train_tiny.draw(drawing)
    assert first.stat().st_mtime_ns == written
    assert second.exists()


def test_layout_changes_where_weights_lie_and_not_what_they_compute():
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(3, 4, 3)
    model = torch.nn.Sequential(conv, torch.nn.Conv3d(4, 3, 1))
    clip = torch.randn(2, 3, 5, 8, 8)
    before = model(clip)
    use_fastest_layout(model, lambda: model(clip).square().mean())
    assert all(parameter.grad is None for parameter in model.parameters())
    for channels_last in (True, False):
        set_layout(model, channels_last=channels_last)
        is_last = conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
        assert is_last == channels_last
        torch.testing.assert_close(model(clip), before)


def test_under_autocast_each_layout_is_tried_with_weights_that_lie_so():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv3d(4, 4, 3))
    clip = torch.randn(2, 4, 5, 8, 8)
    seen = []

    def watch(kept: torch.Tensor) -> torch.Tensor:
        if kept.shape == model[0].weight.shape:  # what the convolution was given, for its gradient
            seen.append(kept.is_contiguous(memory_format=torch.channels_last_3d))
        return kept

    hooks = saved_tensors_hooks(watch, lambda kept: kept)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        use_fastest_layout(model, lambda: model(clip).float().square().mean())
    assert len(seen) > 2
    half = len(seen) // 2
    assert seen == [True] * half + [False] * half
