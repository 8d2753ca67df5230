"""Training split over two processes of the CPU (gloo), against one process."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from more4d_backend.weights.model_loading import load_strag
from training.checkpoints import CheckpointError, CheckpointFolder, plain
from training.export import Export
from training.gather import ShardedWeights, gather, gather_fragments
from training.loader import LoaderState
from training.recipes import strag_tiny
from training.settings import SettingsError
from training.sharding import check_launch, check_same_config, set_engine_up

SCRIPT = Path(__file__).with_name("sharded_run.py")
ROOT = SCRIPT.parents[2]

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
ENGINES = [
    "fsdp",
    pytest.param("zero2", marks=needs_deepspeed),
    pytest.param("zero3", marks=needs_deepspeed),
]


def _launch(output: Path, engine: str, num_steps: int, ranks: int = 2, **settings) -> str:
    """Train 4D-STraG as small as it gets; return what was printed. Global batch 4."""
    fixed = {
        "data.train": "procedural",
        "data.validation": "procedural",
        "data.num-validation-samples": 1,
        "data.size.num-frames": 5,
        "data.size.height": 32,
        "data.size.width": 32,
        "data.num-workers": 0,
        "data.max-samples": 8,
        "run.output": output,
        "run.num-steps": num_steps,
        "run.batch-size": 2 // ranks,
        "run.accumulation": 2,
        "run.precision": "fp32",
        "run.export-precision": "fp32",
        "run.tracker": "none",
        "run.validate-every": 0,
        "run.checkpoint-every": 2,
        "run.ema-decay": 0.5,
        "optimizer.warmup-steps": 0,
    }
    trainer, recipe = settings.pop("trainer", ("strag", "tiny"))
    chosen = fixed | {name.replace("__", "."): value for name, value in settings.items()}
    flags = [part for name, value in chosen.items() for part in (f"--{name}", str(value))]
    flags += ["--weights.from-scratch", "--run.gradient-checkpointing"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--master_port", str(29000 + os.getpid() % 2000), str(SCRIPT), engine]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, trainer, recipe, *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    if done.returncode:
        raise RuntimeError("\n".join(x for x in done.stdout.split("\n") if x.startswith("[rank")))
    return done.stdout


def _losses(output: Path) -> list[float]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    _launch(output, "none", 4, ranks=1)
    return output


@pytest.mark.parametrize("engine", ENGINES)
def test_split_over_ranks_a_training_is_the_same_and_resumes(engine, alone, tmp_path):
    """With accumulation, checkpointing, running mean and clipping; then a stop in between."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _launch(whole, engine, 4, run__validate_every=4)
    # Every rank draws its own noise, so the losses are not one rank's; their size is.
    assert _losses(whole)[0] == pytest.approx(_losses(alone)[0], rel=0.5)
    _launch(parts, engine, 2)
    _launch(parts, engine, 4)
    assert _losses(parts) == _losses(whole)
    first, second = (load_file(path / "strag.safetensors") for path in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)

    # What was written is the running mean; gathered without it, the last parameters.
    assert first.keys() == load_file(alone / "strag.safetensors").keys()
    last = gather(whole / "checkpoint-00000004", tmp_path / "last.safetensors", averaged=False)
    name = "blocks.0.self_attn.q.weight"
    assert not torch.equal(load_file(last)[name], first[name])
    load_strag(last)
    with pytest.raises(CheckpointError, match="was written by a run split over ranks"):
        _resume_whole(whole)


def _resume_whole(output: Path) -> None:
    try:
        _launch(output, "none", 6, ranks=1, **{"run.batch-size": 1})
    except RuntimeError as e:
        if "CheckpointError" in str(e):
            raise CheckpointError(str(e)) from e
        raise


@needs_deepspeed
def test_a_lora_is_trained_in_bfloat16_and_gathered_under_released_names(tmp_path):
    base, output = tmp_path / "base", tmp_path / "lora"
    _launch(base, "none", 2, ranks=1, trainer=("vism", "tiny"), **{"run.ema-decay": None})
    weights = {"weights.base": base / "vism_base.safetensors", "run.precision": "bf16"}
    _launch(output, "zero2", 2, trainer=("vism", "tiny-lora"), **weights)
    tensors = load_file(output / "vism_lora.safetensors")
    assert all(name.startswith("lora_unet__") for name in tensors)
    assert any(t.any() for name, t in tensors.items() if name.endswith("lora_up.weight"))
    from more4d_backend.vism.lora import load_lora
    from more4d_backend.weights.model_loading import load_wan_transformer

    load_lora(
        load_wan_transformer(base / "vism_base.safetensors"), output / "vism_lora.safetensors"
    )


@pytest.fixture
def fragments(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Three ranks' fragments of a motion VAE's worth of names, one with padding, one of rank 0."""
    folder = tmp_path / "run" / "checkpoint-00000002"
    folder.mkdir(parents=True)
    whole = {
        "net.a": torch.arange(10.0).view(2, 5),
        "net.b": torch.randn(4),
        "net.c": torch.ones(3),
    }
    padded = torch.cat([whole["net.a"].flatten(), torch.zeros(2)]).chunk(3)
    for rank in range(3):
        parts = {"net.a": padded[rank].clone()}
        parts |= {"net.b": whole["net.b"][2 * rank : 2 * rank + 2].clone()} if rank < 2 else {}
        parts |= {"net.c": whole["net.c"]} if rank == 0 else {}
        save_file(parts, folder / f"weights-{rank}.safetensors")
        save_file({"net.a": padded[rank] + 1}, folder / f"averaged-{rank}.safetensors")
    export = Export(kind="strag", prefix="net.", file="strag.safetensors", dtype="float32")
    ShardedWeights(
        num_ranks=3,
        engine="zero3",
        averaged=True,
        shapes={name: list(tensor.shape) for name, tensor in whole.items()},
        export=export,
    ).write(folder)
    return folder, whole


def test_fragments_are_joined_without_their_padding(fragments, monkeypatch):
    folder, whole = fragments
    written = {}
    monkeypatch.setattr(Export, "write", lambda _, tensors, path: written.update(tensors))
    gather_fragments(folder, averaged=False)
    assert all(torch.equal(written[name], tensor) for name, tensor in whole.items())
    gather_fragments(folder)
    assert torch.equal(written["net.a"], whole["net.a"] + 1)
    assert torch.equal(written["net.b"], whole["net.b"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "weights-1.safetensors").unlink(), "weights-1.safetensors is missing"),
        (lambda f: (f / "weights-1.safetensors").write_bytes(b"half"), "missing or damaged"),
        (lambda f: (f / "weights.json").unlink(), "holds no fragments"),
        (lambda f: (f / "weights.json").write_text("{"), "weights.json is damaged"),
        (
            lambda f: save_file({"net.b": torch.ones(1)}, f / "weights-1.safetensors"),
            r"fragments of net.a in .* hold 8 of 10 numbers",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_named(spoil, message, fragments):
    spoil(fragments[0])
    with pytest.raises(CheckpointError, match=message):
        gather_fragments(fragments[0], averaged=False)


def test_a_shard_that_is_missing_at_resume_is_named(fragments):
    folder, _ = fragments
    state = LoaderState(seed=1, num_samples=4, position=0)
    checkpoints = CheckpointFolder(folder.parent)
    temporary = checkpoints.begin(4)
    save_file({"a": torch.ones(1)}, temporary / "weights-0.safetensors")
    path = checkpoints.finish(4, state, {})
    (path / "weights-0.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights-0\.safetensors is missing"):
        gather(path)


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_one_process_has_nobody_to_share_with(engine, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(SettingsError, match="there is one process"):
        check_launch()
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")  # one GPU, and main memory
    check_launch()


def test_deepspeed_that_is_not_installed_has_its_pip_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(SettingsError, match="pip install deepspeed"):
        check_launch()


class _TwoRanks:
    num_processes = 2


def test_ranks_with_other_settings_are_refused(monkeypatch, small):
    import accelerate.utils

    config = plain(small(strag_tiny, 2))
    other = json.loads(json.dumps(config))
    other["optimizer"]["eps"], other["run"]["seed"] = 1.0, 7
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: [*mine, json.dumps(other)])
    with pytest.raises(SettingsError, match=r"optimizer\.eps, run\.seed"):
        check_same_config(_TwoRanks(), config)
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: mine * 2)
    check_same_config(_TwoRanks(), config)


def test_what_deepspeed_cannot_do_is_refused(small, monkeypatch):
    from training import sharding

    monkeypatch.setattr(sharding, "engine_of", lambda _: "zero2")
    config = small(strag_tiny, 2, accumulation=2)
    config = replace(config, optimizer=replace(config.optimizer, skip_above=0.2))
    with pytest.raises(SettingsError, match=r"optimizer\.skip_above is set"):
        set_engine_up(_TwoRanks(), torch.nn.Linear(1, 1), config)
