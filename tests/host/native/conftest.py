"""A ComfyUI host in a process of its own, for tests that need none of its server.

The variables in `benchmarks/comfy_host.py` say which; every test runs on each host they name.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.comfy_host import ROOT, installations

HERE = Path(__file__).parent
PACK = Path(os.environ.get("MORE4D_PACK", ROOT))


class HostError(Exception):
    """What was raised inside the host."""

    def __init__(self, kind, message):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Host:
    """Calls functions of the modules in `inside`, in the host's own Python."""

    def __init__(self, installation, scratch):
        self.name, self.scratch = installation.folder.name, scratch
        environment = os.environ | {"PYTHONPATH": installation.pins}
        self.log = (scratch / "host.log").open("w")
        python, folder = str(installation.python), str(installation.folder)
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), folder, str(PACK), str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            cwd=scratch,
        )
        self._reply()

    def call(self, function, **inputs):
        """Call `module.function` with tensors, numbers, strings and containers of them."""
        path = self.scratch / "call.pt"
        torch.save(inputs, path)
        request = json.dumps({"call": function, "inputs": str(path)})
        print(request, file=self.process.stdin, flush=True)
        reply = self._reply()
        if "error" in reply:
            raise HostError(reply["error"], reply["message"])
        return torch.load(reply["outputs"], weights_only=True)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.log.close()

    def _reply(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.flush()
            tail = (self.scratch / "host.log").read_text()[-3000:]
            raise RuntimeError(f"The host {self.name} died:\n{tail}")
        return json.loads(line)


def _hosts():
    return [pytest.param(found, id=found.folder.name) for found in installations()] or [
        pytest.param(None, id="no-host")
    ]


@pytest.fixture(scope="session", params=_hosts())
def native_host(request, tmp_path_factory):
    """One host after the other, each with the pack's models registered."""
    if request.param is None:
        pytest.skip("no ComfyUI: COMFYUI_PATH names none, and there is none in ~/comfy")
    host = Host(request.param, tmp_path_factory.mktemp("host"))
    yield host
    host.close()


TOY = {"text_tokens": 512, "text_dim": 4096, "image_dim": 1280}


@pytest.fixture(scope="session")
def toy_networks():
    """`toy_networks(image_tokens)`: small random networks of the layout that the host detects."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE
    from more4d_backend.strag.profile import OWN
    from more4d_backend.strag.sizes import PerceptionSize, StragSize, WanSize
    from more4d_backend.strag.transformer import StragTransformer

    def make(image_tokens: bool):
        torch.manual_seed(0)
        image_dim = TOY["image_dim"] if image_tokens else None
        wan = WanSize(in_channels=64, num_layers=2, num_heads=1, ffn_dim=96, image_dim=image_dim)
        perception = PerceptionSize(dim=64, depth=2, num_heads=2, feature_dim=32)
        strag = StragTransformer(**StragSize(wan=wan, perception=perception).config())
        for name, parameter in strag.named_parameters():
            if name.endswith(".gate"):
                torch.nn.init.normal_(parameter, std=4.0)
        inner, rgb = AutoencoderKLWan(base_dim=8), AutoencoderKLWan(base_dim=8)
        adapters = EncoderAdapter(8), DecoderAdapter(8)
        return {
            "strag": strag.eval(),
            "wan-vae": rgb.eval(),
            "motion-vae": MotionVAE(inner, *adapters, OWN.latents).eval(),
            "fun-inp": WanTransformer3DModel(**replace(wan, in_channels=36).config()).eval(),
        }

    return make


@pytest.fixture(scope="session")
def write_original():
    """`write_original(path, kind, module)`: a file under original names, as users have it."""
    from safetensors.torch import save_file

    from more4d_backend.weights.conversion import to_original
    from more4d_backend.weights.files import stored

    def write(path, kind, module, metadata=None):
        tensors = to_original(kind, stored(module.state_dict()))
        values = {name: t.read().detach().clone().contiguous() for name, t in tensors.items()}
        save_file(values, path, metadata=metadata)
        return str(path)

    return write
