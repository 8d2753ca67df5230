"""Trained parts on held-out samples: stand-ins whose results are known by heart."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

from more4d_backend.depth import DepthPrediction
from more4d_backend.strag.pipeline import StragPipeline
from more4d_backend.strag.profile import OWN
from more4d_backend.vism.pipeline import VismPipeline
from more4d_backend.wan.sampling import SamplingError
from training.data.holes import HoleSettings
from training.data.samples import SampleSize
from training.evaluation.parts import evaluate_depth, evaluate_motion_vae
from training.evaluation.strag import (
    OPPOSITES,
    StragEvaluation,
    evaluate_strag,
    evaluate_swapped_captions,
    swapped_caption,
    word_motions,
)
from training.evaluation.vism import (
    VismEvaluation,
    evaluate_vism,
    grey_fill,
    pattern_regions,
    telea_fill,
)
from training.procedural.dataset import procedural_sample
from training.procedural.scenes import ProceduralSettings, draw_scene

SETTINGS = ProceduralSettings(
    size=SampleSize(num_frames=5, height=64, width=80), moving_camera_share=0.0, samples=1
)


@pytest.fixture(scope="module")
def samples():
    return [procedural_sample(seed, SETTINGS) for seed in range(4)]


class ScalingVae:
    """Stands for a motion VAE that loses a part of the motion."""

    def __init__(self, factor):
        self.factor = factor

    def encode(self, motion):
        return motion * self.factor

    def decode(self, latent):
        return latent


def test_the_motion_vae_is_measured_as_it_comes_and_snapped(samples):
    raw, snapped = evaluate_motion_vae(ScalingVae(0.9), samples, OWN)
    assert raw.mean("R") == pytest.approx(0.1, rel=1e-4)
    assert raw.mean("R interior") == pytest.approx(0.1, rel=1e-4)
    assert raw.mean("stillness") == 0
    assert 0 < raw.mean("moving") < 0.5
    assert snapped.title == "Motion VAE, snapped to edges"
    assert [row.name for row in snapped.rows] == [sample.name for sample in samples]


def test_snapping_is_what_the_second_table_measures(samples):
    class Blur(ScalingVae):
        def decode(self, latent):
            frames = pad(latent[0].transpose(0, 1), (2, 2, 2, 2), mode="replicate")
            return avg_pool2d(frames, 5, stride=1).transpose(0, 1)[None]

    raw, snapped = evaluate_motion_vae(Blur(1.0), samples, OWN)
    assert raw.mean("R") > 0.3
    assert snapped.mean("R") < 0.8 * raw.mean("R")


def test_a_sample_whose_motion_is_lost_is_named(samples):
    class Broken(ScalingVae):
        calls = 0

        def decode(self, latent):
            self.calls += 1
            return latent * (math.nan if self.calls == 2 else 1)

    raw, snapped = evaluate_motion_vae(Broken(1.0), samples, OWN)
    assert list(raw.failures) == list(snapped.failures) == [samples[1].name]
    assert math.isnan(raw.mean("R"))


class Oracle(StragPipeline):
    """Stands for the pipeline: answers with a given function of (sample, caption, call)."""

    def __init__(self, samples, answer):
        self.profile = OWN
        self.samples, self.answer, self.calls = samples, answer, 0

    def generate(self, image, depth, camera, caption, *, settings, generator):
        sample = next(s for s in self.samples if torch.equal(s.depth, depth))
        assert (settings.num_frames, *settings.size_hw) == sample.size_fhw
        self.calls += 1
        return self.answer(sample, caption, self.calls)


def with_motion(sample, factor):
    return replace(sample, motion=(sample.motion * factor).half()).scene()


def test_a_perfect_pipeline_is_perfect_and_the_oracle_stands_beside_it(samples):
    pipeline = Oracle(samples, lambda sample, *_: sample.scene())
    oracle = word_motions(samples, OWN.motion)
    reports = {r.title: r for r in evaluate_strag(pipeline, samples, StragEvaluation(), oracle)}
    own = reports["4D-STraG"]
    assert own.mean("relative error") == own.mean("stillness") == 0
    assert own.mean("direction right") == 1
    assert reports["Direction by word"].mean("right") == 1
    families = {row.name for row in reports["Direction by kind of motion"].rows}
    assert families <= {"translation", "spin", "bounce", "swing", "wave", "growth", "deformation"}
    assert pipeline.calls == 4 * len(samples)
    mean = reports["Oracle: true masks, mean motion of the words"]
    assert 0 < mean.mean("relative error") < 1
    assert mean.mean("stillness") == 0
    assert "Oracle: true masks, motion drawn from the words' examples" in reports


def test_an_oracle_that_saw_this_very_sample_is_nearly_exact(samples):
    pipeline = Oracle(samples, lambda sample, *_: sample.scene())
    for sample in samples:
        oracle = word_motions([sample], OWN.motion)
        reports = evaluate_strag(pipeline, [sample], StragEvaluation(num_samples=1), oracle)
        (mean,) = [r for r in reports if "mean motion" in r.title]
        # Measured 0.000 over 14 samples, but for articulated actors, which are not affine: 0.033.
        assert mean.mean("relative error") < 0.05
        assert mean.mean("average Jaccard") is None  # words say nothing of visibility


def test_the_mean_and_the_best_of_the_samples_are_told(samples):
    factors = [0.0, 0.5, 0.9, -1.0]
    pipeline = Oracle(samples, lambda sample, _, call: with_motion(sample, factors[call - 1]))
    report, *_ = evaluate_strag(pipeline, samples[:1], StragEvaluation())
    assert report.mean("relative error") == pytest.approx((1 + 0.5 + 0.1 + 2) / 4, abs=2e-3)
    assert report.mean("best sample") == pytest.approx(0.1, abs=2e-3)
    assert report.mean("direction right") == 0.5


def test_a_failed_generation_is_named_also_in_the_table_of_words(samples):
    def answer(sample, _, call):
        if sample is samples[2]:
            raise SamplingError("NaN in step 3.")
        return sample.scene()

    reports = evaluate_strag(Oracle(samples, answer), samples, StragEvaluation(num_samples=1))
    for report in reports:
        assert report.failures == {samples[2].name: "NaN in step 3."}
        assert all(math.isnan(mean) for mean in report.means().values())


def swappable(samples):
    return [s for s in samples if any(o.motion in OPPOSITES for o in s.objects)]


@pytest.fixture(scope="module")
def many_samples():
    return [procedural_sample(seed, SETTINGS) for seed in range(100, 124)]


def test_only_a_pipeline_that_reads_the_caption_follows_the_swapped_one(many_samples):
    chosen = swappable(many_samples)[:2]
    assert chosen

    def reading(sample, caption, _):
        assert caption != sample.caption
        return with_motion(sample, -1.0)

    deaf = Oracle(many_samples, lambda sample, *_: sample.scene())
    for sample in chosen:  # the opposite of what an object did is what its opposite word does
        flipped = replace(
            sample,
            motion=-sample.motion,
            objects=tuple(
                replace(o, motion=OPPOSITES.get(o.motion, o.motion)) for o in sample.objects
            ),
        )
        oracle = word_motions([flipped], OWN.motion)
        one = StragEvaluation(num_samples=1)
        report = evaluate_swapped_captions(Oracle(many_samples, reading), [sample], one, oracle)
        assert report.mean("right") == 1
        assert evaluate_swapped_captions(deaf, [sample], one, oracle).mean("right") == 0


def test_swapped_captions_say_the_opposite(many_samples):
    for sample in many_samples:
        words = [OPPOSITES.get(o.motion, o.motion) for o in sample.objects]
        caption = swapped_caption(sample, words).lower()
        for thing, word in zip(sample.objects, words, strict=True):
            assert f"{thing.name} {word}" in caption
        assert swapped_caption(sample, [o.motion for o in sample.objects]) == sample.caption


def test_depth_is_compared_after_one_scale_with_the_field_of_view(samples):
    class Provider:
        def predict(self, image):
            sample = next(s for s in samples if torch.equal(s.video[0] / 255, image))
            intrinsics = sample.cameras.intrinsics[0].clone()
            intrinsics[0, 0] *= 1.1
            return DepthPrediction(
                depth=sample.depth * 3, intrinsics=intrinsics, provider="test", is_metric=False
            )

    report = evaluate_depth(Provider(), samples)
    assert report.mean("AbsRel") < 1e-6
    assert report.mean("constant AbsRel") > 0.1
    assert 2 < report.mean("fov error") < 6
    assert "Best constant field of view" in report.notes[0]


class Filler(VismPipeline):
    """Stands for 4D-ViSM: paints holes in the true colours, or in others."""

    device = torch.device("cpu")
    vae = None

    def __init__(self, fill):
        self.fill = fill

    def complete(self, rendered, hole_mask, prompt, *, image, settings, generator):
        return self.fill(rendered, hole_mask)

    def using(self, *_):
        return nullcontext()


@pytest.fixture
def lossless_vae(monkeypatch):
    monkeypatch.setattr("training.evaluation.vism.encode_video", lambda _, video: video)
    monkeypatch.setattr("training.evaluation.vism.decode_video", lambda _, latent: latent)


def test_filled_videos_stand_beside_their_baselines(samples, lossless_vae):
    evaluation = VismEvaluation(holes=HoleSettings(original=1e-6, round_trip=0, novel=1))
    worlds = {s.name: draw_scene(i, SETTINGS).world for i, s in enumerate(samples)}
    reports = {
        report.title: report
        for report in evaluate_vism(
            Filler(grey_fill), samples[:2], evaluation, pattern_regions(lambda s: worlds[s.name])
        )
    }
    own, grey = reports["4D-ViSM"], reports["Mid-grey"]
    assert own.means() == grey.means()
    assert reports["True video through the VAE"].mean("PSNR known") == 100
    assert reports["Telea"].mean("PSNR filled") > grey.mean("PSNR filled")
    assert reports["Telea"].mean("PSNR known") == pytest.approx(grey.mean("PSNR known"), abs=0.1)
    assert "filled stripes" in own.means()
    assert 0 < own.mean("filled") < 0.5


def test_telea_and_grey_change_holes_alone():
    video = torch.full((2, 16, 16, 3), 51 / 255)
    holes = torch.zeros(2, 16, 16, dtype=torch.bool)
    holes[:, 4:8, 4:8] = True
    # Measured two levels of 255: OpenCV rounds its weights.
    torch.testing.assert_close(telea_fill(video, holes), video, atol=0.01, rtol=0)
    grey = grey_fill(video, holes)
    assert (grey[holes] == 0.5).all()
    assert (grey[~holes] == video[~holes]).all()
