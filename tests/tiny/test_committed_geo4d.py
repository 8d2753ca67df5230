"""The embedded Geo4D file, where it is committed, beside what the code and the card say of it."""

from pathlib import Path

import pytest
from safetensors import safe_open

from more4d_backend import tiny
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.weight_choice import EMBEDDED_GEO4D
from more4d_backend.weights.geo4d import load_geo4d

CARD = (Path(tiny.__file__).parent / "README.md").read_text(encoding="utf-8")
_LIMIT_BYTES = 6_000_000


def test_the_card_names_the_file():
    assert f"`{EMBEDDED_GEO4D.parent.name}/{EMBEDDED_GEO4D.stem}`" in CARD


@pytest.fixture
def path() -> Path:
    if not EMBEDDED_GEO4D.is_file():
        pytest.skip("the trained embedded Geo4D is not in this checkout")
    return EMBEDDED_GEO4D


def test_the_file_is_whole_small_and_of_the_size_that_the_code_has(path):
    assert path.stat().st_size <= _LIMIT_BYTES
    networks = load_geo4d(path)
    assert networks.size == GEO4D_SIZES["tiny"]
    assert all(parameter.isfinite().all() for parameter in networks.parameters())


def test_the_file_says_which_command_made_it_and_the_card_has_its_numbers(path):
    with safe_open(path, "pt") as file:
        recipe = file.metadata()["more4d_recipe"]
    assert recipe.startswith("training.train_tiny_geo4d --seed")
    assert "of the UNet" in recipe
    assert "stopped before its end" not in recipe
    numbers = CARD[CARD.index("training.evaluate_geo4d") :].split("R = sum")[0]
    assert "not measured" not in numbers
