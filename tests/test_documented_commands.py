"""Commands and code in README and docs are what the programs take."""

import re
import shlex
from pathlib import Path

import pytest

from more4d_backend.cli import main
from more4d_backend.cli.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAINERS = ("motion_vae", "strag", "vism")


def _documented(program: str) -> list[str]:
    """Arguments of every call of `python -m program...` in the fenced code of all pages."""
    found = []
    for page in PAGES:
        for code in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in code.replace("\\\n", " ").splitlines():
                call = re.search(rf"python -m {re.escape(program)}(.*)", line.split(" #")[0])
                if call is not None:
                    found.append(call[1].strip())
    return sorted(set(found))


@pytest.mark.parametrize("command", _documented("more4d_backend"))
def test_every_documented_command_is_understood(command, capsys):
    tyro = pytest.importorskip("tyro")
    arguments = shlex.split(command)
    if arguments == ["--help"]:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        return
    tyro.cli(COMMANDS, args=arguments)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_documented_training_is_understood(trainer):
    from training.run.command_line import parse_config

    commands = _documented(f"training.train_{trainer}")
    assert commands
    for command in commands:
        arguments = [word for word in shlex.split(command) if word != "--help"]
        parse_config(trainer, object, arguments)


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ["--size-hw", "16", "24", "--num-frames", "2"]
    assert main(["synthetic", *size, "-o", str(tmp_path)]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    assert (tmp_path / "orbit-left.mp4").stat().st_size > 0
