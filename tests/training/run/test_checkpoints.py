import json
import os
import pickle
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.loader import LoaderState
from training.run.checkpoints import (
    CheckpointError,
    CheckpointFolder,
    check_same_recipe,
    load_plain,
    load_random_state,
    load_tensors_into,
    plain,
    read_about,
    save_random_state,
    save_tensors,
)

PLACE = LoaderState(seed=1, num_samples=10, position=30)


def _write(checkpoints: CheckpointFolder, step: int, config: dict | None = None) -> Path:
    folder = checkpoints.begin(step)
    save_tensors({"weight": torch.full((3,), float(step))}, folder / "trainable.safetensors")
    (folder / "sharded").mkdir()
    (folder / "sharded" / "part").write_bytes(b"x" * 100)
    return checkpoints.finish(step, PLACE, config or {"run": {"seed": 1}})


def test_what_a_checkpoint_says_comes_back(tmp_path):
    path = _write(CheckpointFolder(tmp_path), 7)
    about = read_about(path)
    assert (about.step, about.data, about.config) == (7, PLACE, {"run": {"seed": 1}})
    assert about.files.keys() == {"trainable.safetensors", "sharded/part"}


def test_the_newest_few_are_kept(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, kept=2)
    for step in (100, 200, 1000, 300):
        _write(checkpoints, step)
    assert checkpoints.steps() == [300, 1000]
    assert checkpoints.latest() == tmp_path / "checkpoint-00001000"


def test_a_folder_has_its_name_only_when_it_is_whole(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    _write(checkpoints, 100)
    writing = checkpoints.begin(200)
    (writing / "trainable.safetensors").write_bytes(b"half")
    assert checkpoints.latest() == tmp_path / "checkpoint-00000100"
    checkpoints.remove_unfinished()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000100"]


def test_a_step_written_twice_is_the_later_one(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    _write(checkpoints, 100, {"first": True})
    assert read_about(_write(checkpoints, 100, {"first": False})).config == {"first": False}


@pytest.mark.parametrize("name", ["trainable.safetensors", "sharded/part"])
def test_a_half_written_checkpoint_is_told_by_its_file(name, tmp_path):
    path = _write(CheckpointFolder(tmp_path), 7)
    os.truncate(path / name, 40)
    with pytest.raises(CheckpointError, match=f"half-written: {name} has 40 of "):
        read_about(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"is not whole: {name} is missing"):
        read_about(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"version": 1}', "is damaged"),
    ],
)
def test_a_checkpoint_without_its_description_is_refused(text, said, tmp_path):
    path = _write(CheckpointFolder(tmp_path), 7)
    (path / "checkpoint.json").unlink()
    if text is not None:
        (path / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_about(path)


def test_another_version_is_refused(tmp_path):
    path = _write(CheckpointFolder(tmp_path), 7)
    about = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(about | {"version": 2}))
    with pytest.raises(CheckpointError, match="has version 2; this code reads 1"):
        read_about(path)


@dataclass(frozen=True)
class _Run:
    output: Path = Path("runs/a")
    num_steps: int = 100
    seed: int = 1


@dataclass(frozen=True)
class _Config:
    run: _Run = field(default_factory=_Run)
    rates: tuple[float, ...] = (0.1, 0.2)


def test_another_recipe_is_refused_and_the_difference_shown(tmp_path):
    config = _Config()
    path = _write(CheckpointFolder(tmp_path), 7, plain(config))
    other = replace(config, run=replace(config.run, seed=2), rates=(0.1, 0.3))
    with pytest.raises(CheckpointError) as raised:
        check_same_recipe(read_about(path).config, plain(other), path)
    message = str(raised.value)
    assert "run.seed: 1 in the checkpoint, 2 here" in message
    assert "rates: [0.1, 0.2] in the checkpoint, [0.1, 0.3] here" in message
    assert "num_steps" not in message


def test_settings_that_change_no_number_may_differ(tmp_path):
    config = _Config()
    path = _write(CheckpointFolder(tmp_path), 7, plain(config))
    moved = replace(config, run=replace(config.run, output=Path("runs/b"), num_steps=200))
    check_same_recipe(read_about(path).config, plain(moved), path)


def test_a_setting_that_one_side_lacks_is_a_difference(tmp_path):
    path = _write(CheckpointFolder(tmp_path), 7, {"run": {"seed": 1}, "old": 3})
    with pytest.raises(CheckpointError, match="old: 3 in the checkpoint, absent here"):
        check_same_recipe(read_about(path).config, {"run": {"seed": 1}}, path)


def test_tensors_come_back_to_the_bit_in_place(tmp_path):
    saved = {"a": torch.randn(3, 4).t(), "b": torch.randn(2)}
    save_tensors(saved, tmp_path / "x.safetensors")
    targets = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
    load_tensors_into(targets, tmp_path / "x.safetensors")
    assert all(torch.equal(targets[name], saved[name]) for name in saved)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({"a": torch.zeros(3)}, "1 tensors are missing, .* first b"),
        ({"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(1)}, "first c"),
        ({"a": torch.zeros(4), "b": torch.zeros(2)}, "another shape, first a"),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(targets, said, tmp_path):
    save_tensors({"a": torch.ones(3), "b": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load_tensors_into(targets, tmp_path / "x.safetensors")
    assert not any(target.any() for target in targets.values())


def test_random_states_continue_as_if_nothing_had_happened(tmp_path):
    def draw():
        return random.random(), np.random.rand(3).tolist(), torch.randn(3).tolist()

    np.random.standard_normal()  # leaves a second number waiting
    save_random_state(tmp_path / "random.pt")
    expected = draw()
    draw()
    load_random_state(tmp_path / "random.pt")
    assert draw() == expected


def test_code_in_a_checkpoints_file_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.makedirs, (str(tmp_path / "ran"),)

    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write({"state": Hostile()}, tmp_path / "optimizer.pt")
        with pytest.raises(CheckpointError, match=r"optimizer\.pt is damaged or not"):
            load_plain(tmp_path / "optimizer.pt")
    assert not (tmp_path / "ran").exists()
