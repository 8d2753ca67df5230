"""Training split over two processes of the CPU (gloo), against one process."""

import importlib.metadata
import importlib.util
import json
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from benchmarks.sharded_training import interrupted, losses, start
from more4d_backend.strag.sizes import VISM_SIZES
from more4d_backend.vism.lora import load_lora
from more4d_backend.weights.model_loading import load_strag
from training.data.loader import LoaderState
from training.gather import ShardedWeights, gather, gather_fragments
from training.recipes import strag_tiny
from training.run.checkpoints import CheckpointError, CheckpointFolder, plain
from training.run.export import Export
from training.run.objectives import Objective
from training.run.settings import SettingsError
from training.run.sharding import (
    check_launch,
    check_same_config,
    new_accelerator,
    set_engine_up,
)
from training.run.state import RunState

SCRIPT = Path(__file__).with_name("sharded_run.py")

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
ENGINES = [
    "fsdp",
    pytest.param("zero2", marks=needs_deepspeed),
    pytest.param("zero3", marks=needs_deepspeed),
]


TINY = "--size tiny --num-frames 5 --size-hw 32 32 --num-steps 7 --stop-at 6 --learning-rate 1e-3"
"""4D-STraG as small as it gets, in bfloat16 with blocks that compute twice."""


def _torchrun(engine: str, trainer: str, recipe: tuple[str, ...] = ()) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    return [*command, "--master_port", port, str(SCRIPT), engine, trainer, *recipe]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[float]:
    """Losses of one process, two samples at a time."""
    output = tmp_path_factory.mktemp("alone")
    launch = [sys.executable, str(SCRIPT), "none", "drawn"]
    arguments = [*TINY.split(), "--accumulation", "2", "--batch-size", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as torchrun does for the ranks
        start(launch, arguments, output).wait_or_fail()
    return losses(output)


OFFLOADING = [
    pytest.param("zero2_offload", marks=needs_deepspeed),
    pytest.param("zero3_offload", marks=needs_deepspeed),
]


@pytest.mark.parametrize("engine", [*ENGINES, *OFFLOADING])
def test_split_over_ranks_a_curve_is_that_of_one_process_also_after_a_kill(engine, alone, tmp_path):
    arguments = [*TINY.split(), "--accumulation", "2", "--ema-decay", "0.5"]
    launch = partial(_torchrun, engine, "drawn")
    curve = interrupted(engine, launch, arguments, tmp_path, alone, 2)
    assert len(curve.split) == len(alone) == 6
    assert alone[-1] < 0.95 * alone[0]
    assert curve.difference < 2e-3  # 4e-4 measured: bfloat16 sums in another order
    assert len(curve.before_kill) > 3  # the checkpoint's step
    assert curve.resumed_difference == 0

    # Gathered, the running mean is something else than the last parameters; both load strictly.
    checkpoint = tmp_path / "checkpoint-00000003"
    mean = gather(checkpoint, tmp_path / "mean.safetensors")
    last = gather(checkpoint, tmp_path / "last.safetensors", averaged=False)
    of_mean, of_last = (load_strag(path).state_dict() for path in (mean, last))
    assert of_mean.keys() == of_last.keys()
    name = "blocks.0.attn1.to_q.weight"
    assert not torch.equal(of_mean[name], of_last[name])
    assert (of_mean[name] - of_last[name]).norm() < 0.2 * of_last[name].norm()


@pytest.mark.parametrize("engine", ENGINES)
def test_split_over_ranks_a_trainer_validates_and_writes_its_weights(engine, tmp_path):
    settings = {
        "data.train": "procedural",
        "data.validation": "procedural",
        "data.num-validation-samples": 1,
        "data.size.num-frames": 5,
        "data.size.height": 32,
        "data.size.width": 32,
        "data.num-workers": 0,
        "run.num-steps": 1,
        "run.batch-size": 1,
        "run.tracker": "none",
        "run.validate-every": 1,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    flags += ["--weights.from-scratch", "--run.output", str(tmp_path)]
    start(_torchrun(engine, "vism", ("tiny-lora",)), flags, None).wait_or_fail()
    metrics = (tmp_path / "metrics.jsonl").read_text()
    assert "known_psnr_db" in metrics
    tensors = load_file(tmp_path / "vism_lora.safetensors")
    assert all(name.startswith("lora_unet__") for name in tensors)
    assert any(t.any() for name, t in tensors.items() if name.endswith("lora_up.weight"))
    base = WanTransformer3DModel(**VISM_SIZES["tiny"].config())
    load_lora(base, tmp_path / "vism_lora.safetensors")


def test_a_network_may_be_split_before_it_has_values(tmp_path):
    weights = tmp_path / "weights"
    arguments = [*TINY.split(), "--random-shards", "--weights", str(weights), "--stop-at", "1"]
    start(_torchrun("fsdp", "drawn"), arguments, tmp_path).wait_or_fail()
    values = load_strag(gather_fragments(weights)).state_dict()
    spread = values["blocks.0.attn1.to_q.weight"].float().std()
    assert spread == pytest.approx(0.02, rel=0.05)


def test_what_was_split_is_not_resumed_whole(fragments, tmp_path):
    state = RunState(
        accelerator=Accelerator(cpu=True),
        engine=None,
        module=torch.nn.Linear(1, 1),
        optimizer=None,
        names=[],
        average=None,
        exports=(),
    )
    with pytest.raises(CheckpointError, match="was written by a run split over ranks"):
        state.load(fragments[0])


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
        exports=[export],
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


def test_what_a_trainer_writes_besides_lies_beside_the_first_file(fragments, tmp_path, monkeypatch):
    folder, _ = fragments
    about = ShardedWeights.read(folder)
    second = replace(about.exports[0], prefix="text.", file="text.safetensors")
    replace(about, exports=[*about.exports, second]).write(folder)
    written = []
    monkeypatch.setattr(Export, "write", lambda self, _, path: written.append((self.prefix, path)))
    path = gather_fragments(folder, tmp_path / "mine.safetensors")
    assert written == [("net.", path), ("text.", tmp_path / "text.safetensors")]


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


def test_the_first_version_of_fsdp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="fsdp_version: 2"):
        check_launch()


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_one_process_has_nobody_to_share_with(engine, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
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
    with pytest.raises(SettingsError, match=r"pip install \"deepspeed>=0\.19\""):
        check_launch()


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_under_fsdp_no_rank_keeps_whole_gradients_from_batch_to_batch(engine, monkeypatch, small):
    import accelerate

    told = {}
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    monkeypatch.setattr(accelerate, "Accelerator", lambda **settings: told.update(settings))
    new_accelerator(small(strag_tiny, 2, accumulation=3).run)
    plugin = told["gradient_accumulation_plugin"]
    assert plugin.num_steps == 3
    assert plugin.sync_each_batch == (engine == "FSDP")


@pytest.mark.parametrize(("package", "version"), [("accelerate", "1.6.0"), ("torch", "2.5.1+cpu")])
def test_what_is_too_old_for_fsdp2_has_its_pip_line(package, version, monkeypatch):
    there = importlib.metadata.version
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version if name == package else there(name)
    )
    with pytest.raises(SettingsError, match=rf"pip install \"{package}>=\d\.\d\""):
        check_launch()


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_kept_in_main_memory_is_seen(engine, keeps, monkeypatch):
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

    from training.run import sharding

    if engine == "fsdp":
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_offload=keeps)
    else:
        place = "cpu" if keeps else "none"
        plugin = DeepSpeedPlugin(zero_stage=int(engine[-1]), offload_optimizer_device=place)
    state = SimpleNamespace(fsdp_plugin=plugin, deepspeed_plugin=plugin)
    monkeypatch.setattr(sharding, "engine_of", lambda _: engine)
    assert bool(sharding.offloaded(SimpleNamespace(state=state))) == keeps


class _TwoRanks:
    num_processes = 2
    is_main_process = True

    def __init__(self):
        plugin = SimpleNamespace(zero_stage=2, deepspeed_config={"zero_optimization": {}})
        self.state = SimpleNamespace(deepspeed_plugin=plugin)


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
    from training.run import sharding

    monkeypatch.setattr(sharding, "engine_of", lambda _: "zero2")
    config = small(strag_tiny, 2, accumulation=2)
    config = replace(config, optimizer=replace(config.optimizer, skip_above=0.2))
    with pytest.raises(SettingsError, match=r"optimizer\.skip_above is set"):
        set_engine_up(_TwoRanks(), _objective(), config)


def test_compiled_blocks_are_refused_where_layers_are_gathered_one_by_one(small, monkeypatch):
    from training.run import sharding

    monkeypatch.setattr(sharding, "engine_of", lambda _: "zero3")
    ranks = _TwoRanks()
    ranks.state.deepspeed_plugin.zero_stage = 3
    with pytest.raises(SettingsError, match=r"run\.compile_blocks is set"):
        set_engine_up(ranks, _objective(), small(strag_tiny, 2, compile_blocks=True))


def test_a_trainer_without_an_objective_is_not_split(small):
    with pytest.raises(SettingsError, match="Launch it without FSDP and DeepSpeed"):
        set_engine_up(_TwoRanks(), torch.nn.Linear(1, 1), small(strag_tiny, 2))


def _objective() -> Objective:
    return Objective(Export(kind="strag", prefix="net.", file="a.safetensors", dtype="float32"))
