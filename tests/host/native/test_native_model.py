"""4D-STraG in the host: found, loaded whole, and computing what the headless network does."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.parity, pytest.mark.host]


@pytest.fixture(scope="module")
def recorded(parity_dir):
    return load_file(parity_dir / "strag_transformer.safetensors")


@pytest.fixture(scope="module")
def strag_file(recorded, tmp_path_factory):
    path = tmp_path_factory.mktemp("strag") / "strag.safetensors"
    weights = {k.removeprefix("weights."): v for k, v in recorded.items() if "weights." in k}
    # A width of 96 would be taken to have 3 heads; the recording has 4.
    save_file(weights, path, metadata=of_transformer(perception_heads=4))
    return str(path)


def of_transformer(**sizes):
    return {"config": json.dumps({"transformer": sizes})}


def inputs(recorded):
    contexts = [recorded["in.context0"], recorded["in.context1"]]
    return {
        "x": torch.cat([recorded["in.x"], recorded["in.y"]], dim=1),
        "timestep": recorded["in.timestep"],
        "context": torch.stack([torch.cat([c, c.new_zeros(512 - len(c), 4096)]) for c in contexts]),
        "clip": recorded["in.clip_features"],
        "reference": recorded["in.reference_latent"],
    }


def test_the_velocity_with_guidance_is_that_of_the_reference(native_host, strag_file, recorded):
    gates = [v for k, v in recorded.items() if k.endswith(".gate")]
    assert min(float(gate.abs().max()) for gate in gates) > 0.01
    found = native_host.call(
        "networks.velocity",
        path=strag_file,
        image=recorded["in.first_frame_01"],
        **inputs(recorded),
    )
    wanted = recorded["out.with_guidance"]
    torch.testing.assert_close(found["velocity"], wanted, atol=1e-4, rtol=0)


def test_the_velocity_without_guidance_is_that_of_the_reference(native_host, strag_file, recorded):
    found = native_host.call("networks.velocity", path=strag_file, **inputs(recorded))
    wanted = recorded["out.without_guidance"]
    torch.testing.assert_close(found["velocity"], wanted, atol=1e-4, rtol=0)
