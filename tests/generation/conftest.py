"""Toy weight files of every network, under their original names, as a user has them on disk."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

TEXT_DIM, IMAGE_DIM = 32, 128
WAN = {
    "num_layers": 2,
    "num_attention_heads": 1,
    "ffn_dim": 16,
    "freq_dim": 16,
    "text_dim": TEXT_DIM,
    "image_dim": IMAGE_DIM,
    "added_kv_proj_dim": 128,
}
WORDS = ["the", "ball", "moves", "left", "right"]


def write(path, kind, module):
    from more4d_backend.weights.conversion import to_original
    from more4d_backend.weights.files import stored

    tensors = to_original(kind, stored(module.state_dict()))
    save_file({name: t.read().detach().clone().contiguous() for name, t in tensors.items()}, path)
    return path


def tokenizer_folder(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {w: i + 3 for i, w in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder / "tokenizer.json"


def networks():
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE
    from more4d_backend.strag.profile import OWN
    from more4d_backend.strag.transformer import StragTransformer
    from more4d_backend.weights.kinds import WeightKind

    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4)
    perception = {
        "perception_dim": 128,
        "perception_depth": 1,
        "perception_heads": 4,
        "feature_dim": 8,
    }
    umt5 = UMT5Config(
        vocab_size=8, d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    clip = CLIPVisionConfig(
        hidden_size=IMAGE_DIM, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14, hidden_act="gelu",
    )  # fmt: skip
    return {
        "strag": (WeightKind.STRAG, StragTransformer(in_channels=64, **WAN, **perception)),
        "fun-inp": (WeightKind.FUN_INP, WanTransformer3DModel(in_channels=36, **WAN)),
        "wan-vae": (WeightKind.WAN_VAE, vae),
        "motion-vae": (
            WeightKind.MOTION_VAE,
            MotionVAE(vae, EncoderAdapter(32), DecoderAdapter(32), OWN.latents),
        ),
        "umt5": (WeightKind.UMT5, UMT5EncoderModel(umt5)),
        "clip": (WeightKind.CLIP_VISION, CLIPVisionModel(clip)),
    }


@pytest.fixture(scope="session")
def weight_files(tmp_path_factory) -> dict[str, Path]:
    """Name -> file, for everything that a generation loads."""
    from more4d_backend.vism.lora import add_lora, save_lora
    from more4d_backend.weights.kinds import WeightKind

    folder = tmp_path_factory.mktemp("weights")
    made = networks()
    files = {}
    for name, (kind, module) in made.items():
        path = folder / f"{name}.safetensors"
        if kind is WeightKind.CLIP_VISION:  # the original layout cannot be made from ours
            state = {n.removeprefix("vision_model."): t for n, t in module.state_dict().items()}
            save_file({f"vision_model.{n}": t.contiguous() for n, t in state.items()}, path)
        else:
            write(path, kind, module)
        files[name] = path
    transformer = made["fun-inp"][1]
    add_lora(transformer, rank=2, alpha=1)
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_lora(transformer, folder / "vism-lora.safetensors")
    return files | {
        "vism-lora": folder / "vism-lora.safetensors",
        "umt5-tokenizer": tokenizer_folder(folder / "tokenizer"),
    }


@pytest.fixture
def exact_videos(monkeypatch):
    """Write completed videos without loss.

    Of the same frames x264 makes other bytes once in a hundred times (measured).
    """
    from more4d_backend.files import videos

    monkeypatch.setattr(videos, "_LOSSY", replace(videos._LOSSY, options={"crf": "0"}))


@pytest.fixture(scope="session")
def results():
    """`results(folder)`: what was made, and what run.json says of it but for time and memory."""

    def read(folder: Path):
        if not (folder / "run.json").exists():
            return None
        vary = ("seconds", "peak_memory_bytes", "peak_process_bytes", "inputs_sha256")
        stages = json.loads((folder / "run.json").read_text())["stages"]
        recorded = [{k: v for k, v in stage.items() if k not in vary} for stage in stages]
        for stage in recorded:
            stage["chosen"] = sorted(stage["chosen"])  # not its words: they tell what was free
            stage["outputs"] = {name: contents(folder / name) for name in stage["outputs"]}
        sheet = folder / "contact-sheet.png"
        return recorded, contents(sheet) if sheet.exists() else None

    return read


def contents(path):
    """Hash what a file holds; safetensors, archives and videos add times, or order at random."""
    from more4d_backend.files.videos import load_video

    if path.suffix == ".safetensors":
        arrays = sorted((name, tensor.numpy()) for name, tensor in load_file(path).items())
    elif path.suffix == ".npz":
        arrays = sorted(np.load(path).items())
    elif path.suffix in (".mkv", ".mp4"):
        arrays = [("frames", load_video(path)[0].numpy())]
    else:
        arrays = [("bytes", np.frombuffer(path.read_bytes(), np.uint8))]
    return [(n, a.shape, hashlib.sha256(a.tobytes()).hexdigest()) for n, a in arrays]
