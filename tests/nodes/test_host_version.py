"""Hosts that are too old are told so in one sentence."""

import importlib.util
import sys
import tomllib
from types import SimpleNamespace

import pytest


@pytest.fixture
def host_version(pack_folder):
    path = pack_folder / "nodes" / "host_version.py"
    spec = importlib.util.spec_from_file_location("host_version_of_the_pack", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def in_host(monkeypatch):
    """`in_host(version)`: what is imported next is in a host of that version."""

    def set_version(version):
        host = SimpleNamespace(__version__=version)
        monkeypatch.setitem(sys.modules, "comfyui_version", host)

    return set_version


@pytest.mark.parametrize("version", ["0.3.64", "0.8.0", "0.24.9"])
def test_an_older_host_is_refused(host_version, in_host, version):
    in_host(version)
    with pytest.raises(ImportError, match=f"needs ComfyUI 0.25 or newer, and this is {version}"):
        host_version.check_host()


@pytest.mark.parametrize("version", ["0.25.0", "0.25", "0.33.0", "0.45.2", "1.0.0rc1", "0.100"])
def test_others_are_not(host_version, in_host, version):
    in_host(version)
    host_version.check_host()


def test_it_is_the_version_that_the_registry_is_told(pack_folder, host_version):
    project = tomllib.loads((pack_folder / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = ".".join(map(str, host_version._OLDEST))
    assert project["tool"]["comfy"]["requires-comfyui"] == f">={oldest}.0"


def test_it_comes_before_anything_of_the_host_is_imported(pack_folder):
    source = (pack_folder / "nodes" / "__init__.py").read_text(encoding="utf-8")
    assert source.index("check_host()") < source.index("comfy_api") < source.index("from . import")
