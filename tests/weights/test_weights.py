"""Strict loading into any network. Files and kinds: tests/weights."""

import pytest
import torch
from torch import nn

from more4d_backend.weights import load_into
from more4d_backend.weights.files import WeightsError, stored


def test_nothing_is_changed_when_a_file_does_not_fit():
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    with pytest.raises(WeightsError, match="1 missing: bias"):
        load_into(module, stored({"weight": torch.zeros(2, 2)}), source="it")
    assert torch.equal(module.weight, before)


def test_only_listed_names_may_be_missing():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    given = stored({"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"1 missing: 1\.bias"):
        load_into(module, given, source="it", allowed_missing=["1.weight"])
    load_into(module, given, source="it", allowed_missing=["1."])
    assert torch.equal(module[0].weight, torch.zeros(2, 2))
    assert module[1].weight.abs().sum() > 0


def test_a_network_with_values_keeps_its_parameters_and_dtype():
    module = nn.Linear(2, 2).bfloat16()
    weight = module.weight
    load_into(
        module, stored({"weight": torch.full((2, 2), 3.0), "bias": torch.zeros(2)}), source="it"
    )
    assert module.weight is weight
    assert module.weight.dtype == torch.bfloat16
    assert module.weight.tolist() == [[3, 3], [3, 3]]


def test_a_network_left_without_values_is_refused():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    given = stored({"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"5 tensors of Sequential have no values: 1\.weight"):
        load_into(module, given, source="it", allowed_missing=["1."])


def test_computed_buffers_follow_the_parameters():
    from more4d_backend.weights import _bring_buffers

    module = torch.nn.Module()
    module.inner = torch.nn.Module()
    module.inner.register_buffer("angles", torch.ones(3), persistent=False)
    module.inner.register_buffer("positions", torch.ones(3))
    _bring_buffers(module, "meta")
    assert module.inner.angles.is_meta
    assert module.inner.positions.is_meta
