import math
from dataclasses import replace

import pytest
import torch

from more4d_backend.motion import OWN_MOTION, normalize_motion
from more4d_backend.rendering import RenderSettings, hole_mask, render
from more4d_backend.synthetic.actors import Dice
from more4d_backend.synthetic.motions import object_to_stage
from training.data.loader import TrainingLoader
from training.data.samples import SampleSize, check_sample
from training.data.shards import ShardDataset
from training.procedural.actors import COLORS, KINDS, Place, actor_texture
from training.procedural.dataset import (
    PROCEDURAL_RECIPES,
    ProceduralDataset,
    on_cpu,
    procedural_sample,
    sheet,
    write,
)
from training.procedural.scenes import draw_scene
from training.procedural.settings import ProceduralSettings
from training.procedural.words import STILL, WORDS, Amounts
from training.run.settings import SettingsError

SMALL = ProceduralSettings(size=SampleSize(num_frames=9, height=64, width=96), samples=1)
SIZED = replace(SMALL, size=SampleSize(num_frames=5, height=128, width=176))


def tensors_of(sample):
    pictures = [sample.video, sample.depth, sample.motion, sample.visibility, sample.object_index]
    return [*pictures, sample.novel_video, sample.novel_cameras.world_to_camera]


def test_a_seed_means_one_sample_to_the_last_bit_and_another_seed_another():
    one, again, other = (procedural_sample(seed, SMALL) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(again), strict=True))
    assert (one.caption, one.objects) == (again.caption, again.objects)
    assert one.caption != other.caption
    assert not torch.equal(one.video, other.video)


@pytest.mark.parametrize("seed", range(6))
def test_a_sample_can_be_trained_on_and_its_caption_says_everything(seed):
    sample = procedural_sample(seed, SMALL)
    check_sample(sample)
    assert sample.object_index.unique().tolist() == list(range(-1, len(sample.objects)))
    for thing in sample.objects:
        assert f"{thing.name} {thing.motion}".lower() in sample.caption.lower()
        assert thing.motion in WORDS
    moving = [thing.motion for thing in sample.objects if thing.family != "still"]
    assert len(moving) >= 2
    assert len(set(moving)) == len(moving)
    still = [i for i, thing in enumerate(sample.objects) if thing.family == "still"]
    at_rest = torch.isin(sample.object_index, torch.tensor([-1, *still], dtype=torch.int8))
    assert sample.motion[:, at_rest].abs().max() == 0
    for number, thing in enumerate(sample.objects):
        if thing.family != "still":
            assert sample.motion[:, sample.object_index == number].abs().max() > 0.02


def test_little_of_the_picture_moves_and_many_objects_are_small():
    radii, shares = [], []
    for seed in range(25):
        scene = draw_scene(seed, SIZED)
        seen = scene.world.objects_seen(scene.world.cameras(1, 128, 176)).flatten()
        actor = torch.tensor([*scene.actor_of, -1])[seen]
        areas = torch.bincount(actor + 1, minlength=len(scene.actors) + 1)[1:].tolist()
        moves = [thing.family != "still" for thing in scene.actors]
        shares.append(sum(a for a, m in zip(areas, moves, strict=True) if m) / actor.numel())
        radii += [math.sqrt(area / math.pi) for area in areas]
    assert max(shares) <= 0.15
    small = sum(radius < 16 for radius in radii) / len(radii)
    assert 0.25 <= small <= 0.9
    assert max(radii) > 20


def test_scenes_differ_in_field_of_view_scenery_kinds_and_words():
    scenes = [draw_scene(seed, SIZED) for seed in range(60)]
    fov_deg = [math.degrees(s.world.camera_motion.fov_rad) for s in scenes]
    assert min(fov_deg) < 42
    assert max(fov_deg) > 68
    assert all(35 <= fov <= 75 for fov in fov_deg)
    assert {o.name for s in scenes for o in s.world.objects} >= {"floor", "ground"}
    actors = [actor for s in scenes for actor in s.actors]
    assert {a.family for a in actors} == {word.family for word in WORDS.values()}
    assert {a.name.split()[-1] for a in actors} == set(KINDS)
    assert {a.name.split()[0] for a in actors} == set(COLORS)


@pytest.mark.parametrize("seed", range(5))
def test_translations_go_where_they_are_said_to_by_half_to_one_and_a_half_of_the_mean(seed):
    settings = replace(SMALL, families=("translation",), speed_spread=0.5)
    sample = procedural_sample(seed, settings)
    in_depths = replace(OWN_MOTION, gain=1.0)  # what the words' travel is in
    motion = normalize_motion(sample.positions(), sample.cameras, in_depths)[-1]
    for number, thing in enumerate(sample.objects):
        on_it = sample.object_index == number
        world = sample.motion[-1, on_it].float().mean(0)
        travel = torch.tensor(WORDS[thing.motion].travel)
        if thing.family == "still" or thing.motion.startswith(("walks", "crawls")):
            continue  # limbs and body waves are not part of the mean
        cosine = torch.nn.functional.cosine_similarity(world, torch.tensor(thing.direction), dim=0)
        assert cosine > 0.99
        # Half a percent for float16; perspective over the object's own depth for the rest.
        assert 0.4 < motion[on_it].mean(0).norm() / travel.norm() < 1.7


@pytest.mark.parametrize("seed", range(4))
def test_spins_turn_about_their_direction_by_the_right_hand_rule(seed):
    settings = replace(SMALL, families=("spin",), kinds=("box", "ball"), still_share=0.0)
    sample = procedural_sample(seed, settings)
    positions = sample.positions()
    for number, thing in enumerate(sample.objects):
        points = positions[:2, sample.object_index == number]
        axis = torch.tensor(thing.direction)
        motion = points[1] - points[0]
        motion = motion - motion.mean(0)
        arms = points[0] - points[0].mean(0)
        assert (torch.linalg.cross(arms, motion) @ axis).sum() > 0


def placed(kind: str, phrase: str, times: torch.Tensor) -> torch.Tensor:
    amounts = Amounts(strength=1.0, duration_s=3.0, extent_m=(4.0, 3.0, 4.0))
    place = Place(feet=(0.5, 0.0, 4.0), size_m=0.4, parent_index=0)
    texture = actor_texture(Dice(1), "red", "dotted", 0.8)
    parts = KINDS[kind].build(Dice(2), WORDS[phrase], amounts, place, texture)
    return object_to_stage([part.motion for part in parts], times)


@pytest.mark.parametrize(
    ("kind", "phrase"),
    [(kind, word.phrase) for kind in KINDS for word in (STILL, *KINDS[kind].words)],
)
def test_actors_do_what_their_word_says_at_once(kind, phrase):
    poses = placed(kind, phrase, torch.linspace(0, 3, 301))
    word, parts = WORDS[phrase], range(poses.shape[1])
    direction = poses.new_tensor(word.direction)
    tip = {"stalk": 4, "figure": 2}.get(kind, 0)
    middle = poses[:, tip, :3, 3]
    size = torch.linalg.det(poses[:, 0, :3, :3]).pow(1 / 3)
    first = (middle[30] - middle[0]) @ direction
    turn = poses[1, 0, :3, :3] @ poses[0, 0, :3, :3].T / size[1] / size[0]
    spin = torch.stack([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    grows = phrase in ("grows", "pulses, first larger")
    height = poses[:, 0, :3, 1].norm(dim=-1)
    taller = phrase in ("stretches tall", "wobbles, first tall")
    facts = {
        "still": (poses == poses[0]).all(),
        "translation": (middle[-1] - middle[0]) @ direction > 0.4,
        "spin": spin @ direction > 0,
        "bounce": first > 0.02,
        "swing": first > 0.05,
        "wave": first > 0.01,
        "growth": (size[30] > size[0]) == grows and (size[30] - size[0]).abs() > 0.01,
        "deformation": (height[30] > height[0]) == taller and (height[30] - height[0]).abs() > 0.01,
    }
    assert facts[word.family]
    if word.family in ("swing", "bounce", "wave"):
        torch.testing.assert_close(poses[-1], poses[0], atol=1e-9, rtol=0)
    assert len(parts) == (1 if kind in ("ball", "box", "drum") else {"figure": 6}.get(kind, 5))


@pytest.mark.parametrize("seed", [1, 8])
def test_the_second_video_is_what_its_cameras_see_of_the_tracks(seed):
    sample = procedural_sample(seed, replace(SIZED, samples=2))
    view = render(sample.scene(), sample.novel_cameras, RenderSettings())
    known = hole_mask(view.alpha) < 0.5
    assert 0.4 < known.float().mean() < 1
    error = (view.rgb - sample.novel_video.float() / 255)[known]
    assert -10 * error.square().mean().log10() > 20  # dB


def test_a_still_camera_is_the_identity_in_every_frame():
    sample = procedural_sample(5, replace(SMALL, moving_camera_share=0.0))
    torch.testing.assert_close(sample.cameras.world_to_camera, torch.eye(4).expand(9, 4, 4))
    assert "camera" not in sample.caption
    moving = procedural_sample(5, replace(SMALL, moving_camera_share=1.0))
    assert "camera moves" in moving.caption.lower()
    assert moving.cameras.world_to_camera[-1, :3, 3].norm() > 0.1


def test_shards_give_back_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setitem(PROCEDURAL_RECIPES, "tiny", lambda: SMALL)
    assert write(tmp_path, num_samples=3, seed=7, recipe="tiny", samples_per_shard=2) == 0
    shards = ShardDataset(tmp_path)
    assert len(shards) == 3
    for number in range(3):
        expected, read = procedural_sample(7 + number, SMALL), shards[number]
        assert read.objects == expected.objects
        for a, b in zip(tensors_of(read), tensors_of(expected), strict=True):
            assert torch.equal(a, b)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write(tmp_path, num_samples=3, seed=7, recipe="tiny", samples_per_shard=2)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_loader_takes_the_data_set_like_a_folder_of_shards():
    dataset = ProceduralDataset(SMALL, num_samples=4, first_seed=100)
    loader = TrainingLoader(dataset, batch_size=2, seed=0)
    batch = next(iter(loader))
    assert batch.video.shape == (2, 9, 64, 96, 3)
    assert batch.novel_video is not None
    assert dataset.has_novel_views
    name = batch.names[0]
    expected = procedural_sample(int(name.removeprefix("procedural-")), SMALL)
    assert torch.equal(batch.video[0], expected.video)
    with pytest.raises(IndexError):
        dataset[4]


def test_without_novel_paths_there_is_no_second_video():
    sample = on_cpu(procedural_sample(0, replace(SMALL, novel_paths=())))
    assert sample.novel_video is None
    check_sample(sample)


def test_a_sheet_shows_a_row_per_sample(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setitem(PROCEDURAL_RECIPES, "tiny", lambda: SMALL)
    sheet(tmp_path / "sheet.png", count=2, recipe="tiny")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 9 * 96
        assert picture.height > 2 * 64


def test_settings_that_cannot_be_met_are_refused(as_users_run_it):
    size = SMALL.size
    for wrong, message in (
        ({"num_actors": (1, 3)}, "num_actors is"),
        ({"radius": (0.2, 0.1)}, "radius is"),
        ({"speed_spread": 0.9}, "speed_spread is 0.9"),
        ({"kinds": ("cow",)}, "kinds is"),
        ({"size": SampleSize(num_frames=1, height=16, width=16)}, "1 frame"),
        ({"families": ()}, "families is"),
    ):
        with pytest.raises(SettingsError, match=message):
            ProceduralSettings(**({"size": size} | wrong))
    crowded = replace(SMALL, num_actors=(8, 8), radius=(0.3, 0.4))
    with pytest.raises(SettingsError, match="had room for"):
        draw_scene(0, crowded)


def test_words_mean_what_the_viewer_sees():
    """+x is right, +y down, +z away from the viewer."""
    times = torch.tensor([0.0, 0.3])
    top = torch.tensor([0.0, -1.0, 0.0, 1.0]).double()
    near = torch.tensor([0.0, 0.0, -1.0, 1.0]).double()
    signs = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
    signs |= {"comes closer": (2, -1), "moves away": (2, 1), "falls": (1, 1)}
    for phrase, word in WORDS.items():
        kind = next(k for k in KINDS if word is STILL or word in KINDS[k].words)
        start, end = placed(kind, phrase, times)[:, {"stalk": 4, "figure": 2}.get(kind, 0)]
        moved = (end - start)[:3]
        if word.family == "spin":
            yaw_free = start[:3, :3].T  # the actor's resting turn is not part of the spin
            turn = torch.eye(4).double()
            turn[:3, :3] = end[:3, :3] @ yaw_free
            if "clockwise" in phrase:
                assert (turn @ top)[0] * (-1 if "counter" in phrase else 1) > 0.05
            else:
                assert (turn @ near)[0] * (-1 if "left" in phrase else 1) > 0.05
        elif phrase.startswith(("bounces", "falls")):
            assert moved[1, 3] * (1 if "falls" in phrase else -1) > 0
        else:
            for said, (axis, sign) in signs.items():
                if phrase.split("first ")[-1].endswith(said):
                    assert moved[axis, 3] * sign > 0.005, phrase
