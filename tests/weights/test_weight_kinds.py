"""What a file is, from its names and shapes."""

from pathlib import Path

import pytest
import torch

from more4d_backend.weights.files import WeightFile, WeightsError, stored
from more4d_backend.weights.kinds import WeightKind, expect, recognize
from more4d_backend.weights.model_loading import load_strag

KINDS = (
    WeightKind.FUN_INP,
    WeightKind.FUN_CONTROL,
    WeightKind.STRAG,
    WeightKind.WAN_VAE,
    WeightKind.MOTION_VAE,
    WeightKind.UMT5,
    WeightKind.ENCODER_ADAPTER,
    WeightKind.DECODER_ADAPTER,
    WeightKind.OMNIMAE,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_every_kind_is_recognized_under_either_names_and_any_prefix(toy, kind, names, prefix):
    module = toy.make(kind)
    tensors = toy.originals(kind, module) if names == "original" else module.state_dict()
    held = stored({prefix + name: t for name, t in tensors.items()})
    found = recognize(WeightFile(path=Path("w"), tensors=held))
    assert found.kind is kind
    assert found.prefix == prefix
    differs = set(tensors) != set(toy.originals(kind, module)) or names == "original"
    assert found.names == (names if differs else "original")


@pytest.mark.parametrize(
    ("channels", "kind"),
    [(16, WeightKind.WAN), (36, WeightKind.FUN_INP), (48, WeightKind.FUN_CONTROL)],
)
def test_input_channels_tell_the_wan_models_apart(toy, channels, kind):
    held = stored(toy.originals(WeightKind.WAN, toy.fun_inp(in_channels=channels)))
    assert recognize(WeightFile(path=Path("w"), tensors=held)).kind is kind


@pytest.mark.parametrize(
    ("names", "metadata", "kind"),
    [
        (["lora_unet__blocks_0_self_attn_q.lora_down.weight"], {}, WeightKind.VISM_LORA),
        (["lora_unet_blocks_0_self_attn_q.lora_down.weight"], {}, WeightKind.OTHER_LORA),
        (["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], {}, WeightKind.OTHER_LORA),
        (["tracks.motion"], {"format": "more4d-scene"}, WeightKind.SCENE),
        (["x", "y"], {}, WeightKind.UNKNOWN),
    ],
)
def test_other_files_are_recognized(names, metadata, kind):
    held = stored({name: torch.zeros(1) for name in names})
    file = WeightFile(path=Path("w"), tensors=held, metadata=metadata)
    assert recognize(file).kind is kind


def test_a_wrong_file_in_a_slot_is_named_together_with_what_is_needed(toy, tmp_path):
    path = toy.on_disk(tmp_path / "v.safetensors", toy.originals(WeightKind.WAN_VAE, toy.wan_vae()))
    with pytest.raises(WeightsError, match=r"is a Wan2\.1 VAE .*Needed here: the 4D-STraG trans"):
        load_strag(path)
    file = WeightFile(path=Path("w"), tensors=stored({n: torch.zeros(1) for n in "abcdefg"}))
    with pytest.raises(WeightsError, match="7 tensors start with a, b, c, d, e and 2 more"):
        expect(file, WeightKind.STRAG)
