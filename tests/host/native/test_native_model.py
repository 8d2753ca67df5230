"""4D-STraG in the host: found, loaded whole, and computing what the headless network does."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from more4d_backend.weights.conversion import OMNIMAE_PREFIX, omnimae_training_parts
from more4d_backend.weights.kinds import WeightKind

pytestmark = [pytest.mark.parity, pytest.mark.host]


def with_prefix(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def of_transformer(**sizes):
    return {"config": json.dumps({"transformer": sizes})}


@pytest.fixture(scope="module")
def recorded(parity_dir):
    return load_file(parity_dir / "strag_transformer.safetensors")


@pytest.fixture(scope="module")
def strag_weights(recorded):
    return with_prefix(recorded, "weights.")


@pytest.fixture(scope="module")
def write_strag(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strag")

    def write(weights, name="strag"):
        # A width of 96 would be taken to have 3 heads; the recording has 4.
        path = folder / f"{name}.safetensors"
        save_file(weights, path, metadata=of_transformer(perception_heads=4))
        return str(path)

    return write


@pytest.fixture(scope="module")
def strag_file(strag_weights, write_strag):
    return write_strag(strag_weights)


def inputs(recorded):
    contexts = [recorded["in.context0"], recorded["in.context1"]]
    return {
        "x": torch.cat([recorded["in.x"], recorded["in.y"]], dim=1),
        "timestep": recorded["in.timestep"],
        "context": torch.stack([torch.cat([c, c.new_zeros(512 - len(c), 4096)]) for c in contexts]),
        "clip": recorded["in.clip_features"],
        "reference": recorded["in.reference_latent"],
    }


def guided(recorded):
    return inputs(recorded) | {"image": recorded["in.first_frame_01"], "unguided_frame": -1}


def close(found, wanted, tolerance=1e-4):
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


def test_the_velocity_with_guidance_is_that_of_the_reference(native_host, strag_file, recorded):
    gates = [v for k, v in recorded.items() if k.endswith(".gate")]
    assert min(float(gate.abs().max()) for gate in gates) > 0.01
    found = native_host.call("networks.velocity", path=strag_file, **guided(recorded))
    close(found["velocity"], recorded["out.with_guidance"])


def test_the_velocity_without_guidance_is_that_of_the_reference(native_host, strag_file, recorded):
    found = native_host.call("networks.velocity", path=strag_file, **inputs(recorded))
    close(found["velocity"], recorded["out.without_guidance"])


def test_every_weight_of_the_file_is_in_the_model_and_open_to_lora(
    native_host, strag_file, strag_weights
):
    about = native_host.call("networks.about", path=strag_file)
    unused = {OMNIMAE_PREFIX + name for name in omnimae_training_parts()}
    table = f"{OMNIMAE_PREFIX}trunk.pos_embed"  # a buffer, not a parameter
    assert about["config"] == "STraG"
    assert set(about["dtypes"]) == set(strag_weights) - unused - {table}
    patched = set(about["patched_by_lora"])
    for name in ("patch_embedding", "feature_adapter.0", "blocks.1.self_attn.q"):
        assert f"diffusion_model.{name}.weight" in patched
    assert "diffusion_model.blocks.0.spatial_guidance_self.spatial_guide.1.weight" in patched
    assert "diffusion_model.blocks.0.spatial_guidance_ffn.gate" in patched


def test_a_file_with_the_prefix_of_checkpoints_loads_the_same(
    native_host, strag_weights, write_strag, recorded
):
    prefixed = {f"model.diffusion_model.{name}": t for name, t in strag_weights.items()}
    path = write_strag(prefixed, "prefixed")
    found = native_host.call("networks.velocity", path=path, **guided(recorded))
    close(found["velocity"], recorded["out.with_guidance"])


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("blocks.1.self_attn.q.weight", "blocks.1.self_attn.q.weight"),
        ("omnimae_extractor.trunk.norm.weight", "not its image encoder"),
        ("omnimae_extractor.trunk.blocks.1.attn.qkv.weight", "omnimae_extractor.trunk.blocks.1"),
    ],
)
def test_a_file_that_lacks_weights_is_refused(native_host, strag_weights, write_strag, lost, said):
    path = write_strag({k: v for k, v in strag_weights.items() if k != lost}, "lacking")
    with pytest.raises(Exception, match=said) as caught:
        native_host.call("networks.about", path=path)
    assert caught.value.kind == "WeightsError"


def test_64_channels_without_gates_are_not_taken_for_strag(native_host, strag_weights, write_strag):
    plain = {k: v for k, v in strag_weights.items() if "spatial_guidance" not in k}
    with pytest.raises(Exception, match="detect model type"):
        native_host.call("networks.about", path=write_strag(plain, "plain"))


# On the CPU the host computes in float32 with weights of that type. The recording has weights of
# bfloat16; float8 keeps 3 bits of 8 (measured 0.038).
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 1e-4), ("float8_e4m3fn", 0.15)])
def test_a_model_in_fewer_bits_computes_about_the_same(
    native_host, strag_file, recorded, dtype, tolerance
):
    found = native_host.call("networks.velocity", path=strag_file, dtype=dtype, **guided(recorded))
    wanted = recorded["out.with_guidance"]
    error = (found["velocity"] - wanted).abs().max() / wanted.abs().max()
    assert error < tolerance


def test_weights_that_are_brought_when_they_are_needed_compute_the_same(
    native_host, strag_file, recorded
):
    found = native_host.call(
        "networks.velocity", path=strag_file, little_memory=True, **guided(recorded)
    )
    close(found["velocity"], recorded["out.with_guidance"])


def test_weights_that_the_network_is_built_without_compute_the_same(
    native_host, strag_file, recorded
):
    found = native_host.call(
        "networks.velocity_of_lazy_weights", path=strag_file, **guided(recorded)
    )
    assert found["dtypes"] == ["torch.bfloat16"]  # of the file, cast at each use
    close(found["velocity"], recorded["out.with_guidance"])


def test_compiled_blocks_compute_the_same_with_and_without_guidance(
    native_host, strag_file, recorded
):
    found = native_host.call(
        "networks.velocity", path=strag_file, compiled=True, **guided(recorded)
    )
    close(found["velocity"], recorded["out.with_guidance"])
    found = native_host.call(
        "networks.velocity", path=strag_file, compiled=True, **inputs(recorded)
    )
    close(found["velocity"], recorded["out.without_guidance"])


@pytest.mark.parametrize("shift", [None, 5.0])
def test_the_scheduler_normal_gives_the_released_sigmas(native_host, strag_file, parity_dir, shift):
    wanted = load_file(parity_dir / "scheduler.safetensors")["sigmas50"]
    call = {"path": strag_file, "steps": 50, "shift": shift}
    found = native_host.call("networks.sigmas", scheduler="normal", **call)["sigmas"]
    close(found, wanted, 1e-6)
    for other in ("simple", "beta"):
        sigmas = native_host.call("networks.sigmas", scheduler=other, **call)["sigmas"]
        assert (sigmas - wanted).abs().max() > 1e-3


@pytest.fixture(scope="module")
def strag_lora(strag_weights, tmp_path_factory):
    """A LoRA on every Linear of the blocks, guidance included, and the weights with it merged."""
    g = torch.Generator().manual_seed(5)
    tensors, merged = {}, {k: v.float() for k, v in strag_weights.items()}
    for name, weight in strag_weights.items():
        if weight.ndim == 2 and name.startswith("blocks.") and name.endswith(".weight"):
            module = "lora_unet__" + name.removesuffix(".weight").replace(".", "_")
            down = 0.5 * torch.randn(4, weight.shape[1], generator=g)
            up = 0.5 * torch.randn(weight.shape[0], 4, generator=g)
            tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"] = down, up
            tensors[f"{module}.alpha"] = torch.tensor(2.0)
            merged[name] = merged[name] + 0.5 * up @ down
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_file(tensors, path)
    return str(path), merged


@pytest.mark.parametrize("little_memory", [False, True])
def test_a_lora_on_strag_changes_what_merging_it_would(
    native_host, strag_file, strag_lora, write_strag, recorded, little_memory
):
    lora, merged = strag_lora
    merged_file = write_strag(merged, "merged")
    wanted = native_host.call("networks.velocity", path=merged_file, **guided(recorded))
    found = native_host.call(
        "networks.velocity", path=strag_file, lora=lora, little_memory=little_memory,
        **guided(recorded),
    )  # fmt: skip
    assert (wanted["velocity"] - recorded["out.with_guidance"]).abs().max() > 0.1
    close(found["velocity"], wanted["velocity"])


def test_the_model_without_the_lora_is_as_before(native_host, strag_file, strag_lora, recorded):
    found = native_host.call(
        "networks.lora_twice", path=strag_file, lora=strag_lora[0], **guided(recorded)
    )
    close(found["without"], recorded["out.with_guidance"])
    close(found["again"], found["with"], 1e-5)


@pytest.fixture(scope="module")
def vism(parity_dir, tmp_path_factory):
    tensors = load_file(parity_dir / "vism_lora.safetensors")
    folder = tmp_path_factory.mktemp("vism")
    save_file(with_prefix(tensors, "weights."), folder / "base.safetensors")
    save_file(with_prefix(tensors, "lora."), folder / "lora.safetensors")
    context = tensors["in.context0"]
    given = {
        "x": torch.cat([tensors["in.x"], tensors["in.y"]], dim=1),
        "timestep": tensors["in.timestep"],
        "context": torch.nn.functional.pad(context, (0, 0, 0, 512 - len(context)))[None],
        "clip": tensors["in.clip_features"],
    }
    return {k: str(folder / f"{k}.safetensors") for k in ("base", "lora")}, given, tensors


def test_the_released_vism_lora_loads_in_the_hosts_own_loader(native_host, vism):
    files, given, tensors = vism
    base = native_host.call("networks.velocity", path=files["base"], **given)
    assert base["config"] == "WAN21_I2V"
    close(base["velocity"], tensors["out.base"])
    with_lora = native_host.call(
        "networks.velocity", path=files["base"], lora=files["lora"], **given
    )
    close(with_lora["velocity"], tensors["out.with_lora_multiplier_1"])


@pytest.mark.parametrize(
    ("channels", "image_tokens", "config"),
    [
        (36, True, "WAN21_I2V"),
        (48, True, "WAN21_FunControl2V"),
        (36, False, "WAN21_T2V"),
        (16, False, "WAN21_T2V"),
    ],
)
def test_other_wan_models_are_untouched(
    native_host, write_original, tmp_path, channels, image_tokens, config
):
    from diffusers import WanTransformer3DModel

    from more4d_backend.strag.sizes import WanSize

    torch.manual_seed(0)
    size = WanSize(
        in_channels=channels, num_layers=2, num_heads=1, ffn_dim=64,
        image_dim=1280 if image_tokens else None,
    )  # fmt: skip
    network = WanTransformer3DModel(**size.config()).eval()
    path = write_original(tmp_path / "wan.safetensors", WeightKind.WAN, network)
    given = {
        "x": torch.randn(2, channels, 2, 4, 6),
        "timestep": torch.tensor([700.0, 300.0]),
        "context": torch.randn(2, 512, 4096),
        "clip": torch.randn(2, 257, 1280) if image_tokens else None,
    }
    found = native_host.call("networks.velocity", path=path, **given)
    without = native_host.call("networks.velocity", path=path, registered=False, **given)
    assert found["config"] == without["config"] == config
    assert torch.equal(found["velocity"], without["velocity"])
    with torch.no_grad():
        wanted = network(
            given["x"], given["timestep"], given["context"], given["clip"], return_dict=False
        )[0]
    close(found["velocity"], wanted)


@pytest.fixture(scope="module")
def released(parity_dir):
    keys = json.loads((parity_dir / "released_keys.json").read_text())
    return {name: {k: tuple(s) for k, s in part.items()} for name, part in keys.items()}


def test_the_released_strag_has_a_place_for_every_weight(native_host, released):
    shapes = released["4D-STraG transformer (VideoX-Fun key names)"]
    found = native_host.call("networks.released_layout", shapes=shapes)
    assert found["config"] == "STraG"
    assert found["shapes"] == {name: shapes[name] for name in found["kept"]}
    unused = {OMNIMAE_PREFIX + name for name in omnimae_training_parts()}
    assert set(shapes) - set(found["kept"]) == unused & set(shapes)


def test_the_released_vism_lora_has_a_place_for_every_part(native_host, released):
    lora = released["4D-ViSM LoRA (kohya key names, rank 128, alpha 64)"]
    base = next(s for name, s in released.items() if "InP" in name and "LoRA" not in name)
    found = native_host.call("networks.released_layout", shapes=base)
    assert found["config"] == "WAN21_I2V"
    # The host takes one underscore where the released names have two.
    modules = {name.partition(".")[0].replace("lora_unet__", "lora_unet_") for name in lora}
    assert len(modules) == 488
    assert modules <= set(found["lora_names"])
