"""The trainer of the embedded Geo4D: its loop, its settings, and a whole small run."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from more4d_backend.geo4d.modalities import RAY_DIRECTIONS, RAY_MOMENTS
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.weights.geo4d import load_geo4d, save_geo4d
from training import train_tiny_geo4d
from training.geo4d.objectives import CHANNELS as MODALITIES
from training.geo4d.objectives import ModalityWeights
from training.geo4d.pools import LatentPool
from training.geo4d.quality import WindowErrors, WindowQuality, best_num_steps
from training.geo4d.tiny_settings import PhaseEnds, TinyGeo4DTraining
from training.geo4d.tiny_unet import compared_with, drawn_timesteps, train_unet
from training.procedural.clips import ClipSettings
from training.run import time_boxes
from training.run.errors import NotFiniteError
from training.run.settings import SettingsError
from training.run.time_boxes import TimeBox, Updates, optimize
from training.train_tiny_geo4d import FILE_NAME, train

SMALL = TinyGeo4DTraining(
    clips=ClipSettings(size_hw=(16, 32), num_frames=16, samples=1),
    minutes=None, pool_size=2, variants=2, vae_steps=2, vae_clips=1, unet_steps=2, unet_windows=2,
    device="cpu", precision="fp32", workers=0, evaluated_clips=1,
)  # fmt: skip


def test_timesteps_are_mostly_those_that_sampling_goes_through():
    times = drawn_timesteps(1000, 0.5, torch.Generator().manual_seed(0))
    assert (times == 999).float().mean() == pytest.approx(0.5, abs=0.01)
    on_the_way = torch.isin(times, torch.tensor([199, 399, 599, 799])).float().mean()
    assert on_the_way == pytest.approx(0.25, abs=0.02)
    assert times.min() >= 0
    assert (drawn_timesteps(10, 1.0, torch.Generator().manual_seed(0)) == 999).all()


def test_a_small_run_writes_a_file_that_loads_and_says_what_it_measured(tmp_path, caplog):
    with caplog.at_level("INFO"):
        path = train(replace(SMALL, output=tmp_path))
    assert path == tmp_path / FILE_NAME
    assert path.stat().st_size < 6_000_000
    networks = load_geo4d(path)
    assert networks.size == GEO4D_SIZES["tiny"]
    assert "5 steps: rotation RPE" in caplog.text
    assert f"says to denoise in {networks.num_steps} step" in caplog.text
    assert networks.camera_weight == SMALL.camera_weight == 0.5
    assert "true latents: rotation RPE" in caplog.text
    assert "4 windows, 2 updates of the VAE, 2 of the UNet" in caplog.text


def quality(num_steps, rotation_deg, abs_rel=0.5):
    errors = WindowErrors(
        rotation_rpe_deg=rotation_deg, still_rotation_rpe_deg=2.0, center=0.5,
        abs_rel=abs_rel, within=0.5, constant_within=0.5,
    )  # fmt: skip
    return WindowQuality(num_steps=num_steps, errors=errors)


@pytest.mark.parametrize("best", [1, 5])
def test_the_file_says_the_steps_that_were_better_on_held_out_clips(tmp_path, monkeypatch, best):
    def measured(_networks, _batches, steps_tried):
        errors_deg = {None: 0.1, 1: 3.0, 5: 3.0} | {best: 2.0}
        return [quality(num_steps, errors_deg[num_steps]) for num_steps in steps_tried]

    monkeypatch.setattr(train_tiny_geo4d, "measured_quality", measured)
    assert load_geo4d(train(replace(SMALL, output=tmp_path))).num_steps == best


def test_of_two_numbers_of_steps_the_one_with_less_error_of_rotations_is_best():
    true = quality(None, 0.01, 0.01)
    assert best_num_steps([true, quality(1, 1.0, 0.4), quality(5, 2.0, 0.1)]) == 1
    assert best_num_steps([true, quality(1, 2.0, 0.1), quality(5, 1.0, 0.4)]) == 5
    assert best_num_steps([quality(5, 1.0, 0.1), quality(1, 1.0, 0.4)]) == 1


def test_a_run_that_goes_on_keeps_the_vae_and_trains_the_unet(tmp_path):
    first = train(replace(SMALL, output=tmp_path / "first"))
    second = train(replace(SMALL, output=tmp_path / "second", start=first, seed=2))
    before, after = (load_geo4d(path).state_dict() for path in (first, second))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith("vae.") for name in changed)
    with safe_open(first, "pt") as file, safe_open(second, "pt") as longer:
        recipe = longer.metadata()["more4d_recipe"]
        assert "--seed 2" in recipe
        assert recipe.endswith(f"went on from a file of recipe: {file.metadata()['more4d_recipe']}")
    toy = tmp_path / "toy.safetensors"
    save_geo4d(Geo4DNetworks(GEO4D_SIZES["toy"]), toy)
    with pytest.raises(SettingsError, match="not of the embedded size"):
        train(replace(SMALL, output=tmp_path, start=toy))


def test_the_learning_rate_has_fallen_when_time_is_up(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time_boxes.time, "perf_counter", lambda: clock[0])
    updates = Updates(learning_rate=1.0, ema_decay=0.9, autocast=SMALL.autocast)
    weight, seen = nn.Parameter(torch.ones(2)), []

    def losses(step: int, progress: float):
        clock[0] += 1.0
        seen.append(progress)
        return {"loss": weight.square().sum()}

    assert optimize({"w": weight}, losses, updates, TimeBox(steps=1000, seconds=50.0), "test") == 50
    assert seen[0] == 0
    assert seen[-1] == pytest.approx(49 / 50)
    rates = [updates.learning_rate_at(1000, progress) for progress in seen]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 2e-3


def test_phases_share_the_minutes_and_what_is_early_helps_the_next():
    training = replace(SMALL, minutes=10.0)
    assert training.seconds_until(0.5, 0.0) == 300
    assert training.seconds_until(0.5, 100.0) == 200
    assert 0 < training.seconds_until(0.5, 400.0) < 0.1
    assert SMALL.seconds_until(0.5, 1e9) == math.inf


def test_the_running_mean_is_what_training_leaves_and_what_is_looked_at():
    updates = Updates(learning_rate=0.1, ema_decay=0.5, autocast=SMALL.autocast)
    weight, looks, last = nn.Parameter(torch.ones(1)), [], [1.0]

    def losses(step: int, progress: float):
        last[0] = weight.item()
        return {"loss": weight.square().sum()}

    def look() -> None:
        looks.append(weight.item())

    optimize({"w": weight}, losses, updates, TimeBox(steps=40), "test", look)
    assert len(looks) == 3
    assert looks == sorted(looks, reverse=True)
    assert weight.item() != last[0]


def test_a_loss_that_is_not_finite_stops_the_training():
    updates = Updates(learning_rate=0.1, ema_decay=0.5, autocast=SMALL.autocast)
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(NotFiniteError, match="test, 20 updates"):
        optimize(
            {"w": weight}, lambda _s, _p: {"loss": (weight * math.inf).sum()}, updates,
            TimeBox(steps=100), "test",
        )  # fmt: skip


def test_what_is_told_of_a_unet_that_knows_nothing_is_1_for_every_modality(caplog):
    torch.manual_seed(0)
    networks = Geo4DNetworks(GEO4D_SIZES["toy"])
    nn.init.zeros_(networks.unet.out[2].weight)
    nn.init.zeros_(networks.unet.out[2].bias)
    std = torch.tensor([1.0, 0.5, 0.1, 2.0]).repeat_interleave(4)
    geometry = torch.randn(64, 16, 4, 4, 4) * std[:, None, None, None]
    pool = LatentPool(video=torch.randn(64, 4, 4, 4, 4), geometry=geometry)
    training = replace(SMALL, unet_windows=64, points_share=0.0)
    generator = torch.Generator().manual_seed(0)
    with caplog.at_level("INFO"):
        train_unet(networks, pool, training, generator, TimeBox(steps=1))
    told = dict(part.rsplit(" ", 1) for part in caplog.messages[-1].split(": ")[1].split(", "))
    for name in ("points", "ray_directions", "ray_moments", "disparity"):
        assert float(told[name]) == pytest.approx(1.0, abs=0.15), name


@pytest.mark.parametrize(("ray_moments", "are_learnt"), [(0.0, False), (1.0, True)])
def test_the_unet_learns_nothing_of_a_modality_that_does_not_count(ray_moments, are_learnt):
    torch.manual_seed(0)
    networks = Geo4DNetworks(GEO4D_SIZES["toy"])
    video, geometry = torch.randn(8, 4, 4, 4, 4), torch.randn(8, 16, 4, 4, 4)
    other = geometry.clone()
    other[:, RAY_MOMENTS] = torch.randn(8, 4, 4, 4, 4)
    training = replace(
        SMALL,
        unet_windows=8,
        points_share=0.0,
        one_step_share=1.0,
        modality_weights=ModalityWeights(ray_moments=ray_moments),
    )
    learnt = []
    for latents in (geometry, other):
        one = deepcopy(networks)
        pool, generator = LatentPool(video=video, geometry=latents), torch.Generator()
        train_unet(one, pool, training, generator.manual_seed(0), TimeBox(steps=1))
        learnt.append(torch.cat([p.detach().flatten() for p in one.unet.parameters()]))
    assert torch.equal(*learnt) != are_learnt


def test_rays_that_differ_much_count_less_and_points_do_not():
    torch.manual_seed(0)
    mean, variance = torch.randn(16, 4, 4, 4), torch.rand(16) + 0.5
    far = torch.randn(16, 4, 4, 4) * 3
    compared = compared_with(torch.stack([mean, mean + far]), mean, variance)
    own = far.square().mean((1, 2, 3))
    rays = slice(RAY_DIRECTIONS.start, RAY_MOMENTS.stop)
    torch.testing.assert_close(compared[0, rays], variance[rays] / 2)
    torch.testing.assert_close(compared[1, rays], (variance + own)[rays] / 2)
    for others in (slice(0, 4), slice(12, 16)):
        assert torch.equal(compared[:, others], variance[others].expand(2, -1))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(SettingsError, match="minutes is 0"):
        replace(SMALL, minutes=0)
    with pytest.raises(SettingsError, match=r"modality_weights\.points is 0"):
        replace(SMALL, modality_weights=ModalityWeights(points=0), points_share=0.1)
    for wrong in ({"points": -1.0}, dict.fromkeys(MODALITIES, 0.0)):
        with pytest.raises(SettingsError, match="weights of the modalities"):
            ModalityWeights(**wrong)
    with pytest.raises(SettingsError, match="camera_weight is -1"):
        replace(SMALL, camera_weight=-1.0)
    with pytest.raises(SettingsError, match="pool_size is 0"):
        replace(SMALL, pool_size=0)
    for name in ("vae_clips", "unet_windows"):
        with pytest.raises(SettingsError, match=f"{name} is 0"):
            replace(SMALL, **{name: 0})
    with pytest.raises(SettingsError, match="cuda_graphs is on and device is cpu"):
        replace(SMALL, cuda_graphs=True)
    with pytest.raises(SettingsError, match="held out"):
        replace(SMALL, seed=900)
    with pytest.raises(SettingsError, match="rising shares"):
        PhaseEnds(vae=0.1)


@pytest.mark.parametrize(("change", "message"), [
    ({"num_frames": 8}, "clips have 8 frames; expected 16 or more"),
    ({"size_hw": (24, 32)}, "clips have 24 x 32 pixels; expected multiples of 16"),
])  # fmt: skip
def test_clips_that_the_network_cannot_see_are_refused_before_they_are_drawn(
    tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(train_tiny_geo4d, "held_out_clips", lambda *_: pytest.fail("drawn"))
    with pytest.raises(SettingsError, match=message):
        train(replace(SMALL, output=tmp_path, clips=replace(SMALL.clips, **change)))
