import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.data.shards import write_shard
from training.run.checkpoints import CheckpointError, read_about
from training.run.errors import NotFiniteError, TrainingMemoryError, memory_advice
from training.run.settings import RunSettings, SettingsError

HERE = Path(__file__).parent


@pytest.fixture
def stand_in():
    sys.path.insert(0, str(HERE))
    import stand_in_run

    yield stand_in_run
    sys.path.remove(str(HERE))


@pytest.fixture
def data(make_sample, tmp_path) -> Path:
    write_shard(tmp_path / "data" / "a.tar", [make_sample(seed) for seed in range(7)])
    return tmp_path / "data"


def _metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _curve(output: Path) -> list[tuple[int, float, float]]:
    return [(m["step"], m["loss"], m["gradient_norm"]) for m in _metrics(output)]


def _weights(output: Path, step: int) -> bytes:
    return (output / f"checkpoint-{step:08d}" / "trainable.safetensors").read_bytes()


def test_a_run_learns_and_leaves_checkpoints_metrics_and_its_config(stand_in, data, tmp_path):
    run = stand_in.train(stand_in.config(data, tmp_path / "run", 40))
    losses = [m["loss"] for m in _metrics(tmp_path / "run")]
    assert len(losses) == 40
    assert sum(losses[-7:]) < 0.5 * sum(losses[:7])
    assert run.checkpoints.steps() == [39, 40]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["optimizer"]["learning_rate"] == 1e-2
    first = _metrics(tmp_path / "run")[0]
    assert {"loss", "learning_rate", "gradient_norm", "step_s", "data_wait_s"} <= first.keys()


def test_the_settings_reach_the_optimizer(stand_in, data, tmp_path):
    run = stand_in.train(stand_in.config(data, tmp_path / "run", 6))
    rates = [m["learning_rate"] for m in _metrics(tmp_path / "run")]
    assert rates == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2])
    by_scale = {g["scale"]: g["lr"] for g in run.optimizer.param_groups}
    assert by_scale == {1.0: 1e-2, 0.5: 5e-3}
    assert "frozen" not in run.trained


@pytest.mark.parametrize("settings", [{}, {"accumulation": 3}, {"ema_decay": 0.9}])
def test_a_resumed_run_has_the_same_curve_and_weights_to_the_last_bit(
    settings, stand_in, data, tmp_path
):
    stand_in.train(stand_in.config(data, tmp_path / "whole", 12, **settings))
    stand_in.train(stand_in.config(data, tmp_path / "parts", 5, **settings))
    stand_in.train(stand_in.config(data, tmp_path / "parts", 12, **settings))
    assert _curve(tmp_path / "parts") == _curve(tmp_path / "whole")
    assert _weights(tmp_path / "parts", 12) == _weights(tmp_path / "whole", 12)
    if "ema_decay" in settings:
        averaged = "checkpoint-00000012/averaged.safetensors"
        parts = (tmp_path / "parts" / averaged).read_bytes()
        assert parts == (tmp_path / "whole" / averaged).read_bytes()
        assert parts != _weights(tmp_path / "whole", 12)


def test_accumulated_batches_count_as_one_update(stand_in, data, tmp_path):
    run = stand_in.train(stand_in.config(data, tmp_path / "run", 4, accumulation=3))
    assert len(_metrics(tmp_path / "run")) == 4
    assert run.loader.state.position == 4 * 3 * 2


def _start(data: Path, output: Path, num_steps: int, sleep_s: float) -> subprocess.Popen:
    root = str(HERE.parents[2])
    command = [sys.executable, str(HERE / "stand_in_run.py"), str(data), str(output)]
    return subprocess.Popen(
        [*command, str(num_steps), str(sleep_s)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _wait_for_steps(process: subprocess.Popen, output: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = output / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= steps:
            return
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.02)
    raise AssertionError("the run did not start")


def test_a_killed_run_goes_on_as_if_it_had_never_stopped(data, tmp_path):
    assert _start(data, tmp_path / "whole", 14, 0.0).wait() == 0
    process = _start(data, tmp_path / "killed", 14, 0.2)
    _wait_for_steps(process, tmp_path / "killed", 8)
    process.kill()
    process.wait()
    done = len(_metrics(tmp_path / "killed"))
    assert 8 <= done < 14
    assert _start(data, tmp_path / "killed", 14, 0.0).wait() == 0
    assert _curve(tmp_path / "killed") == _curve(tmp_path / "whole")
    assert _weights(tmp_path / "killed", 14) == _weights(tmp_path / "whole", 14)


@pytest.mark.skipif(os.name != "posix", reason="Windows ends a process on SIGTERM at once")
def test_a_run_that_is_told_to_stop_writes_a_checkpoint_first(data, tmp_path):
    process = _start(data, tmp_path / "run", 1000, 0.2)
    _wait_for_steps(process, tmp_path / "run", 4)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    steps = len(_metrics(tmp_path / "run"))
    assert read_about(tmp_path / "run" / f"checkpoint-{steps:08d}").step == steps


def test_nan_stops_the_run_with_the_samples_name_and_changes_nothing(stand_in, data, tmp_path):
    from training.data.loader import SampleOrder

    bad = f"random-{SampleOrder(7, 42)[9]:04d}"  # the second sample of the fifth batch

    class Spoiled(stand_in.Objective):
        calls = 0

        def forward(self, *tensors):
            Spoiled.calls += 1
            losses = super().forward(*tensors)
            return losses * torch.tensor([1.0, float("nan")]) if Spoiled.calls == 5 else losses

    objective = Spoiled()
    with pytest.raises(NotFiniteError, match=f"of sample {bad} is not finite .* after step 4"):
        stand_in.train(stand_in.config(data, tmp_path / "run", 9), objective=objective)
    assert all(p.isfinite().all() for p in objective.parameters())
    assert len(_metrics(tmp_path / "run")) == 4


def test_a_gradient_that_is_not_finite_stops_the_run(stand_in, data, tmp_path):
    class Spoiled(stand_in.Objective):
        def forward(self, *tensors):
            # Finite, but its gradient is 0 / 0.
            return super().forward(*tensors) + (self.last.bias * 0).abs().sqrt()

    with pytest.raises(NotFiniteError, match="gradient of the update after step 0 is not finite"):
        stand_in.train(stand_in.config(data, tmp_path / "run", 9), objective=Spoiled())


def test_an_update_with_a_large_loss_is_left_out_where_the_recipe_says_so(stand_in, data, tmp_path):
    from dataclasses import replace

    config = stand_in.config(data, tmp_path / "run", 3)
    optimizer = replace(config.optimizer, skip_above=0.0, skip_after_step=1)
    objective = stand_in.Objective()
    at_step: list[torch.Tensor] = []
    stand_in.train(
        replace(config, optimizer=optimizer),
        each=lambda run: at_step.append(objective.layer.weight.detach().clone()),
        objective=objective,
    )
    assert not torch.equal(at_step[0], at_step[1])
    assert torch.equal(at_step[1], at_step[2])
    assert "gradient_norm" not in _metrics(tmp_path / "run")[2]


def test_rounded_parameters_are_refused(stand_in, data, tmp_path):
    with pytest.raises(SettingsError, match="4 of 4 trained parameters are not float32"):
        stand_in.train(
            stand_in.config(data, tmp_path / "run", 3), objective=stand_in.Objective().bfloat16()
        )


def test_another_recipe_is_refused_with_the_difference(stand_in, data, tmp_path):
    stand_in.train(stand_in.config(data, tmp_path / "run", 3))
    with pytest.raises(CheckpointError, match=r"run\.batch_size: 2 in the checkpoint, 1 here"):
        stand_in.train(stand_in.config(data, tmp_path / "run", 6, batch_size=1))


def test_a_half_written_checkpoint_is_refused(stand_in, data, tmp_path):
    stand_in.train(stand_in.config(data, tmp_path / "run", 3))
    os.truncate(tmp_path / "run" / "checkpoint-00000003" / "optimizer.pt", 10)
    with pytest.raises(CheckpointError, match=r"half-written: optimizer\.pt has 10 of"):
        stand_in.train(stand_in.config(data, tmp_path / "run", 6))


def test_resuming_can_be_forbidden_and_a_checkpoint_named(stand_in, data, tmp_path):
    stand_in.train(stand_in.config(data, tmp_path / "run", 6))
    with pytest.raises(SettingsError, match=r"already holds checkpoint-00000006 .* 'never'"):
        stand_in.train(stand_in.config(data, tmp_path / "run", 9, resume="never"))
    third = str(tmp_path / "run" / "checkpoint-00000003")
    stand_in.train(stand_in.config(data, tmp_path / "other", 6, resume=third))
    assert _weights(tmp_path / "other", 6) == _weights(tmp_path / "run", 6)


def test_the_running_mean_is_used_inside_and_gone_after(stand_in, data, tmp_path):
    run = stand_in.train(stand_in.config(data, tmp_path / "run", 6, ema_decay=0.9))
    before = {name: p.detach().clone() for name, p in run.trained.items()}
    with run.averaged():
        assert not torch.equal(run.trained["layer.weight"], before["layer.weight"])
    assert all(torch.equal(p, before[name]) for name, p in run.trained.items())


def test_draws_depend_on_seed_place_and_rank_alone(stand_in, data, tmp_path):
    drawn = {}

    def remember(run):
        common = torch.rand(1, generator=run.generator(same_on_all_ranks=True))
        drawn.setdefault(run.step, (torch.rand(1, generator=run.generator()), common))

    stand_in.train(stand_in.config(data, tmp_path / "run", 6), each=remember)
    own, common = (torch.cat(values) for values in zip(*drawn.values(), strict=True))
    assert len(own.unique()) == 6
    assert not (own == common).any()


def test_no_memory_says_what_to_change(stand_in, data, tmp_path):
    class TooLarge(stand_in.Objective):
        def forward(self, *tensors):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    config = stand_in.config(data, tmp_path / "run", 3, gradient_checkpointing=False)
    with pytest.raises(TrainingMemoryError) as raised:
        stand_in.train(config, objective=TooLarge())
    message = str(raised.value)
    assert "run.batch_size from 2 to 1 and raise run.accumulation from 1 to 2" in message
    assert "run.gradient_checkpointing on" in message
    assert "training/launch/fsdp.yaml" in message


def test_advice_names_only_what_is_left_to_change():
    settings = RunSettings(output=Path("x"), num_steps=1, batch_size=1)
    advice = memory_advice(settings, sharded=True)
    assert "data.size" in advice
    assert "_offload.yaml" in advice
    assert "_offload.yaml" not in memory_advice(settings, sharded=True, offloads=True)
    for word in ("batch_size", "checkpointing", "kept", "fsdp.yaml", "ema_decay", "precision"):
        assert word not in advice
    kept = replace(settings, kept_blocks=0.3)
    assert "lower run.kept_blocks from 0.3" in memory_advice(kept, sharded=True)


@pytest.mark.parametrize(
    ("batch", "accumulation", "said"),
    [(2, 1, "from 2 to 1 and raise run.accumulation from 1 to 2"),
     (3, 2, "from 3 to 1 and raise run.accumulation from 2 to 6"),
     (9, 1, "from 9 to 3 and raise run.accumulation from 1 to 3")],
)  # fmt: skip
def test_a_smaller_batch_that_is_advised_keeps_the_batch_of_an_update(batch, accumulation, said):
    settings = RunSettings(
        output=Path("x"), num_steps=1, batch_size=batch, accumulation=accumulation
    )
    assert said in memory_advice(settings, sharded=False)


def _no_memory(*_, **__):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_no_memory_is_explained_while_a_run_is_prepared_and_while_it_validates(
    stand_in, data, tmp_path, monkeypatch
):
    from accelerate import Accelerator

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "prepare", _no_memory)
        with pytest.raises(TrainingMemoryError, match=r"fsdp\.yaml"):
            stand_in.train(stand_in.config(data, tmp_path / "prepared", 1))

    def validate(run):
        with run.evaluating():
            _no_memory()

    with pytest.raises(TrainingMemoryError, match=r"fsdp\.yaml"):
        stand_in.train(stand_in.config(data, tmp_path / "validated", 1), each=validate)


def test_a_tracker_that_is_not_installed_is_refused(stand_in, data, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="'wandb', which is not installed: pip install wandb"):
        stand_in.train(stand_in.config(data, tmp_path / "run", 3, tracker="wandb"))


def test_tensorboard_gets_the_metrics(stand_in, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stand_in.train(stand_in.config(data, tmp_path / "run", 3, tracker="tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "metrics")).Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([m["loss"] for m in _metrics(tmp_path / "run")])


def test_unfinished_checkpoints_of_a_killed_run_are_removed(stand_in, data, tmp_path, caplog):
    leftover = tmp_path / "run" / ".checkpoint-00000005.writing"
    leftover.mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        stand_in.train(stand_in.config(data, tmp_path / "run", 3))
    assert not leftover.exists()
    assert "was never finished and is removed" in caplog.text


def _run_on(ranks: int, data: Path, output: Path, batch_size: int) -> None:
    script = [str(HERE / "stand_in_run.py"), str(data), str(output), "9", "0", str(batch_size)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environment = {"PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else []), *script],
        env={**os.environ, **environment, "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="torch.distributed on Windows lacks this launcher")
def test_two_ranks_train_as_one_with_the_double_batch(data, tmp_path):
    from safetensors.torch import load_file

    _run_on(1, data, tmp_path / "one", 4)
    _run_on(2, data, tmp_path / "two", 2)
    for one, two in zip(_curve(tmp_path / "one"), _curve(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    name = "checkpoint-00000009/trainable.safetensors"
    one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)
    assert (tmp_path / "two" / "checkpoint-00000009" / "random-1.pt").exists()


def test_half_a_line_of_metrics_does_not_stop_a_resume(stand_in, data, tmp_path):
    stand_in.train(stand_in.config(data, tmp_path / "run", 3))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    stand_in.train(stand_in.config(data, tmp_path / "run", 5))
    assert [m["step"] for m in _metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_scale_for_parameters_that_are_not_there_is_refused(stand_in):
    from training.run.optimizers import make_optimizer

    settings = stand_in.config(Path(), Path(), 1).optimizer
    with pytest.raises(SettingsError, match=r"No trained parameter starts with frozen"):
        make_optimizer(stand_in.Objective(), settings, {"frozen": 0.5})
