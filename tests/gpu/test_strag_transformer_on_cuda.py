"""The 4D-STraG transformer on CUDA: what the CPU computes, compiled, offloaded and in bf16."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from more4d_backend.strag.motion_perception import Guidance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("full_precision"),
]

TOY = Path(__file__).parents[1] / "strag" / "conftest.py"


@pytest.fixture(scope="module")
def toy():
    return runpy.run_path(str(TOY))


def on_cuda(inputs, dtype=torch.float32):
    return {
        name: value.to("cuda") if name == "timestep" else value.to("cuda", dtype)
        for name, value in inputs.items()
        if value is not None
    }


@torch.no_grad()
def test_it_computes_what_the_cpu_computes(toy):
    model = toy["make_transformer"]()
    wanted = model(**toy["make_inputs"]()).sample
    result = model.cuda()(**on_cuda(toy["make_inputs"]())).sample
    torch.testing.assert_close(result.cpu(), wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_in_bf16_it_stays_near(toy):
    model = toy["make_transformer"]()
    wanted = model(**toy["make_inputs"]()).sample
    result = model.to("cuda", torch.bfloat16)(**on_cuda(toy["make_inputs"](), torch.bfloat16))
    torch.testing.assert_close(result.sample.float().cpu(), wanted, atol=0.1, rtol=0)


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@torch.no_grad()
def test_streamed_blocks_change_no_number_and_the_image_is_still_encoded(toy, level):
    model = toy["make_transformer"]()
    image = torch.rand(1, 3, 32, 32, device="cuda")
    size = toy["HEIGHT"], toy["WIDTH"]
    features = model.cuda().encode_image(image, size)
    inputs = on_cuda(toy["make_inputs"](guided=False) | {"guidance": guidance(features)})
    wanted = model(**inputs).sample
    model.cpu().enable_group_offload(
        onload_device=torch.device("cuda"),
        offload_device=torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1 if level == "block_level" else None,
        use_stream=True,
    )
    # Features made while the weights are on the CPU differ by rounding.
    streamed = model.encode_image(image, size)
    assert streamed.device == image.device
    torch.testing.assert_close(streamed, features, atol=1e-4, rtol=0)
    for _ in range(3):
        torch.testing.assert_close(model(**inputs).sample, wanted, atol=1e-5, rtol=0)


def guidance(features):
    return Guidance(features=features, unguided_frame=-1)


COMPILED = """
import runpy, torch
from torch._dynamo.utils import counters
test = runpy.run_path({path!r})
model = test["make_transformer"]().cuda()
def inputs(seed):
    made = test["make_inputs"](seed, guided=seed < 2)
    return {{name: None if v is None else v.to("cuda") for name, v in made.items()}}
with torch.no_grad():
    wanted = [model(**inputs(seed)).sample for seed in range(4)]
    model.compile_repeated_blocks(fullgraph=True)
    for seed in range(4):
        torch.testing.assert_close(model(**inputs(seed)).sample, wanted[seed], atol=1e-4, rtol=0)
print(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
"""


def test_compiled_blocks_share_two_graphs_and_compute_the_same():
    code = COMPILED.format(path=str(TOY))
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]
    assert told.stdout.split() == ["2", "0"]


def test_a_transformer_that_is_loaded_to_the_device_is_there_as_a_whole(tmp_path):
    from safetensors.torch import save_file

    from more4d_backend.strag.transformer import StragTransformer
    from more4d_backend.weights.conversion import to_original
    from more4d_backend.weights.files import stored
    from more4d_backend.weights.kinds import WeightKind
    from more4d_backend.weights.model_loading import load_strag

    module = StragTransformer(
        num_layers=1, num_attention_heads=1, ffn_dim=16, text_dim=32, freq_dim=16, image_dim=None,
        added_kv_proj_dim=None, perception_dim=128, perception_depth=1, perception_heads=4,
        feature_dim=8,
    )  # fmt: skip
    tensors = to_original(WeightKind.STRAG, stored(module.state_dict()))
    save_file(
        {name: t.read().contiguous() for name, t in tensors.items()}, tmp_path / "s.safetensors"
    )
    loaded = load_strag(tmp_path / "s.safetensors", device="cuda")
    held = [*loaded.parameters(), *loaded.buffers()]
    assert all(tensor.is_cuda for tensor in held)
