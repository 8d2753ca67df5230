"""`weights check` and `weights convert`."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from more4d_backend.files import OutputError
from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionLatentSettings
from more4d_backend.weights import commands as weight_commands
from more4d_backend.weights.commands import check_file, convert_file
from more4d_backend.weights.files import WeightsError
from more4d_backend.weights.kinds import WeightKind
from more4d_backend.weights.model_loading import load_clip_vision, load_motion_vae

SETTINGS = MotionLatentSettings(clamp_decoded=True)

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


def test_check_says_what_a_whole_file_is(toy, tmp_path):
    path = toy.on_disk(
        tmp_path / "w.safetensors", toy.originals(WeightKind.FUN_INP, toy.fun_inp().bfloat16())
    )
    report = check_file(path)
    assert report.is_usable
    text = "\n".join(report.lines())
    assert "a Wan2.1 Fun-InP or image-to-video transformer" in text
    assert "original names" in text
    assert "bfloat16" in text
    assert "fits WanTransformer3DModel" in text


def test_check_lists_what_is_missing_under_the_files_own_names(toy, tmp_path):
    tensors = toy.originals(WeightKind.FUN_INP, toy.fun_inp())
    del tensors["blocks.1.cross_attn.k_img.weight"]
    tensors["surplus"] = torch.zeros(1)
    report = check_file(toy.on_disk(tmp_path / "w.safetensors", tensors))
    assert not report.is_usable
    assert report.differences.missing == ("blocks.1.cross_attn.k_img.weight",)
    assert report.differences.unexpected == ("surplus",)
    assert "does NOT fit WanTransformer3DModel" in report.lines()[-1]


def test_check_shows_the_first_names_of_an_unknown_file(toy, tmp_path):
    report = check_file(toy.on_disk(tmp_path / "w.safetensors", {"x.1": torch.zeros(1)}))
    assert not report.is_usable
    assert "its names start with x.1" in report.lines()[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["original", "diffusers"])
def test_conversion_to_other_names_and_back_loses_nothing(toy, tmp_path, kind, names):
    module = toy.make(kind)
    tensors = toy.originals(kind, module)
    source = toy.on_disk(tmp_path / "a.pth", tensors)
    convert_file(source, tmp_path / "b.safetensors", names=names)
    convert_file(tmp_path / "b.safetensors", tmp_path / "c.safetensors", names="original")
    back = load_file(tmp_path / "c.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_conversion_changes_the_dtype_of_floating_tensors_only_when_asked(toy, tmp_path):
    source = toy.on_disk(tmp_path / "a.pth", toy.originals(WeightKind.FUN_INP, toy.fun_inp()))
    report = convert_file(source, tmp_path / "b.safetensors", dtype=torch.bfloat16)
    assert set(report.dtypes) == {"bfloat16"}
    assert set(convert_file(source, tmp_path / "c.safetensors").dtypes) == {"float32"}


def test_the_three_released_folders_become_one_motion_vae(toy, tmp_path):
    module = toy.motion_vae()
    vae = {f"model.{n}": t for n, t in toy.originals(WeightKind.WAN_VAE, module.vae).items()}
    parts = {
        "vae": vae,
        "encoder_prompt": module.encoder_prompt.state_dict(),
        "decoder_prompt": module.decoder_prompt.state_dict(),
    }
    for folder, tensors in parts.items():
        (tmp_path / "VAE" / folder).mkdir(parents=True)
        toy.on_disk(tmp_path / "VAE" / folder / "pytorch_model.bin", tensors)
    report = convert_file(tmp_path / "VAE", tmp_path / "motion_vae.safetensors")
    assert report.found.kind is WeightKind.MOTION_VAE
    assert report.found.names == "original"
    assert report.is_usable
    loaded = load_motion_vae(tmp_path / "motion_vae.safetensors", SETTINGS)
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    directly = load_motion_vae(tmp_path / "VAE", SETTINGS)
    assert torch.equal(directly.decoder_prompt.conv_out.bias, module.decoder_prompt.conv_out.bias)
    with safe_open(tmp_path / "motion_vae.safetensors", "pt") as file:
        assert file.metadata()["more4d_kind"] == "motion-vae"


def test_a_part_of_the_motion_vae_in_the_wrong_folder_is_named(toy, tmp_path):
    for folder in ("vae", "encoder_prompt"):
        (tmp_path / folder).mkdir()
        toy.on_disk(tmp_path / folder / "pytorch_model.bin", DecoderAdapter(32).state_dict())
    with pytest.raises(WeightsError, match=r"decoder adapter alone.*Needed here: a Wan2\.1 VAE"):
        convert_file(tmp_path, tmp_path / "m.safetensors")
    toy.on_disk(tmp_path / "vae" / "pytorch_model.bin", toy.wan_vae().state_dict())
    toy.on_disk(tmp_path / "encoder_prompt" / "pytorch_model.bin", EncoderAdapter(32).state_dict())
    with pytest.raises(WeightsError, match="no folder decoder_prompt"):
        convert_file(tmp_path, tmp_path / "m.safetensors")


def test_the_original_encoders_become_files_that_transformers_reads(toy, tmp_path):
    module = toy.clip()
    convert_file(
        toy.on_disk(tmp_path / "c.pth", toy.original_clip(module)), tmp_path / "c.safetensors"
    )
    assert all(name.startswith("vision_model.") for name in load_file(tmp_path / "c.safetensors"))
    loaded = load_clip_vision(tmp_path / "c.safetensors")
    assert all(torch.equal(loaded.state_dict()[n], t) for n, t in module.state_dict().items())
    source = toy.on_disk(tmp_path / "t.pth", toy.originals(WeightKind.UMT5, toy.umt5()))
    convert_file(source, tmp_path / "t.safetensors")
    assert "shared.weight" in load_file(tmp_path / "t.safetensors")


def test_an_original_clip_file_cannot_be_made(toy, tmp_path):
    source = toy.on_disk(tmp_path / "c.pth", toy.original_clip(toy.clip()))
    with pytest.raises(WeightsError, match="also holds a text encoder"):
        convert_file(source, tmp_path / "c.safetensors", names="original")


def test_what_does_not_fit_is_not_converted(toy, tmp_path):
    tensors = toy.originals(WeightKind.FUN_INP, toy.fun_inp())
    del tensors["head.head.bias"]
    target = tmp_path / "b.safetensors"
    with pytest.raises(WeightsError, match="1 missing"):
        convert_file(toy.on_disk(tmp_path / "a.pth", tensors), target)
    assert not target.exists()
    with pytest.raises(OutputError, match="does not end in"):
        convert_file(tmp_path / "a.pth", tmp_path / "b.bin")


def test_a_file_is_never_converted_onto_itself(toy, tmp_path):
    source = toy.on_disk(tmp_path / "a.safetensors", toy.fun_inp().state_dict())
    with pytest.raises(OutputError, match="is the source itself"):
        convert_file(source, source)


def test_a_full_disk_leaves_no_half_file(toy, tmp_path, monkeypatch):
    def fill_up(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_commands, "save_file", fill_up)
    source = toy.on_disk(tmp_path / "a.safetensors", toy.fun_inp().state_dict())
    with pytest.raises(OutputError, match=r"No space left on device.*Is the disk full"):
        convert_file(source, tmp_path / "b.safetensors")
    assert list(tmp_path.iterdir()) == [source]


def test_the_tied_embedding_of_umt5_is_stored_once(toy, tmp_path):
    module = toy.umt5()
    source = toy.on_disk(tmp_path / "a.safetensors", module.state_dict())
    for names, expected in (("diffusers", "shared.weight"), ("original", "token_embedding.weight")):
        convert_file(source, tmp_path / "b.safetensors", names=names)
        held = load_file(tmp_path / "b.safetensors")
        same = [n for n, t in held.items() if t.shape == module.shared.weight.shape]
        assert same == [expected]
