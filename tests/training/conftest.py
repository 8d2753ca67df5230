"""Checks the annotations of `training` in tests, and makes small samples and configs."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(
    "training", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)


@pytest.fixture
def make_sample() -> Callable:
    """Return a function of (seed, frames, height, width, novel) that makes a random sample."""
    from more4d_backend.geometry import intrinsics_from_focal, rigid
    from more4d_backend.scene import Cameras
    from training.data.samples import TrainingSample

    def cameras(frames: int, height: int, width: int, sideways: float) -> Cameras:
        translation = torch.zeros(frames, 3)
        translation[:, 0] = torch.linspace(0, sideways, frames)
        focal_px = torch.full((frames,), float(width))
        return Cameras(
            world_to_camera=rigid(torch.eye(3).expand(frames, 3, 3), translation),
            intrinsics=intrinsics_from_focal(focal_px, height, width),
            height=height,
            width=width,
        )

    def make(seed=0, frames=5, height=16, width=32, novel=False) -> TrainingSample:
        draw = torch.Generator().manual_seed(seed)
        motion = torch.randn(frames, height, width, 3, generator=draw).mul(0.1)
        motion[0] = 0
        shape = frames, height, width
        return TrainingSample(
            name=f"random-{seed:04d}",
            caption=f"A square moves {seed} times.",
            source=f"random seed {seed}",
            fps=8.0,
            video=torch.randint(256, (*shape, 3), generator=draw, dtype=torch.uint8),
            depth=1 + torch.rand(height, width, generator=draw),
            motion=motion.half(),
            visibility=torch.rand(shape, generator=draw) > 0.3,
            cameras=cameras(*shape, 0.0),
            novel_video=(
                torch.randint(256, (*shape, 3), generator=draw, dtype=torch.uint8)
                if novel
                else None
            ),
            novel_cameras=cameras(*shape, 0.2) if novel else None,
        )

    return make


@pytest.fixture(scope="session")
def make_synthetic_sample() -> Callable:
    """Return a function of (seed, frames, height, width, novel) that renders a small world."""
    from more4d_backend.camera_paths import PathSettings, make_path
    from more4d_backend.synthetic import make_world
    from training.data.samples import TrainingSample

    def make(seed=0, frames=5, height=32, width=48, novel=False) -> TrainingSample:
        world = make_world(seed)
        cameras = world.cameras(frames, height, width)
        tracks = world.tracks(cameras)
        positions = tracks.positions.reshape(frames, height, width, 3)
        path = None
        if novel:
            distance = float(positions[0, ..., 2].median())
            settings = PathSettings(amplitude=0.3, pivot_distance=distance)
            path = make_path("orbit-left", cameras.frames([0]), frames, settings=settings)
        view = world.view(cameras)
        return TrainingSample(
            name=f"world-{seed:04d}",
            caption=f"World {seed}.",
            source=f"make_world({seed})",
            fps=world.fps,
            video=(view.rgb * 255).round().to(torch.uint8),
            depth=positions[0, ..., 2].contiguous(),
            motion=(positions - positions[:1]).half(),
            visibility=tracks.visibility.reshape(frames, height, width),
            cameras=cameras,
            novel_video=(
                (world.view(path).rgb * 255).round().to(torch.uint8) if path is not None else None
            ),
            novel_cameras=path,
        )

    return make


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps one state per process; each test makes its own."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, PartialState

        AcceleratorState._reset_state(True)
        PartialState._reset_state()


@pytest.fixture(scope="session")
def small_data(make_synthetic_sample, tmp_path_factory) -> Path:
    """Return a folder with `train` and `validation` of worlds, 5 frames of 32x48."""
    from training.data.shards import write_shard

    folder = tmp_path_factory.mktemp("data")
    worlds = (make_synthetic_sample(seed, novel=True) for seed in range(8))
    write_shard(folder / "train" / "0.tar", worlds)
    held_out = (make_synthetic_sample(seed, novel=True) for seed in (100, 101))
    write_shard(folder / "validation" / "0.tar", held_out)
    return folder


@pytest.fixture
def small(small_data, tmp_path) -> Callable:
    """Return a function that brings a recipe to test size: `small(recipe, num_steps, **run)`."""
    from training.data.samples import SampleSize

    def make(recipe: Callable, num_steps: int, output: str = "run", **run):
        config = recipe(small_data, tmp_path / output)
        settings = {"batch_size": 2, "precision": "fp32", "tracker": "none", "ema_decay": None}
        settings |= {"validate_every": 0, "export_precision": "fp32", "checkpoint_every": 1000}
        size = SampleSize(num_frames=5, height=32, width=32)
        return replace(
            config,
            weights=replace(config.weights, from_scratch=True),
            run=replace(config.run, num_steps=num_steps, **(settings | run)),
            data=replace(config.data, size=size, num_workers=0, num_validation_samples=2),
            optimizer=replace(config.optimizer, warmup_steps=5, learning_rate=1e-3, decay="none"),
        )

    return make


@pytest.fixture
def metrics_of() -> Callable:
    """Return a function that reads a metric of a config's run, in the order of steps."""

    def read(config, name: str) -> list[float]:
        lines = (config.run.output / "metrics.jsonl").read_text().splitlines()
        values = (json.loads(line).get(name) for line in lines)
        return [value for value in values if value is not None]

    return read


@pytest.fixture
def same_tensors() -> Callable:
    """Return a function that compares two weight files to the bit (headers have no order)."""
    import torch
    from safetensors.torch import load_file

    def same(first: Path, second: Path) -> bool:
        a, b = load_file(first), load_file(second)
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    return same
