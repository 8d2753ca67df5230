"""The trainers of Geo4D's denoiser and point decoder: stages, resuming, and what they write."""

import json
from dataclasses import replace

import pytest
import torch

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.weights.conversion import open_model
from more4d_backend.weights.geo4d import load_geo4d, save_geo4d
from training import train_geo4d, train_geo4d_points
from training.data.samples import SampleError
from training.geo4d.loader import ClipLoader
from training.geo4d.objectives import ModalityWeights
from training.geo4d.recipes import (
    GEO4D_RECIPES,
    POINTS_ONLY,
    ClipSources,
    Geo4DConfig,
    Stage,
    denoiser_released,
    denoiser_tiny,
    parse_geo4d_config,
    point_decoder_tiny,
)
from training.procedural.clips import ClipSettings
from training.run.settings import SettingsError

# The loop is annotated for the batches of the other trainers.
pytestmark = pytest.mark.usefixtures("as_users_run_it")


def small(config: Geo4DConfig, steps: int, output, weights=None) -> Geo4DConfig:
    return replace(
        config,
        run=replace(
            config.run, num_steps=steps, batch_size=1, precision="fp32", tracker="none",
            export_precision="fp32", output=output, checkpoint_every=1,
        ),
        data=ClipSources(
            procedural_share=1.0, num_clips=4, num_workers=0,
            procedural=ClipSettings(size_hw=(16, 24), num_frames=4, samples=1),
        ),
        size="toy",
        stages=(
            Stage(share=1, sizes_hw=((16, 24),), weights=POINTS_ONLY),
            Stage(share=1, sizes_hw=((16, 24), (16, 16))),
        ),
        weights=weights,
        frames_per_clip=2,
    )  # fmt: skip


@pytest.fixture
def start(tmp_path):
    torch.manual_seed(3)
    networks = Geo4DNetworks(GEO4D_SIZES["toy"])
    networks.num_steps = 1
    save_geo4d(networks, tmp_path / "start.safetensors", dtype=torch.float32)
    return tmp_path / "start.safetensors"


def changed(path, start) -> set[str]:
    before, after = load_geo4d(start).state_dict(), load_geo4d(path).state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_denoiser_s_trainer_changes_the_denoiser_and_nothing_else(tmp_path, start):
    path = train_geo4d.train(small(denoiser_tiny(tmp_path), 2, tmp_path / "run", start))
    names = changed(path, start)
    assert names
    assert "context" in names
    assert all(name == "context" or name.startswith("unet.") for name in names)
    assert load_geo4d(path).num_steps == 5  # trained at all timesteps, whatever it began with
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [s["loss"] > 0 for s in steps if "loss" in s] == [True, True]


def test_the_point_decoder_s_trainer_changes_the_point_decoder_and_nothing_else(tmp_path, start):
    config = small(point_decoder_tiny(tmp_path), 2, tmp_path / "run", start)
    path = train_geo4d_points.train(config)
    names = changed(path, start)
    assert names
    assert all(name.startswith("vae.point_decoder.") for name in names)
    assert load_geo4d(path).num_steps == 1  # the denoiser is as it was


def test_a_run_split_over_ranks_writes_the_header_of_a_whole_one(tmp_path, start):
    networks = load_geo4d(start)
    export = train_geo4d.exported(small(denoiser_tiny(tmp_path), 2, tmp_path, start), networks)
    save_geo4d(networks, tmp_path / "whole.safetensors")
    whole = open_model(tmp_path / "whole.safetensors").metadata
    assert export.metadata.items() <= whole.items()
    assert export.metadata.keys() | {"format", "more4d_kind"} == whole.keys()


def test_a_resumed_training_is_the_same_to_the_last_bit(tmp_path, start):
    whole = small(denoiser_tiny(tmp_path), 4, tmp_path / "whole", start)
    parts = small(denoiser_tiny(tmp_path), 4, tmp_path / "parts", start)
    expected = load_geo4d(train_geo4d.train(whole)).state_dict()

    class Stop(Exception):
        pass

    save = train_geo4d.TrainingRun.save

    def stop_after_two(run) -> None:
        save(run)
        if run.step == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_geo4d.TrainingRun, "save", stop_after_two)
        with pytest.raises(Stop):
            train_geo4d.train(parts)
    found = load_geo4d(train_geo4d.train(parts)).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_stages_come_in_their_order_and_take_their_shares(tmp_path):
    config = denoiser_released(tmp_path)
    stages = [config.stage_at(step) for step in range(0, config.run.num_steps, 5000)]
    assert stages[0].sizes_hw == ((320, 512),)
    assert stages[0].weights.disparity == 0
    assert stages[-1].weights == ModalityWeights()
    assert [config.stages.index(s) for s in stages] == sorted(
        config.stages.index(s) for s in stages
    )
    assert {config.stages.index(s) for s in stages} == {0, 1, 2, 3}
    assert config.stage_at(10**9) is config.stages[-1]
    assert config.run.batch_size * 4 == 32
    assert config.optimizer.learning_rate == 1e-5
    with pytest.raises(SettingsError, match="positive ones"):
        replace(config, stages=())
    with pytest.raises(SettingsError, match="frames_per_clip is 0"):
        replace(config, frames_per_clip=0)


def test_all_clips_of_a_batch_have_one_size_on_all_ranks(tmp_path):
    config = small(denoiser_tiny(tmp_path), 40, tmp_path)
    config = replace(config, run=replace(config.run, batch_size=2))
    dataset = config.data.dataset(0)
    loaders = [iter(ClipLoader(dataset, config, rank=rank, num_ranks=2)) for rank in range(2)]
    sizes = []
    for _ in range(40):
        one, two = (next(loader) for loader in loaders)
        assert one.video.shape == two.video.shape
        sizes.append(tuple(one.video.shape[2:4]))
    assert set(sizes[:20]) == {(16, 24)}
    assert set(sizes[20:]) == {(16, 24), (16, 16)}


def test_a_loader_goes_on_where_another_one_stopped(tmp_path):
    config = small(denoiser_tiny(tmp_path), 40, tmp_path)
    dataset = config.data.dataset(0)
    whole, first = ClipLoader(dataset, config), ClipLoader(dataset, config)
    expected = [batch.names for batch, _ in zip(whole, range(30), strict=False)]
    seen = [batch.names for batch, _ in zip(first, range(12), strict=False)]
    second = ClipLoader(dataset, config)
    second.resume(replace(first.state, position=12))
    seen += [batch.names for batch, _ in zip(second, range(18), strict=False)]
    assert seen == expected


class SomeSky:
    """Clips of which some show nothing but sky, one of them only in its middle."""

    def __init__(self, clips, empty) -> None:
        self.clips, self.empty = clips, empty

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index):
        clip = self.clips[index]
        if index in self.empty:
            valid = torch.zeros_like(clip.valid)
            valid[:, :, :2] = index == 2
            return replace(clip, valid=valid)
        return clip


def test_a_clip_without_depth_does_not_end_a_long_training(tmp_path, caplog):
    config = small(denoiser_tiny(tmp_path), 40, tmp_path)
    stage = replace(config.stages[0], sizes_hw=((16, 16),))
    config = replace(config, stages=(stage,))
    clips = SomeSky(config.data.dataset(0), empty=(1, 2))
    batches = [batch for batch, _ in zip(ClipLoader(clips, config), range(8), strict=False)]
    whole = {clips[index].name for index in (0, 3)}
    assert {name for batch in batches for name in batch.names} == whole
    assert all(batch.valid[:, 0].any() for batch in batches)
    assert "no valid depth in its first frame. The next clip takes its place." in caplog.text
    with pytest.raises(SampleError, match="20 clips in a row"):
        next(iter(ClipLoader(SomeSky(clips.clips, empty=(0, 1, 2, 3)), config)))


def test_nothing_to_train_on_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="nothing to train on"):
        denoiser_released(tmp_path).data.dataset(0)


@pytest.mark.parametrize("trainer", list(GEO4D_RECIPES))
def test_recipes_can_be_changed_on_the_command_line(trainer):
    args = ["tiny", "--run.num-steps", "7", "--data.procedural-share", "0.5"]
    config = parse_geo4d_config(trainer, args)
    assert config.run.num_steps == 7
    assert config.data.procedural_share == 0.5
    assert config.size == "tiny"
