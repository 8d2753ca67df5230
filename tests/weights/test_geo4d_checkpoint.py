"""Geo4D's released checkpoints, and what they are converted to."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.network import Geo4DUNet
from more4d_backend.geo4d.resampler import Resampler
from more4d_backend.geo4d.sizes import GEO4D_SIZES, Geo4DSize, UNetSize, VAESize
from more4d_backend.geo4d.vae import Geo4DVAE
from more4d_backend.weights import compare, geo4d_context
from more4d_backend.weights.architectures import build_empty
from more4d_backend.weights.commands import check_file, convert_file
from more4d_backend.weights.conversion import open_model
from more4d_backend.weights.files import StoredTensor, WeightFile, WeightsError, stored
from more4d_backend.weights.geo4d import load_geo4d
from more4d_backend.weights.kinds import WeightKind, recognize

# As released but for the widths: 32 groups, 8 heads in the first attention.
SIZE = Geo4DSize(
    unet=UNetSize(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(0,),
        head_dim=8,
        context_dim=64,
    ),
    vae=VAESize(channels=32, channel_mult=(1, 2), num_res_blocks=1),
    num_frames=2,
)


RESAMPLER = dict(dim=64, depth=1, heads=1, num_queries=32, embedding_dim=80, output_dim=64)


SCHEDULE = (
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod "
    "posterior_variance posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2"
).split()


def tower(width, layers, prefix):
    """One of open_clip's transformers, from the facts about it."""
    shapes = {}
    for i in range(layers):
        block = f"{prefix}transformer.resblocks.{i}."
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}{norm}.{x}": (width,) for x in ("weight", "bias")}
        shapes |= {
            f"{block}attn.in_proj_weight": (3 * width, width),
            f"{block}attn.in_proj_bias": (3 * width,),
            f"{block}attn.out_proj.weight": (width, width),
            f"{block}attn.out_proj.bias": (width,),
            f"{block}mlp.c_fc.weight": (4 * width, width),
            f"{block}mlp.c_fc.bias": (4 * width,),
            f"{block}mlp.c_proj.weight": (width, 4 * width),
            f"{block}mlp.c_proj.bias": (width,),
        }
    return shapes


def clip_shapes(text=64, joint=64, text_layers=2, image=80, image_layers=2, patch=14, places=4):
    ends = {
        "positional_embedding": (77, text),
        "text_projection": (text, joint),
        "logit_scale": (),
        "token_embedding.weight": (49408, text),
        "ln_final.weight": (text,),
        "ln_final.bias": (text,),
    }
    visual = {
        "visual.class_embedding": (image,),
        "visual.positional_embedding": (places + 1, image),
        "visual.proj": (image, joint),
        "visual.conv1.weight": (image, 3, patch, patch),
    }
    for norm in ("ln_pre", "ln_post"):
        visual |= {f"visual.{norm}.{x}": (image,) for x in ("weight", "bias")}
    result = {f"cond_stage_model.model.{n}": s for n, s in ends.items()}
    result |= tower(text, text_layers, "cond_stage_model.model.")
    result |= {f"embedder.model.{n}": s for n, s in (ends | visual).items()}
    return result | tower(image, image_layers, "embedder.model.visual.")


def vae_names(vae):
    """Released names of a VAE with one decoder; the other parts of it are zeros."""
    state = vae.state_dict()
    result = {}
    for part in ("encoder.", "quant_conv."):
        result |= {n: t for n, t in state.items() if n.startswith(part)}
    for part in ("post_quant_conv.", "decoder.", "decoder_adaptor."):
        result |= {
            n.removeprefix("point_decoder."): t
            for n, t in state.items()
            if n.startswith(f"point_decoder.{part}")
        }
    width = vae.size.channels
    unused = {"conv_in": (width, 3, 3, 3), "conv_out": (3, width, 3, 3)}
    unused |= {f"down.0.block.0.conv{i}": (width, width, 3, 3) for i in (1, 2)}
    unused |= {f"down.0.block.0.norm{i}": (width,) for i in (1, 2)} | {"norm_out": (width,)}
    for name, shape in unused.items():
        result[f"encoder_adaptor.{name}.weight"] = torch.zeros(shape)
        result[f"encoder_adaptor.{name}.bias"] = torch.zeros(shape[:1])
    return result


@pytest.fixture(scope="module")
def release():
    """The tensors of a small `model.ckpt` and of its `vae.ckpt`."""
    torch.manual_seed(0)
    stock, points = Geo4DVAE(SIZE.vae), Geo4DVAE(SIZE.vae)
    points.encoder, points.quant_conv = stock.encoder, stock.quant_conv
    resampler = Resampler(**RESAMPLER)
    model = {f"model.diffusion_model.{n}": t for n, t in Geo4DUNet(SIZE).state_dict().items()}
    model |= {f"first_stage_model.{n}": t for n, t in vae_names(stock).items()}
    model |= {f"image_proj_model.{n}": t for n, t in resampler.state_dict().items()}
    model |= {n: 0.1 * torch.randn(shape) for n, shape in clip_shapes().items()}
    model |= {n: torch.zeros(1000) for n in SCHEDULE} | {"scale_arr": torch.ones(1400)}
    return model, vae_names(points)


def written(folder, model, vae, wrap=lambda state: {"state_dict": state, "global_step": 7}):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(wrap(model), folder / "model.ckpt")
    torch.save({"state_dict": {f"model.{n}": t for n, t in vae.items()}}, folder / "vae.ckpt")
    return folder


@pytest.fixture
def folded_by_hand(monkeypatch):
    """Conversion without open_clip: the context is a recognisable constant."""
    tokens = torch.arange(64.0).expand(1, SIZE.num_context_tokens, 64)
    monkeypatch.setattr(
        "more4d_backend.weights.geo4d_checkpoint.fold_context", lambda tensors: tokens
    )
    return tokens


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "global_step": 7},
        lambda state: {"module": {f"_forward_module.{n}": t for n, t in state.items()}},
        lambda state: {
            n.replace("fps_embedding", "framestride_embed"): t for n, t in state.items()
        },
    ],
    ids=["lightning", "deepspeed", "old name"],
)
def test_the_released_pair_becomes_one_file_that_computes_the_same(
    release, folded_by_hand, tmp_path, wrap
):
    model, vae = release
    folder = written(tmp_path / "geo4d", model, vae, wrap)
    report = convert_file(folder, tmp_path / "g.safetensors", dtype=torch.float32)
    assert report.found.kind is WeightKind.GEO4D
    assert report.is_usable
    loaded = load_geo4d(tmp_path / "g.safetensors")
    assert loaded.size == SIZE
    assert loaded.num_steps == 5
    assert open_model(tmp_path / "g.safetensors").metadata["more4d_num_steps"] == "5"
    assert torch.equal(loaded.context, folded_by_hand)
    for name, value in loaded.unet.state_dict().items():
        assert torch.equal(value, model[f"model.diffusion_model.{name}"]), name
    stock, points = loaded.vae.image_decoder.state_dict(), loaded.vae.point_decoder.state_dict()
    for name, value in stock.items():
        assert torch.equal(value, model[f"first_stage_model.{name}"]), name
    for name, value in points.items():
        assert torch.equal(value, vae[name]), name
    assert not torch.equal(stock["decoder.conv_in.weight"], points["decoder.conv_in.weight"])
    assert not any(p.is_meta for p in loaded.parameters())


def test_the_pair_is_found_under_any_names_and_from_the_checkpoint_itself(
    release, folded_by_hand, tmp_path
):
    folder = written(tmp_path / "geo4d", *release)
    convert_file(folder / "model.ckpt", tmp_path / "a.safetensors")
    convert_file(folder, folder / "beside.safetensors")
    assert check_file(folder).found.kind is WeightKind.GEO4D_CHECKPOINT
    (folder / "beside.safetensors").unlink()
    (folder / "model.ckpt").rename(folder / "model.ckptq9x.part")
    convert_file(folder, tmp_path / "b.safetensors")
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_converted_file_is_bfloat16_unless_told_otherwise(release, folded_by_hand, tmp_path):
    folder = written(tmp_path / "geo4d", *release)
    report = convert_file(folder, tmp_path / "g.safetensors")
    assert set(report.dtypes) == {"bfloat16"}
    again = convert_file(
        tmp_path / "g.safetensors", tmp_path / "h.safetensors", dtype=torch.float32
    )
    assert set(again.dtypes) == {"float32"}
    assert load_geo4d(tmp_path / "h.safetensors").size == SIZE


@pytest.mark.parametrize("name", ["model.ckpt", "vae.ckpt", "."])
def test_until_it_is_converted_a_checkpoint_is_refused_with_the_command(release, tmp_path, name):
    folder = written(tmp_path / "geo4d", *release)
    with pytest.raises(WeightsError, match=r"weights convert FOLDER geo4d\.safetensors"):
        load_geo4d(folder / name)


def test_a_checkpoint_without_its_vae_says_what_to_do(release, folded_by_hand, tmp_path):
    folder = written(tmp_path / "geo4d", *release)
    (folder / "vae.ckpt").rename(tmp_path / "vae.ckpt")
    with pytest.raises(WeightsError, match=r"Put vae\.ckpt beside model\.ckpt"):
        convert_file(folder / "model.ckpt", tmp_path / "g.safetensors")
    with pytest.raises(WeightsError, match=r"is a released Geo4D VAE \(vae\.ckpt\)\. Needed here"):
        convert_file(tmp_path / "vae.ckpt", tmp_path / "g.safetensors")


def test_checkpoints_that_do_not_belong_together_are_refused(release, folded_by_hand, tmp_path):
    model = release[0]
    torch.manual_seed(5)
    strangers = vae_names(Geo4DVAE(SIZE.vae))
    folder = written(tmp_path / "geo4d", model, strangers)
    with pytest.raises(WeightsError, match=r"do not belong together: their encoders differ by 1"):
        convert_file(folder, tmp_path / "g.safetensors")
    wide = vae_names(Geo4DVAE(VAESize(channels=64, channel_mult=(1, 2), num_res_blocks=1)))
    folder = written(tmp_path / "wide", model, wide)
    with pytest.raises(WeightsError, match=r"of another shape: point_vae\."):
        convert_file(folder, tmp_path / "g.safetensors")
    assert not (tmp_path / "g.safetensors").exists()


LOST = (
    "embedder.model.visual.proj model.diffusion_model.out.2.bias scale_arr "
    "first_stage_model.encoder_adaptor.conv_in.bias"
).split()


@pytest.mark.parametrize("name", [*LOST, None])
def test_every_tensor_of_a_checkpoint_is_accounted_for(release, folded_by_hand, tmp_path, name):
    model, vae = dict(release[0]), release[1]
    if name is None:
        model["stranger"] = torch.zeros(1)
    else:
        del model[name]
    folder = written(tmp_path / "geo4d", model, vae)
    assert not check_file(folder).is_usable
    with pytest.raises(WeightsError, match="1 missing" if name else "1 unexpected: stranger"):
        convert_file(folder, tmp_path / "g.safetensors")


def test_without_open_clip_the_pip_line_is_given(release, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    folder = written(tmp_path / "geo4d", *release)
    with pytest.raises(ImportError, match=r"pip install open_clip_torch"):
        convert_file(folder, tmp_path / "g.safetensors")


def test_the_context_is_what_the_checkpoints_own_towers_say(release, tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    tensors = stored(release[0])
    context = geo4d_context.fold_context(tensors)
    assert context.shape == (1, SIZE.num_context_tokens, 64)
    # Against open_clip's own forward passes, watched from outside.
    clip = open_clip.CLIP(
        64,
        open_clip.CLIPVisionCfg(layers=2, width=80, head_width=80, patch_size=14, image_size=28),
        open_clip.CLIPTextCfg(77, 49408, width=64, heads=1, layers=2),
    ).eval()
    state = {n: t for n, t in release[0].items() if n.startswith("cond_stage_model.model.")}
    state |= {n: t for n, t in release[0].items() if n.startswith("embedder.model.visual.")}
    clip.load_state_dict({n.split(".model.")[1]: t for n, t in state.items()})
    seen = {}
    last_but_one = clip.transformer.resblocks[-2]
    last_but_one.register_forward_hook(lambda *call: seen.update(text=call[-1]))
    clip.visual.transformer.register_forward_hook(lambda *call: seen.update(image=call[-1]))
    with torch.no_grad():
        clip.encode_text(open_clip.tokenize([geo4d_context.PROMPT]))
        constants = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        mean, std = map(torch.tensor, constants)
        clip.encode_image(((0.5 - mean) / std).view(1, 3, 1, 1).expand(1, 3, 28, 28))
        text = clip.ln_final(seen["text"])
    torch.testing.assert_close(context[:, :77], text, atol=1e-5, rtol=0)
    resampler = Resampler(**RESAMPLER)
    prefix = "image_proj_model."
    own = {n.removeprefix(prefix): t for n, t in release[0].items() if n.startswith(prefix)}
    resampler.load_state_dict(own)
    with torch.no_grad():
        torch.testing.assert_close(context[:, 77:], resampler(seen["image"]), atol=1e-5, rtol=0)


def test_the_prompt_is_what_the_tokenizer_makes_of_it():
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    ids = open_clip.tokenize([geo4d_context.PROMPT])[0]
    length = len(geo4d_context.PROMPT_TOKENS)
    assert ids[:length].tolist() == list(geo4d_context.PROMPT_TOKENS)
    assert not ids[length:].any()


def test_a_file_without_its_header_is_read_by_its_shapes(release, folded_by_hand, tmp_path):
    folder = written(tmp_path / "geo4d", *release)
    convert_file(folder, tmp_path / "g.safetensors")
    tensors = {n: t.read() for n, t in open_model(tmp_path / "g.safetensors").tensors.items()}
    save_file(tensors, tmp_path / "h.safetensors")
    assert load_geo4d(tmp_path / "h.safetensors").size == SIZE


def released_file(parity_dir: Path) -> WeightFile:
    titles = {
        "Geo4D UNet (prefix model.diffusion_model.)": "model.diffusion_model.",
        "Geo4D VAE (prefix first_stage_model. / vae.ckpt prefix model.)": "first_stage_model.",
        "Geo4D Resampler (prefix image_proj_model.)": "image_proj_model.",
    }
    released = json.loads((parity_dir / "released_keys.json").read_text())
    shapes = {
        prefix + name: shape
        for title, prefix in titles.items()
        for name, shape in released[title].items()
    }
    shapes |= clip_shapes(
        text=1024, joint=1024, text_layers=24, image=1280, image_layers=32, places=256
    )
    shapes |= dict.fromkeys(SCHEDULE, (1000,)) | {"scale_arr": (1400,)}
    tensors = {
        name: StoredTensor(shape=tuple(shape), dtype=torch.float32, read=lambda: torch.empty(0))
        for name, shape in shapes.items()
    }
    return WeightFile(path=Path("model.ckpt"), tensors=tensors)


@pytest.mark.parity
def test_the_released_checkpoints_fit_exactly_at_full_size(parity_dir):
    file = released_file(parity_dir)
    assert len(file.tensors) == 2554
    assert file.num_parameters - 13_400 == 2_610_093_885  # the schedule is no parameter
    assert recognize(file).kind is WeightKind.GEO4D_CHECKPOINT
    module = build_empty(WeightKind.GEO4D_CHECKPOINT, file.tensors)
    assert not compare(module.state_dict(keep_vars=True), file.tensors)
    prefix = "first_stage_model."
    vae = {n.removeprefix(prefix): t for n, t in file.tensors.items() if n.startswith(prefix)}
    alone = WeightFile(path=Path("v"), tensors={f"model.{n}": t for n, t in vae.items()})
    assert recognize(alone).kind is WeightKind.GEO4D_VAE
    assert not compare(build_empty(WeightKind.GEO4D_VAE, vae).state_dict(keep_vars=True), vae)
    joined = file.tensors | {f"point_vae.{n}": t for n, t in vae.items()}
    both = build_empty(WeightKind.GEO4D_CHECKPOINT, joined)
    assert not compare(both.state_dict(keep_vars=True), joined)


@pytest.mark.parity
def test_the_converted_file_is_at_most_a_third_of_the_released_one(parity_dir):
    file = released_file(parity_dir)
    with torch.device("meta"):
        ours = Geo4DNetworks(GEO4D_SIZES["full"])
    assert 3 * 2 * ours.num_parameters <= 4 * file.num_parameters
    built = build_empty(WeightKind.GEO4D_CHECKPOINT, file.tensors)
    assert built.get_submodule("model.diffusion_model").size == GEO4D_SIZES["full"]
