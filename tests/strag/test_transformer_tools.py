"""The 4D-STraG transformer as diffusers' tools meet it: offloaded, cast, cached, compiled."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FirstBlockCacheConfig


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_offloading_by_groups_changes_no_number(toy, level):
    model = toy.make_transformer()
    image = torch.rand(1, 3, 32, 32)
    wanted = toy.velocity(model)
    features = model.encode_image(image, (toy.height, toy.width)).detach()
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1 if level == "block_level" else None,
    )
    assert torch.equal(toy.velocity(model), wanted)
    assert torch.equal(model.encode_image(image, (toy.height, toy.width)), features)


def test_weights_in_8_bits_stay_near_and_cover_the_guidance(toy):
    model = toy.make_transformer()
    wanted = toy.velocity(model)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    small = {n for n, p in model.named_parameters() if p.dtype == torch.float8_e4m3fn}
    assert "blocks.0.attn1.to_q.weight" in small
    assert "blocks.0.spatial_guidance_ffn.spatial_guide.1.weight" in small
    assert not any(n.startswith(("omnimae", "feature_adapter", "ref_conv")) for n in small)
    # Measured 0.05 at values up to 1.6.
    torch.testing.assert_close(toy.velocity(model), wanted, atol=0.15, rtol=0)
    assert model.encode_image(torch.rand(1, 3, 32, 32), (toy.height, toy.width)).isfinite().all()


def test_the_first_block_cache_skips_the_other_blocks_when_the_first_one_says_the_same(toy):
    model = toy.make_transformer()
    wanted = toy.velocity(model)
    ran = []
    model.blocks[-1].attn1.register_forward_hook(lambda *_: ran.append(1))
    model.enable_cache(FirstBlockCacheConfig(threshold=0.01))
    with model.cache_context("cond"):
        for _ in range(3):
            torch.testing.assert_close(toy.velocity(model), wanted, atol=1e-5, rtol=0)
        assert len(ran) == 1
        toy.velocity(model, seed=1)
    assert len(ran) == 2


def test_joined_projections_change_no_number_but_by_rounding(toy):
    model = toy.make_transformer()
    wanted = toy.velocity(model)
    model.fuse_qkv_projections()
    assert model.blocks[0].attn1.fused_projections
    torch.testing.assert_close(toy.velocity(model), wanted, atol=1e-5, rtol=0)


def test_a_lora_finds_the_modules_by_their_usual_names(toy):
    from peft import LoraConfig

    model = toy.make_transformer()
    wanted = toy.velocity(model)
    targets = ["to_q", "net.2", "spatial_guide.1"]
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    assert (toy.velocity(model) - wanted).abs().max() > 1e-4
    model.disable_adapters()
    torch.testing.assert_close(toy.velocity(model), wanted)


COMPILED = """
import runpy, torch
from torch._dynamo.utils import counters
toy = runpy.run_path({path!r})
model = toy["make_transformer"]()
cases = [(seed, seed < 2) for seed in range(4)]
wanted = [toy["velocity"](model, *case) for case in cases]
# Capture is what can fail; aot_eager spares the minutes of code generation.
model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
for case, eager in zip(cases, wanted):
    torch.testing.assert_close(toy["velocity"](model, *case), eager, atol=1e-5, rtol=0)
print(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
"""


def test_compiled_blocks_share_one_graph_without_breaks_and_see_each_calls_guidance():
    # In a process of its own: the annotation checks of the other tests would break compilation.
    code = COMPILED.format(path=str(Path(__file__).with_name("conftest.py")))
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]
    # One graph with guidance and one without, for all blocks.
    assert told.stdout.split() == ["2", "0"]
