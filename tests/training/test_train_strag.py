from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from more4d_backend.weights.model_loading import load_byte_text, load_strag
from training import networks, train_strag
from training.data.loader import TrainingLoader
from training.data.shards import ShardDataset
from training.recipes import Ablation, Dropouts, strag_tiny
from training.train_strag import StragGiven, StragObjective, train


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def config(small):
    return replace(small(strag_tiny, 1), train_text=False)


@pytest.fixture
def batch(config):
    dataset = ShardDataset(config.data.train, config.data.size)
    return next(iter(TrainingLoader(dataset, batch_size=2, seed=0)))


@pytest.fixture
def given(config):
    return StragGiven.load(config, torch.device("cpu"))


def _losses(config, inputs, sigma=(0.3, 0.8)):
    objective = StragObjective(networks.strag_to_train(config), config)
    noise = torch.randn(inputs.latent.shape, generator=_draw(1))
    return objective, objective(inputs, torch.tensor(sigma), noise)


def test_gradients_reach_every_parameter_at_step_0(config, given, batch):
    objective, losses = _losses(config, given.inputs(batch, _draw()))
    losses.mean().backward()
    without = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    new = ("ref_conv", "feature_adapter", "omnimae_extractor", "spatial_guidance")
    assert all(any(word in n for n, _ in objective.named_parameters()) for word in new)


def test_a_few_steps_halve_the_loss_on_samples_never_seen(small, metrics_of):
    # The 200 steps, for every trainer, are in benchmarks/trainers_learn.py.
    config = small(strag_tiny, 55, validate_every=55)
    before = networks.strag_to_train(config).state_dict()
    path = train(config)
    losses = metrics_of(config, "validation/loss")
    assert len(losses) == 2
    assert losses[1] <= 0.5 * losses[0]
    errors = metrics_of(config, "validation/end_point_error_relative")
    assert len(errors) == 2
    after = load_strag(path).state_dict()
    for name, tensor in before.items():
        still = name.endswith("pos_embed")  # a table, not a parameter
        assert torch.equal(after[name], tensor) == still, name


def test_a_resumed_training_is_the_same_to_the_last_bit(small, metrics_of, same_tensors):
    whole, parts = small(strag_tiny, 4, "whole"), small(strag_tiny, 4, "parts")
    expected = train(whole)
    train(small(strag_tiny, 2, "parts"))
    assert same_tensors(train(parts), expected)
    assert metrics_of(parts, "loss") == metrics_of(whole, "loss")


def test_gradient_checkpointing_changes_no_gradient(config, given, batch):
    inputs = given.inputs(batch, _draw())
    gradients = []
    for checkpointing in (False, True):
        objective, _ = _losses(config, inputs)
        if checkpointing:
            objective.transformer.enable_gradient_checkpointing()
        noise = torch.randn(inputs.latent.shape, generator=_draw(1))
        objective(inputs, torch.tensor([0.3, 0.8]), noise).mean().backward()
        gradients.append({n: p.grad for n, p in objective.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("left_out", ["text", "control", "reference"])
def test_each_condition_is_left_out_by_its_own_setting(left_out, config, given, batch):
    none = Dropouts(text=0.0, image_tokens=0.0, control=0.0, reference=0.0)
    settings = replace(none, **{left_out: 0.999})
    inputs = replace(given, config=replace(config, dropouts=settings)).inputs(batch, _draw())
    assert inputs.channels[:, 32:].any()
    there = {
        "text": inputs.text,  # the stand-in encoder has no tokens for the empty text
        "control": inputs.channels[:, :16],
        "reference": inputs.reference_latent,
    }
    assert {name for name, part in there.items() if not part.any()} == {left_out}


def test_nothing_is_left_out_in_validation(config, given, batch):
    settings = Dropouts(text=0.9, image_tokens=0.9, control=0.9, reference=0.9)
    given = replace(given, config=replace(config, dropouts=settings))
    inputs = given.inputs(batch, _draw(), training=False)
    for part in (inputs.text, inputs.channels[:, :16], inputs.reference_latent):
        assert part.flatten(1).any(1).all()


def test_the_input_has_control_zeros_and_depth(given, batch):
    inputs = given.inputs(batch, _draw(), training=False)
    control, zeros, depth = inputs.channels.chunk(3, dim=1)
    assert control.any()
    assert depth.any()
    assert not zeros.any()
    assert 0 <= inputs.picture.min() <= inputs.picture.max() <= 1
    assert inputs.picture.max() > 0.6


def test_places_that_are_hidden_count_less(config, given, batch):
    hidden = batch.visibility.clone()
    hidden[:, 1:, :8, :8] = False
    inputs = given.inputs(replace(batch, visibility=hidden), _draw(), training=False)
    assert torch.allclose(inputs.weight[:, 0, 1, 0, 0], torch.tensor(config.hidden_weight))
    assert inputs.weight[:, 0, 0].min() > 0.9


@pytest.mark.parametrize(
    ("ablation", "untouched"),
    [
        (Ablation(motion_perception=False), ("guidance", "omnimae", "feature_adapter")),
        (Ablation(depth_latent=False), ()),
        (Ablation(depth_normalization=False), ()),
    ],
)
def test_ablated_parts_take_no_part(ablation, untouched, config, batch):
    config = replace(config, ablation=ablation)
    given = StragGiven.load(config, torch.device("cpu"))
    inputs = given.inputs(batch, _draw(), training=False)
    objective, losses = _losses(config, inputs)
    losses.mean().backward()
    for name, parameter in objective.named_parameters():
        ablated = any(word in name for word in untouched)
        assert (parameter.grad is None) == ablated, name
    assert inputs.channels[:, 32:].any() == ablation.depth_latent
    whole = StragGiven.load(replace(config, ablation=Ablation()), torch.device("cpu"))
    same = torch.equal(whole.inputs(batch, _draw(), training=False).latent, inputs.latent)
    assert same == ablation.depth_normalization


def test_an_ablated_network_trains_and_is_written(small):
    config = replace(small(strag_tiny, 1), ablation=Ablation(depth_normalization=False))
    assert train(config).exists()


def test_the_file_has_original_names_and_its_profile(small):
    with safe_open(train(small(strag_tiny, 1, export_precision="bf16")), "pt") as file:
        names = set(file.keys())
        assert file.metadata()["more4d_profile"] == "own"
        assert file.get_tensor("patch_embedding.weight").dtype == torch.bfloat16
    assert "blocks.0.self_attn.q.weight" in names
    assert "blocks.0.spatial_guidance_self.gate" in names


def test_the_running_mean_is_what_is_written(small):
    config = small(strag_tiny, 3, ema_decay=0.5)
    written = load_strag(train(config)).state_dict()
    from safetensors.torch import load_file

    checkpoint = config.run.output / "checkpoint-00000003"
    mean = load_file(checkpoint / "averaged.safetensors")
    last = load_file(checkpoint / "trainable.safetensors")
    name = "blocks.0.attn1.to_q.weight"
    assert torch.equal(written[name], mean[f"transformer.{name}"])
    assert not torch.equal(written[name], last[f"transformer.{name}"])


def test_a_text_encoder_that_learns_gets_gradients_and_is_written(small, metrics_of, monkeypatch):
    monkeypatch.setattr(train_strag, "_CAPTIONS_EVERY", 2)
    config = small(strag_tiny, 2)
    given = StragGiven.load(config, torch.device("cpu"))
    before = {n: p.clone() for n, p in given.encoders.text_encoder.model.named_parameters()}
    path = train(config)
    written = load_byte_text(path.with_name("text_encoder.safetensors"), dtype=torch.float32)
    after = dict(written.named_parameters())
    assert before.keys() == after.keys()
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    (gain,) = metrics_of(config, "caption_gain")
    assert gain != 0  # another caption, another loss
    assert abs(gain) < 0.5


def test_captions_are_left_out_where_the_text_encoder_learns(small, batch):
    config = replace(small(strag_tiny, 1), dropouts=Dropouts(text=0.999))
    given = StragGiven.load(config, torch.device("cpu"))
    assert given.inputs(batch, _draw()).text == ("", "")
    assert given.inputs(batch, _draw(), training=False).text == batch.captions
