import json
from dataclasses import replace

import pytest
import torch

from more4d_backend.strag.profile import OWN
from training import ablations
from training.ablations import COLUMNS, VARIANTS, ablate, finished, save, table
from training.networks import strag_profile
from training.recipes import Ablation, strag_tiny
from training.run.checkpoints import CheckpointError
from training.run.settings import SettingsError


@pytest.fixture
def config(small):
    config = small(strag_tiny, 2, validate_every=2)
    return replace(config, data=replace(config.data, num_validation_samples=1))


def test_every_variant_is_trained_and_sampled_and_a_table_tells_them_apart(config, monkeypatch):
    results = ablate(config)
    assert [result.name for result in results] == list(VARIANTS)
    for result in results:
        assert {column.name for column in COLUMNS} <= result.metrics.keys()
        assert (config.run.output / result.name / "validation" / "step-00000002.png").is_file()
    errors = [result.metrics["end_point_error"] for result in results]
    assert len(set(errors)) == len(VARIANTS)
    text = table(results)
    assert all(name in text for name in VARIANTS)
    save(config.run.output / "ablations.json", results)
    written = json.loads((config.run.output / "ablations.json").read_text())
    assert written["variants"]["full"]["loss"] == results[0].metrics["loss"]

    # The same command once more trains nothing.
    monkeypatch.setattr(ablations, "train", lambda _: pytest.fail("trained again"))
    assert ablate(config) == results


def test_only_what_is_not_finished_is_trained(config, monkeypatch):
    trained = []
    monkeypatch.setattr(
        ablations, "finished", lambda name, c: _result(name) if name == "full" else None
    )
    monkeypatch.setattr(ablations, "train", trained.append)
    with pytest.raises(AssertionError):  # the stand-in trains nothing, so nothing gets finished
        ablate(config)
    assert [variant.run.output.name for variant in trained] == ["without-depth-normalization"]


def test_variants_differ_in_what_is_left_out_alone(config, monkeypatch):
    trained = []
    monkeypatch.setattr(ablations, "train", trained.append)
    monkeypatch.setattr(
        ablations,
        "finished",
        lambda name, c: _result(name) if c in trained else None,
    )
    ablate(config)
    assert [variant.ablation for variant in trained] == list(VARIANTS.values())
    same = [
        replace(v, ablation=Ablation(), run=replace(v.run, output=config.run.output))
        for v in trained
    ]
    assert same == [config] * 4


def _result(name: str) -> ablations.VariantResult:
    return ablations.VariantResult(name=name, num_steps=2, metrics={})


def test_a_variant_without_its_last_validation_is_not_finished(config):
    output = config.run.output
    output.mkdir(parents=True)
    assert finished("full", config) is None
    (output / "config.json").write_text(json.dumps(ablations.plain(config)))
    (output / "metrics.jsonl").write_text('{"step": 1, "validation/loss": 1.0}\n')
    (output / "strag.safetensors").touch()
    assert finished("full", config) is None
    (output / "metrics.jsonl").write_text('{"step": 2, "validation/loss": 1.0}\n')
    result = finished("full", config)
    assert result is not None
    assert result.metrics == {"loss": 1.0}
    with pytest.raises(CheckpointError, match=r"run\.seed"):
        finished("full", replace(config, run=replace(config.run, seed=7)))


def test_the_last_update_is_always_validated(small):
    for every in (0, 3):
        run = ablations._checked(small(strag_tiny, 2, validate_every=every)).run
        assert run.num_steps % run.validate_every == 0
    assert ablations._checked(small(strag_tiny, 4, validate_every=2)).run.validate_every == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ablation": Ablation(depth_latent=False)}, "leaves depth-latent out already"),
        ({"data": None}, "data.validation is None"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message, config):
    if "data" in change:
        change = {"data": replace(config.data, validation=None)}
    with pytest.raises(SettingsError, match=message):
        ablate(replace(config, **change))


def test_an_ablations_profile_is_named_for_what_it_leaves_out(config):
    assert strag_profile(config) is OWN
    ablated = strag_profile(replace(config, ablation=Ablation(depth_normalization=False)))
    assert ablated.name == "own-without-depth-normalization"
    assert ablated.motion.divide_by == "median"
    assert ablated.depth_latent
    assert not strag_profile(replace(config, ablation=Ablation(depth_latent=False))).depth_latent


def test_sampling_undoes_the_normalisation_that_was_trained(config, small_data):
    # A motion VAE that loses nothing, told the truth.
    from more4d_backend.strag.lifted import lift_fitted, moved_scene
    from more4d_backend.wan.fitting import fit_to_size
    from training.data.loader import TrainingLoader
    from training.data.shards import ShardDataset
    from training.targets import normalized_motion

    dataset = ShardDataset(small_data / "train", config.data.size)
    batch = next(iter(TrainingLoader(dataset, batch_size=1, seed=0)))
    profile = strag_profile(replace(config, ablation=Ablation(depth_normalization=False)))
    profile = replace(profile, snap_to_edges=False)
    motion = normalized_motion(batch, profile.motion)[0]
    assert not torch.allclose(motion, normalized_motion(batch, OWN.motion)[0], rtol=0.05)
    image, camera = batch.video[0, 0].float() / 255, batch.cameras(0).frames([0])
    lifted = lift_fitted(fit_to_size(image, batch.depth[0], camera, (32, 32), "crop"))
    scene = moved_scene(motion.permute(1, 2, 3, 0), lifted, profile, fps=8.0)
    true = batch.scene(0).points.positions
    torch.testing.assert_close(scene.points.positions, true, atol=1e-3, rtol=1e-4)
