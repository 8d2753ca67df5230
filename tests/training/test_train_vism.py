from dataclasses import replace
from pathlib import Path

import pytest
import torch

from more4d_backend.vism.lora import load_lora
from more4d_backend.weights.model_loading import load_wan_transformer
from training import networks
from training.data.holes import HoleSettings, holes_of
from training.data.loader import TrainingLoader
from training.data.shards import ShardDataset
from training.recipes import vism_tiny, vism_tiny_lora
from training.train_vism import VismGiven, VismObjective, train


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def config(small):
    return small(vism_tiny, 1)


@pytest.fixture
def batch(config):
    dataset = ShardDataset(config.data.train, config.data.size)
    return next(iter(TrainingLoader(dataset, batch_size=2, seed=0)))


@pytest.fixture
def given(config):
    return VismGiven.load(config, torch.device("cpu"))


def _backward(config, given, batch) -> VismObjective:
    objective = VismObjective(networks.vism_to_train(config), config)
    inputs = given.inputs(given.encoded(batch, _draw()), _draw())
    noise = torch.randn(inputs.latent.shape, generator=_draw(1))
    objective(inputs, torch.tensor([0.3, 0.8]), noise).mean().backward()
    return objective


def test_gradients_reach_every_parameter_at_step_0(config, given, batch):
    objective = _backward(config, given, batch)
    without = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_only_the_lora_has_gradients_and_its_upper_half_at_step_0(small, given, batch):
    objective = _backward(small(vism_tiny_lora, 1), given, batch)
    for name, parameter in objective.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        # The lower half follows one step later: the upper one is zero, and so is the product.
        if "lora_B" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_a_few_steps_halve_the_loss_on_samples_never_seen(small, metrics_of):
    # The 200 steps, for every trainer, are in benchmarks/trainers_learn.py.
    config = small(vism_tiny, 55, validate_every=55)
    before = networks.vism_to_train(config).state_dict()
    path = train(config)
    losses = metrics_of(config, "validation/loss")
    assert len(losses) == 2
    assert losses[1] <= 0.5 * losses[0]
    for name in ("filled_psnr_db", "known_psnr_db"):
        assert len(metrics_of(config, f"validation/{name}")) == 2
    after = load_wan_transformer(path).state_dict()
    assert not any(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.fixture(scope="module")
def base_file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("base") / "vism_base.safetensors"


@pytest.fixture
def trained_base(small, base_file) -> Path:
    """A base after a few steps: a LoRA on random values has little to hold on to."""
    if not base_file.exists():
        train(small(vism_tiny, 25, "base")).rename(base_file)
    return base_file


def _lora_config(small, base: Path, num_steps: int, output: str = "run", **run):
    config = small(vism_tiny_lora, num_steps, output, **run)
    return replace(config, weights=replace(config.weights, base=base))


def test_a_lora_learns_on_a_trained_base_and_leaves_it_alone(small, trained_base, metrics_of):
    config = _lora_config(small, trained_base, 50, validate_every=50)
    path = train(config)
    losses = metrics_of(config, "validation/loss")
    assert losses[1] <= 0.95 * losses[0]
    transformer = load_wan_transformer(trained_base)
    before = {name: p.clone() for name, p in transformer.named_parameters()}
    load_lora(transformer, path, lora_weight=1.0)
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            assert parameter.any(), name
        else:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])


def test_the_written_lora_acts_as_the_trained_one(small, trained_base, given, batch):
    config = _lora_config(small, trained_base, 3)
    path = train(config)
    inputs = given.inputs(given.encoded(batch, _draw()), _draw())
    noise = torch.randn(inputs.latent.shape, generator=_draw(1))

    def losses(transformer):
        with torch.no_grad():
            return VismObjective(transformer, config)(inputs, torch.tensor([0.3, 0.8]), noise)

    plain = losses(load_wan_transformer(trained_base))
    loaded = load_wan_transformer(trained_base)
    load_lora(loaded, path, lora_weight=1.0)
    again = networks.vism_to_train(config)
    from safetensors.torch import load_file

    checkpoint = load_file(config.run.output / "checkpoint-00000003" / "trainable.safetensors")
    state = {name.removeprefix("transformer."): t for name, t in checkpoint.items()}
    assert not again.load_state_dict(state, strict=False).unexpected_keys
    assert torch.allclose(losses(loaded), losses(again), atol=1e-6)
    assert not torch.allclose(losses(loaded), plain, atol=1e-5)


@pytest.mark.parametrize("recipe", [vism_tiny, vism_tiny_lora])
def test_a_resumed_training_is_the_same_to_the_last_bit(recipe, small, metrics_of, same_tensors):
    whole, parts = small(recipe, 4, "whole"), small(recipe, 4, "parts")
    expected = train(whole)
    train(small(recipe, 2, "parts"))
    assert same_tensors(train(parts), expected)
    assert metrics_of(parts, "loss") == metrics_of(whole, "loss")


def test_a_checkpoint_of_a_lora_holds_the_lora_alone(small):
    from safetensors.torch import load_file

    config = small(vism_tiny_lora, 1)
    train(config)
    checkpoint = load_file(config.run.output / "checkpoint-00000001" / "trainable.safetensors")
    assert len(checkpoint) == 72
    assert all("lora_" in name for name in checkpoint)


def test_the_condition_is_that_of_the_pipeline(given, batch):
    from more4d_backend.vism.conditioning import condition_latent

    holes = holes_of(batch, HoleSettings(), _draw())
    inputs = given.inputs(given.encode(batch, holes), _draw(), training=False)
    expected = condition_latent(given.vae, holes[1].rendered, holes[1].hole_mask)
    assert torch.equal(inputs.condition[1:], expected)


def test_texts_are_left_out_in_training_alone(config, given, batch):
    holes = holes_of(batch, HoleSettings(), _draw())
    given = replace(given, config=replace(config, dropouts=replace(config.dropouts, text=0.999)))
    assert not given.inputs(given.encode(batch, holes), _draw()).text.any()
    told = given.inputs(given.encode(batch, holes), _draw(), training=False).text
    assert told.flatten(1).any(1).all()
