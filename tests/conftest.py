"""Shared by all tests: run-time checks of every jaxtyping annotation, and the parity folder."""

import os
from pathlib import Path

import pytest
from jaxtyping import config, install_import_hook

# Before the first import of the package; in tests only, because it breaks torch.compile.
install_import_hook(
    "more4d_backend", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)


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
