"""Released layouts at full size, and the parts that are dropped."""

import json
from pathlib import Path

import pytest
import torch

from more4d_backend.strag.omnimae import OmniMAE
from more4d_backend.strag.sizes import STRAG_SIZES
from more4d_backend.weights import compare
from more4d_backend.weights.conversion import omnimae_training_parts, to_library, to_original
from more4d_backend.weights.files import StoredTensor, WeightFile, WeightsError, stored
from more4d_backend.weights.kinds import WeightKind, recognize
from more4d_backend.weights.model_loading import build_empty


def released(parity_dir: Path, title: str) -> WeightFile:
    shapes = json.loads((parity_dir / "released_keys.json").read_text())[title]
    tensors = {
        name: StoredTensor(shape=tuple(shape), dtype=torch.bfloat16, read=lambda: torch.empty(0))
        for name, shape in shapes.items()
    }
    return WeightFile(path=Path(title), tensors=tensors)


FULL_SIZE = {
    "4D-STraG transformer (VideoX-Fun key names)": WeightKind.STRAG,
    "Wan2.1-Fun-InP transformer (base of 4D-ViSM)": WeightKind.FUN_INP,
    "motion VAE (Wan VAE, keys as saved)": WeightKind.WAN_VAE,
    "motion VAE encoder adapter (encoder_prompt)": WeightKind.ENCODER_ADAPTER,
    "motion VAE decoder adapter (decoder_prompt)": WeightKind.DECODER_ADAPTER,
}


@pytest.mark.parity
@pytest.mark.parametrize("title", FULL_SIZE)
def test_released_files_fit_the_full_size_networks_exactly(parity_dir, title):
    file = released(parity_dir, title)
    found = recognize(file)
    assert found.kind is FULL_SIZE[title]
    library = to_library(found, file.tensors)
    module = build_empty(found.kind, library)
    assert not compare(module.state_dict(keep_vars=True), library)
    back = to_original(found.kind, library)
    lost = file.tensors.keys() - {found.prefix + name for name in back}
    expected = omnimae_training_parts() if found.kind is WeightKind.STRAG else {}
    assert lost == {f"omnimae_extractor.{name}" for name in expected}
    assert all(back[name.removeprefix(found.prefix)].shape == file.tensors[name].shape
               for name in file.tensors.keys() - lost)  # fmt: skip


@pytest.mark.parity
def test_the_released_strag_layout_is_the_14b_size(parity_dir):
    file = released(parity_dir, "4D-STraG transformer (VideoX-Fun key names)")
    module = build_empty(WeightKind.STRAG, to_library(recognize(file), file.tensors))
    expected = STRAG_SIZES["14b"].config()
    assert {name: module.config[name] for name in expected} == expected


def full_omnimae() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        names = OmniMAE().state_dict()
    shapes = {name: tuple(t.shape) for name, t in names.items()} | omnimae_training_parts()
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def described(tensors):
    return WeightFile(path=Path("vitb_pretrain.torch"), tensors=stored(tensors))


def test_the_published_omnimae_is_taken_without_its_training_parts():
    file = described(full_omnimae())
    found = recognize(file)
    assert found.kind is WeightKind.OMNIMAE
    library = to_library(found, file.tensors)
    assert library.keys() == OmniMAE().state_dict().keys()


def test_training_parts_of_omnimae_are_checked_before_they_are_dropped():
    tensors = full_omnimae()
    tensors["head.weight"] = torch.zeros(1536, 512)
    with pytest.raises(WeightsError, match=r"head\.weight \(1536, 512\) \(expected \(1536, 384\)"):
        to_library(recognize(described(tensors)), stored(tensors))
    tensors = full_omnimae()
    del tensors["trunk.decoder.norm.bias"]
    with pytest.raises(WeightsError, match=r"incomplete; missing: trunk\.decoder\.norm\.bias"):
        to_library(recognize(described(tensors)), stored(tensors))
