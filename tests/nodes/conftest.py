"""The pack as files, and the ComfyUI hosts that COMFYUI_PYTHON and COMFYUI_PATH name."""

import ast
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PACK = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def pack_folder():
    return PACK


@pytest.fixture(scope="session")
def node_classes():
    """Every node class of the pack by its name: (module, definition)."""
    found = {}
    for path in sorted((PACK / "nodes").glob("*.py")):
        for item in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(item, ast.ClassDef) and any(
                ast.unparse(base) == "io.ComfyNode" for base in item.bases
            ):
                found[item.name] = (path.stem, item)
    assert len(found) > 20
    return found


@pytest.fixture(scope="session")
def locale():
    """`locale(language, name)`: one of the pack's translations."""

    def load(language, name):
        return json.loads((PACK / "locales" / language / name).read_text(encoding="utf-8"))

    return load


@pytest.fixture(scope="session")
def texts():
    """`texts(tree)`: every text of a translation by its path."""

    def flat(tree, path=()):
        if isinstance(tree, dict):
            return {k: v for n, item in tree.items() for k, v in flat(item, (*path, n)).items()}
        return {path: tree}

    return flat


@pytest.fixture(scope="session")
def packed_files():
    """Names of the files that go to the registry: what git tracks, less .comfyignore."""

    def git(*arguments):
        done = subprocess.run(
            ["git", "ls-files", "-z", *arguments], cwd=PACK, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip("this is no git checkout, so it is not known what would be packed")
        return set(filter(None, done.stdout.split("\0")))

    left_out = git("--cached", "--ignored", "--exclude-from=.comfyignore")
    return {name for name in git("--cached") - left_out if (PACK / name).is_file()}


@dataclass(frozen=True)
class HostFolder:
    """A ComfyUI checkout, and the Python that runs it."""

    folder: Path
    pins: str

    def run(self, *arguments, cwd, timeout=300):
        """Run the host's Python; returns what `subprocess.run` does."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["PYTHONPATH"] = self.pins
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the host then starts slowly
        command = [os.environ["COMFYUI_PYTHON"], *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
        )


def _hosts():
    folders = [Path(p) for p in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if p]
    pins = os.environ.get("COMFYUI_PINS", "").split(os.pathsep)
    pins += [""] * len(folders)
    found = zip(folders, pins, strict=False)
    return [pytest.param(HostFolder(f, p), id=f.name) for f, p in found] or [
        pytest.param(None, id="no-host")
    ]


@pytest.fixture(scope="session", params=_hosts())
def host_folder(request):
    if request.param is None or "COMFYUI_PYTHON" not in os.environ:
        pytest.skip("COMFYUI_PYTHON and COMFYUI_PATH do not name a ComfyUI host")
    return request.param
