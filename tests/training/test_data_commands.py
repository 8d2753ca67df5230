"""The commands that make training data, as a user calls them."""

import runpy
import sys

import pytest

from more4d_backend.files import FileFormatError

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


def _run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    runpy.run_module(module, run_name="__main__")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("training.procedural", "write", "DST", "--num-samples", "0"), "num_samples is 0"),
        (("training.procedural", "write", "DST", "--num-samples", "1", "--samples-per-shard", "0"),
         "samples_per_shard is 0; expected at least 1."),
        (("training.procedural", "write", "DST", "--num-samples", "1", "--device", "banana"),
         "device is 'banana'"),
        (("training.procedural", "sheet", "DST", "--device", "cuda:99"), "device is cuda:99"),
        (("training.trajscene", "nowhere", "DST"), "nowhere holds no archive"),
        (("training.trajscene", "nowhere", "DST", "--jobs", "0"), "jobs is 0"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_told_in_a_sentence(
    tmp_path, monkeypatch, caplog, command, message
):
    command = [str(tmp_path / "new") if word == "DST" else word for word in command]
    with pytest.raises(SystemExit) as end:
        _run(monkeypatch, *command)
    assert end.value.code == 2
    assert message in caplog.text
    assert not (tmp_path / "new").exists()


def test_debug_shows_where_in_the_code_it_was(tmp_path, monkeypatch):
    with pytest.raises(FileFormatError):
        _run(monkeypatch, "training.trajscene", "nowhere", str(tmp_path / "new"), "--debug")
