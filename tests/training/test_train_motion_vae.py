import json
from dataclasses import replace

import pytest
import torch

from more4d_backend.strag.profile import OWN
from more4d_backend.weights.model_loading import load_motion_vae
from training.data.loader import TrainingLoader
from training.data.shards import ShardDataset
from training.losses import visibility_weight
from training.networks import motion_vae_to_train
from training.recipes import motion_vae_tiny
from training.targets import normalized_motion
from training.train_motion_vae import MotionVaeObjective, train


@pytest.fixture
def batch(small):
    config = small(motion_vae_tiny, 1)
    dataset = ShardDataset(config.data.train, config.data.size)
    return next(iter(TrainingLoader(dataset, batch_size=2, seed=0)))


def _loss(objective: MotionVaeObjective, batch, seed: int = 0, **settings):
    motion = normalized_motion(batch, OWN.motion)
    weight = visibility_weight(batch.visibility, 0.1)
    return objective(motion, weight, torch.Generator().manual_seed(seed), **settings)


def test_gradients_reach_every_new_parameter_at_step_0(small, batch):
    config = small(motion_vae_tiny, 1)
    objective = MotionVaeObjective(motion_vae_to_train(config), config)
    _loss(objective, batch).mean().backward()
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    without = [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
    assert without == []
    starts = {name.split(".")[1] for name in trained}
    assert starts == {"encoder_prompt", "decoder_prompt", "vae"}
    assert all(n.startswith("motion_vae.vae.decoder.") for n in trained if ".vae." in n)


def test_a_few_steps_halve_the_loss_on_samples_never_seen(small, metrics_of):
    # The 200 steps, for every trainer, are in benchmarks/trainers_learn.py.
    config = small(motion_vae_tiny, 40, validate_every=40)
    before = motion_vae_to_train(config).state_dict()
    path = train(config)
    losses = metrics_of(config, "validation/loss")
    assert len(losses) == 2
    assert losses[1] <= 0.5 * losses[0]
    after = load_motion_vae(path, OWN.latents).state_dict()
    frozen = ("vae.encoder.", "vae.quant_conv.", "vae.post_quant_conv.")
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == name.startswith(frozen), name
    assert (config.run.output / "validation" / "step-00000040.png").exists()


def test_a_resumed_training_is_the_same_to_the_last_bit(small, metrics_of, same_tensors):
    whole, parts = small(motion_vae_tiny, 4, "whole"), small(motion_vae_tiny, 4, "parts")
    expected = train(whole)
    train(small(motion_vae_tiny, 2, "parts"))
    assert same_tensors(train(parts), expected)
    assert metrics_of(parts, "loss") == metrics_of(whole, "loss")
    assert len(metrics_of(whole, "loss")) == 4


def test_the_written_file_decodes_as_the_trained_network(small, batch):
    config = small(motion_vae_tiny, 2)
    path = train(config)
    loaded = load_motion_vae(path, OWN.latents).eval()
    again = motion_vae_to_train(
        replace(config, weights=replace(config.weights, motion_vae=path))
    ).eval()
    motion = normalized_motion(batch, OWN.motion)
    with torch.no_grad():
        expected = again.decode(again.encode(motion))
        assert torch.equal(loaded.decode(loaded.encode(motion)), expected)


def test_the_file_says_what_it_is_and_how_it_was_trained(small):
    from safetensors import safe_open

    config = small(motion_vae_tiny, 1, export_precision="bf16")
    with safe_open(train(config), "pt") as file:
        assert file.metadata()["more4d_kind"] == "motion-vae"
        assert file.metadata()["more4d_profile"] == "own"
        assert "vae.decoder.head.0.gamma" in file.keys()
        assert file.get_tensor("encoder_prompt.conv_in.weight").dtype == torch.bfloat16
    written = json.loads((config.run.output / "config.json").read_text())
    assert written["hidden_weight"] == 0.1


def test_motion_where_a_point_is_hidden_counts_less(small, batch):
    config = replace(small(motion_vae_tiny, 1), divergence_weight=0.0)
    objective = MotionVaeObjective(motion_vae_to_train(config), config)
    motion = normalized_motion(batch, OWN.motion)
    half = torch.zeros_like(batch.visibility)
    half[..., :16] = True
    wrong = motion + 5.0 * OWN.motion.gain * ~half[:, None]
    decode = objective.motion_vae.decode

    def loss(target, hidden_weight):
        from training.losses import motion_loss

        latent = objective.motion_vae.encode(motion)
        with torch.no_grad():
            return motion_loss(decode(latent), target, visibility_weight(half, hidden_weight))

    assert torch.equal(loss(wrong, 0.0), loss(motion, 0.0))
    assert (loss(wrong, 0.1) < 0.3 * loss(wrong, 1.0)).all()


def test_the_first_steps_use_the_squared_error(small, monkeypatch):
    from training import train_motion_vae

    used = []
    motion_loss = train_motion_vae.motion_loss

    def spy(*args, squared=False):
        used.append(squared)
        return motion_loss(*args, squared=squared)

    monkeypatch.setattr(train_motion_vae, "motion_loss", spy)
    train(replace(small(motion_vae_tiny, 3), squared_steps=2))
    assert used == [True, True, False]


def test_the_decoder_has_its_own_learning_rate(small, monkeypatch):
    from training.run.loop import TrainingRun

    runs = []
    prepare = TrainingRun.prepare
    monkeypatch.setattr(
        TrainingRun, "prepare", lambda self, *args: (runs.append(self), prepare(self, *args))[1]
    )
    train(replace(small(motion_vae_tiny, 1), decoder_learning_rate=0.1))
    assert sorted(group["scale"] for group in runs[0].optimizer.param_groups) == [0.1, 1.0]
