"""Shared by all tests: run-time checks of every jaxtyping annotation, and the parity folder."""

import importlib.util
import logging
import os
import signal
import subprocess
import sys

if "PYTEST_XDIST_WORKER" in os.environ:
    # One worker per core is all the parallelism there is; more threads only wait for each other.
    # Read by torch when it is imported, and by every process that a test starts.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from jaxtyping import config, install_import_hook

# No example may fail because the machine is busy.
hypothesis.settings.register_profile("more4d", deadline=None)
hypothesis.settings.load_profile("more4d")

# Before the first import of the package; in tests only, because it breaks torch.compile.
install_import_hook(
    "more4d_backend", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)


@pytest.fixture(autouse=True)
def global_state_stays(request):
    """Fail the test that changes what the whole process shares, not those that run after it."""
    before = _global_state()
    yield
    after = _global_state()
    changed = {
        name: (before.get(name), after.get(name))
        for name in before | after
        if before.get(name) != after.get(name)
    }
    assert not changed, f"{request.node.name} left behind (before, after): {changed}"


_TELL_THEMSELVES = ("TORCH", "PY", "LD_LIBRARY_PATH")


def _global_state() -> dict[str, object]:
    import torch

    state: dict[str, object] = {
        # torch and pytest tell themselves things by their variables; OpenCV adds its folder.
        **{f"${n}": v for n, v in os.environ.items() if not n.startswith(_TELL_THEMSELVES)},
        "working folder": os.getcwd(),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "log level": logging.getLogger().level,
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
    }
    for kernel in ("flash", "mem_efficient", "math", "cudnn"):
        state[f"{kernel} attention"] = getattr(torch.backends.cuda, f"{kernel}_sdp_enabled")()
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    registry = dispatch and dispatch._AttentionBackendRegistry
    state["attention of diffusers"] = registry.get_active_backend()[0] if registry else "native"
    return state


@pytest.fixture
def as_users_run_it():
    """Switch the annotation checks off, so that our own error messages are what a test sees."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder of the recorded reference outputs; skips where it is not there."""
    value = os.environ.get("MORE4D_PARITY_DIR")
    if not value:
        pytest.skip("MORE4D_PARITY_DIR is not set: no recorded reference outputs to compare with")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"MORE4D_PARITY_DIR is {value}, which is not a folder.")
    return folder


@pytest.fixture
def assert_interpreted():
    """`assert_interpreted(code)`: run Python code whose triton kernels are interpreted on the CPU.

    Triton decides that when it is imported, so it is a process of its own.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")

    def run(code: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture
def mutate():
    """`mutate(data, rng)` damages bytes in one of the ways that files get damaged or forged."""

    def change(data: bytes, rng: np.random.Generator) -> bytes:
        out = bytearray(data)
        # Headers decide the most, so half of all damage is near the beginning.
        reach = min(len(out), 400) if rng.random() < 0.5 else len(out)
        at = int(rng.integers(reach))
        kind = rng.integers(7)
        if kind == 0:
            for _ in range(int(rng.integers(1, 8))):
                out[int(rng.integers(reach))] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            extremes = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x00\x00\xc0\x7f")
            out[at : at + 8] = (extremes[rng.integers(len(extremes))] * 8)[:8]
        elif kind == 3:
            del out[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            out[at:at] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 5:
            out[at:at] = out[: int(rng.integers(1, 200))]
        else:
            digits = [i for i in range(reach) if 48 <= out[i] <= 57] or [at]
            place = digits[rng.integers(len(digits))]
            out[place : place + 1] = rng.choice([b"0", b"-1", b"9", b"99999999", b"1e9", b"nan"])
        return bytes(out)

    return change


@pytest.fixture
def little_memory():
    """Give the process 1 GiB more address space than it has, so that a memory blow-up fails."""
    resource = pytest.importorskip("resource", reason="address space is limited on Unix only")
    if not Path("/proc/self/statm").exists():
        pytest.skip("the size of the address space is read from /proc, which Linux has")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _random_cameras(frames: int, height: int, width: int, generator):
    import torch

    from more4d_backend.scene import Cameras

    rotation, _ = torch.linalg.qr(torch.randn(frames, 3, 3, generator=generator).double())
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    world_to_camera = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    world_to_camera[:, :3, :3] = rotation
    world_to_camera[:, :3, 3] = torch.randn(frames, 3, generator=generator)
    intrinsics = torch.tensor(
        [[1.1 * width, 0.0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]]
    )
    return Cameras(
        world_to_camera=world_to_camera.float(),
        intrinsics=intrinsics.repeat(frames, 1, 1),
        height=height,
        width=width,
    )


@pytest.fixture(scope="session")
def tracks_scene():
    """`tracks_scene(seed, frames, grid_hw, size)`: random tracks of very different speeds."""
    import torch

    from more4d_backend.geometry import transform_points
    from more4d_backend.scene import PointTracks, Scene4D

    def make(seed: int = 0, frames: int = 5, grid_hw=(6, 7), size: float = 1.0):
        generator = torch.Generator().manual_seed(seed)
        count = grid_hw[0] * grid_hw[1]
        first = size * 3 * torch.randn(count, 3, generator=generator)
        motion = size * torch.randn(frames, count, 3, generator=generator)
        motion *= torch.logspace(-6, 0, count)[:, None]
        motion[0] = 0
        cameras = _random_cameras(frames, 60, 70, generator)
        in_camera = transform_points(first + motion, cameras.world_to_camera[:, None])
        seen = torch.rand(frames, count, generator=generator) > 0.3
        return Scene4D(
            points=PointTracks(
                positions=first + motion,
                colors=torch.randint(0, 256, (count, 3), generator=generator) / 255,
                visibility=seen & (in_camera[..., 2] > 0),
                grid_hw=grid_hw,
            ),
            cameras=cameras,
            fps=23.976,
        )

    return make


@pytest.fixture(scope="session")
def point_maps_scene():
    """`point_maps_scene(seed, frames, size)`: random depth, NaN where it is not valid."""
    import torch

    from more4d_backend.geometry import pixel_centers, transform_points, unproject
    from more4d_backend.scene import PointMaps, Scene4D

    def make(seed: int = 0, frames: int = 3, size: float = 1.0):
        generator = torch.Generator().manual_seed(seed)
        cameras = _random_cameras(frames, 9, 11, generator)
        depth = size * torch.rand(frames, 9, 11, generator=generator).mul(5).exp()
        in_camera = unproject(pixel_centers(9, 11), depth, cameras.intrinsics[:, None, None])
        # Translation of the cameras has the size of the scene, as it has in real ones.
        world_to_camera = cameras.world_to_camera.clone()
        world_to_camera[:, :3, 3] *= size
        cameras = replace(cameras, world_to_camera=world_to_camera)
        valid = torch.rand(frames, 9, 11, generator=generator) > 0.2
        positions = transform_points(in_camera, cameras.camera_to_world[:, None, None])
        return Scene4D(
            points=PointMaps(
                positions=torch.where(valid[..., None], positions, torch.nan),
                colors=torch.rand(frames, 9, 11, 3, generator=generator),
                valid=valid,
                confidence=torch.rand(frames, 9, 11, generator=generator) * 1e6,
            ),
            cameras=cameras,
            fps=8.0,
        )

    return make


@pytest.fixture(scope="session")
def random_embedded(tmp_path_factory) -> Path:
    """Folder of all embedded files, of the true layout but with random values.

    For tests that must not depend on what was trained.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE
    from more4d_backend.strag.profile import OWN
    from more4d_backend.strag.sizes import STRAG_SIZES, VISM_SIZES
    from more4d_backend.strag.transformer import StragTransformer
    from more4d_backend.tiny.depth_network import DepthNetwork
    from more4d_backend.tiny.text_encoder import ByteTextModel
    from more4d_backend.tiny.writing import write_embedded
    from more4d_backend.vism.lora import add_lora

    folder = tmp_path_factory.mktemp("embedded")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLWan(base_dim=16)
        adapters = EncoderAdapter(32, normalize=False), DecoderAdapter(32, normalize=False)
        vism = WanTransformer3DModel(**VISM_SIZES["tiny"].config())
        networks = {
            "wan_vae": vae,
            "motion_vae": MotionVAE(vae, *adapters, OWN.latents),
            "strag": StragTransformer(**STRAG_SIZES["tiny"].config()),
            "vism": vism,
            "depth": DepthNetwork(),
            "text_encoder": ByteTextModel(),
        }
        for name, parameter in networks["strag"].named_parameters():
            if name.endswith(".gate"):  # almost zero in a new network: guidance would not be seen
                torch.nn.init.normal_(parameter, std=4.0)
        for name, network in networks.items():
            write_embedded(name, network, folder=folder)
        add_lora(vism, rank=16, alpha=16.0)
        for name, parameter in vism.named_parameters():
            if "lora_B" in name:  # zero in a new LoRA
                torch.nn.init.normal_(parameter, std=0.1)
        write_embedded("vism_lora", vism, folder=folder)
    return folder
