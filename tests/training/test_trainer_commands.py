"""What the trainers and what belongs to them say on the command line."""

import logging
import runpy
import sys

import pytest

from training.run.command_line import exit_with
from training.run.errors import NotFiniteError, TrainingMemoryError
from training.run.settings import SettingsError

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")

NO_DATA = ("--data.train", "NEW")
RANDOM = ("--weights.from-scratch",)
SEEDS = ("--data.train", "procedural", "--data.validation", "None", "--run.precision", "fp32")


def _run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    runpy.run_module(module, run_name="__main__")


def _raiser(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("train_motion_vae", "tiny", *NO_DATA), "NEW is not there. Name a folder"),
        (("train_strag", "tiny", *NO_DATA), "NEW is not there. Name a folder"),
        (("train_vism", "tiny", *NO_DATA), "NEW is not there. Name a folder"),
        (("train_motion_vae", "tiny", *SEEDS, "--data.encoded", "NEW"), "data.encoded is set"),
        (("train_strag", "tiny", *SEEDS, "--run.output", "FILE"), "FILE"),
        (("train_strag", "tiny", *SEEDS, "--weights.wan-vae", "FILE"), "FILE is"),
        (("train_vism", "tiny", *SEEDS, "--weights.base", "NEW"), "NEW"),
        (("encode", "strag", "tiny", *SEEDS), "data.encoded is None"),
        (("encode", "vism", "tiny", *NO_DATA, *RANDOM, "--data.encoded", "NEW"), "NEW is not"),
        (("ablations", "tiny", *SEEDS, "--ablation.no-depth-latent"), "leaves depth-latent out"),
        (("train_geo4d", "tiny", "--weights", "NEW", "--run.output", "OUT"), "NEW does not exist"),
        (("train_geo4d_points", "tiny", "--weights", "FILE", "--run.output", "OUT"), "FILE is"),
        (("train_tiny_geo4d", "--start", "NEW", "--device", "cpu"), "NEW does not exist"),
        (("train_tiny_geo4d", "--device", "cuda:99"), "device is cuda:99"),
        (("train_tiny", "vae", "--device", "cuda:99", "--output", "NEW"), "device is cuda:99"),
        (("evaluate_tiny", "--device", "cuda:99"), "device is cuda:99"),
        (("evaluate_geo4d", "--device", "cuda:99", "--output", "NEW"), "device is cuda:99"),
        (("evaluate_geo4d", "--weights", "NEW", "--output", "OUT"), "NEW does not exist"),
        (("gather", "NEW"), "NEW"),
        (("train_tiny", "depth", "--output", "NEW", "--device", "cpu"), "There is no file of"),
        (("train_tiny", "embed", "--name", "strag", "--source", "FILE", "--recipe", "x"), "FILE"),
        (("evaluate_tiny", "--parts", "depth", "--weights", "NEW"), "NEW"),
    ],
)
def test_what_a_user_can_mend_is_told_in_a_sentence(
    tmp_path, monkeypatch, caplog, command: tuple[str, ...], message: str
):
    monkeypatch.chdir(tmp_path)
    places = {word: str(tmp_path / word.lower()) for word in ("NEW", "FILE", "OUT")}
    (tmp_path / "file").write_text("no weights")
    name, *words = command
    with pytest.raises(SystemExit) as end:
        _run(monkeypatch, f"training.{name}", *(places.get(word, word) for word in words))
    assert end.value.code == 2
    (told,) = (r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)
    word, *rest = message.split(" ")
    assert " ".join([places.get(word, word), *rest]) in told
    assert not (tmp_path / "new").exists()


def test_the_place_in_the_code_is_told_and_shown_on_request(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(SystemExit) as end:
        exit_with(_raiser(TrainingMemoryError("Lower it.")))
    assert end.value.code == 2
    assert "Lower it." in caplog.text
    assert "test_trainer_commands.py" in caplog.text
    monkeypatch.setattr(sys, "argv", ["train", "--debug"])
    with pytest.raises(SettingsError):
        exit_with(_raiser(SettingsError("No.")))


@pytest.mark.parametrize("error", [NotFiniteError("NaN"), RuntimeError("bug")])
def test_what_no_user_can_mend_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        exit_with(_raiser(error))


def test_a_terminated_training_keeps_its_status():
    with pytest.raises(SystemExit) as end:
        exit_with(_raiser(SystemExit(143)))
    assert end.value.code == 143
