import pytest
import torch

from training.data.holes import HoleSettings, holes_of, seen_from
from training.data.samples import stack_samples
from training.run.settings import SettingsError

ORIGINAL = HoleSettings(original=1.0, round_trip=0.0, novel=0.0)
ROUND_TRIP = HoleSettings(original=0.0, round_trip=1.0, novel=0.0)
NOVEL = HoleSettings(original=0.0, round_trip=1e-9, novel=1.0)


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def batch(make_synthetic_sample):
    return stack_samples([make_synthetic_sample(seed, 5, 48, 64, novel=True) for seed in (3, 4)])


def _psnr_db(sample) -> float:
    known = ~sample.hole_mask
    error = (sample.rendered - sample.target)[known].square().mean()
    return float(-10 * error.log10())


@pytest.mark.parametrize("settings", [ORIGINAL, ROUND_TRIP, NOVEL])
def test_what_is_no_hole_shows_the_target(settings, batch):
    for sample in holes_of(batch, settings, _draw()):
        # Measured 24.9 to 31.0 dB at this size: colours are those of frame 0, drawn as splats.
        assert _psnr_db(sample) > 23
        assert 0 <= sample.rendered.min() <= sample.rendered.max() <= 1


def test_the_first_frame_has_no_holes_from_motion_alone(batch):
    for sample in holes_of(batch, ORIGINAL, _draw()):
        assert not sample.hole_mask[0].any()
        assert torch.allclose(sample.rendered[0], sample.target[0], atol=1e-5)


def test_holes_from_motion_grow_with_it(batch):
    uncovered = [s.hole_mask.float().mean((1, 2)) for s in holes_of(batch, ORIGINAL, _draw())]
    assert any(share[-1] > 0.002 for share in uncovered)


def test_a_round_trip_adds_holes_of_parallax_and_of_borders(batch):
    original = holes_of(batch, ORIGINAL, _draw())
    borders, inner = 0, 0
    for seed in range(6):
        for before, after in zip(original, holes_of(batch, ROUND_TRIP, _draw(seed)), strict=True):
            added = after.hole_mask & ~before.hole_mask
            border = torch.zeros(48, 64, dtype=torch.bool)
            border[:2] = border[-2:] = border[:, :2] = border[:, -2:] = True
            borders += int((added[-1] & border).sum() > 10)
            inner += int((added[-1] & ~border).sum() > 10)
            assert torch.equal(before.target, after.target)
    assert borders >= 3
    assert inner >= 6


def test_points_that_are_hidden_in_the_source_stay_hidden(batch):
    from dataclasses import replace

    hidden = batch.visibility.clone()
    hidden[:, -1] = False
    for settings in (ORIGINAL, ROUND_TRIP, NOVEL):
        for sample in holes_of(replace(batch, visibility=hidden), settings, _draw()):
            assert sample.hole_mask[-1].all()
            assert not sample.hole_mask[0].all()


def test_the_novel_kind_is_seen_from_the_second_path(batch):
    for index, sample in enumerate(holes_of(batch, NOVEL, _draw())):
        assert sample.kind == "novel"
        assert torch.equal(sample.target, batch.novel_video[index].float() / 255)
        assert sample.hole_mask[-1].any()


def test_every_visible_point_is_seen_from_its_own_camera_and_few_hidden_ones(batch):
    scene = batch.scene(0)
    seen = seen_from(scene, scene.cameras)
    visible = scene.points.visibility
    assert seen[0][visible[0]].all()
    assert seen[visible].float().mean() > 0.99
    assert seen[~visible].float().mean() < 0.5


def test_nothing_is_seen_by_a_camera_that_looks_away(batch):
    from dataclasses import replace

    scene = batch.scene(0)
    turned = scene.cameras.world_to_camera.clone()
    turned[:, 0, 0] = turned[:, 2, 2] = -1  # half a turn about y
    away = replace(scene.cameras, world_to_camera=turned)
    assert not seen_from(scene, away).any()


def test_kinds_come_by_their_shares_and_novel_only_where_it_is():
    settings = HoleSettings(original=0.2, round_trip=0.3, novel=0.5)
    draws = [(i + 0.5) / 1000 for i in range(1000)]
    with_novel = [settings.kind(d, has_novel=True) for d in draws]
    without = [settings.kind(d, has_novel=False) for d in draws]
    assert [with_novel.count(k) for k in ("original", "round-trip", "novel")] == [200, 300, 500]
    assert [without.count(k) for k in ("original", "round-trip", "novel")] == [400, 600, 0]


def test_the_same_draws_make_the_same_holes(batch):
    first, second = (holes_of(batch, HoleSettings(), _draw(1)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.kind == b.kind
        assert torch.equal(a.hole_mask, b.hole_mask)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"original": -1.0}, "none below 0"),
        ({"original": 0.0, "round_trip": 0.0}, "more than 0 of original"),
    ],
)
def test_shares_that_cannot_be_are_refused(changes, said):
    with pytest.raises(SettingsError, match=said):
        HoleSettings(**changes)


def test_an_unknown_path_is_refused_before_training():
    from more4d_backend.camera_paths import CameraPathError

    with pytest.raises(CameraPathError, match="orbit-left"):
        HoleSettings(paths=("orbit_lefft",))
