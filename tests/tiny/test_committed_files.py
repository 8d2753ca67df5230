"""What is committed, beside what the code says of it."""

from pathlib import Path

import pytest
from safetensors import safe_open

from more4d_backend import tiny
from more4d_backend.strag.profile import OWN
from more4d_backend.strag.sizes import STRAG_SIZES, VISM_SIZES
from more4d_backend.tiny.writing import LAYOUT
from more4d_backend.weights.model_loading import (
    load_byte_text,
    load_depth_network,
    load_motion_vae,
    load_strag,
    load_wan_transformer,
    load_wan_vae,
)

CARD = (Path(tiny.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_the_card_names_every_file():
    for name in tiny.EMBEDDED_FILES:
        assert f"`{tiny.relative_path(name).with_suffix('').as_posix()}`" in CARD


@pytest.fixture
def files() -> dict[str, Path]:
    if not tiny.has_embedded_weights():
        pytest.skip("the trained embedded weights are not in this checkout")
    return {name: tiny.embedded_file(name) for name in tiny.EMBEDDED_FILES}


def test_every_file_is_whole_and_of_the_sizes_that_the_code_has(files):
    strag = load_strag(files["strag"])
    expected = STRAG_SIZES["tiny"].config()
    assert {key: strag.config[key] for key in expected} == expected
    vism = load_wan_transformer(files["vism"])
    expected = VISM_SIZES["tiny"].config()
    assert {key: vism.config[key] for key in expected} == expected
    load_wan_vae(files["wan_vae"])
    load_motion_vae(files["motion_vae"], OWN.latents, encoder=files["wan_vae"])
    load_byte_text(files["text_encoder"])
    load_depth_network(files["depth"])


def test_every_file_says_what_it_is_and_which_command_made_it(files):
    for name, path in files.items():
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert metadata["more4d_kind"] == tiny.EMBEDDED_FILES[name].value
        assert metadata["more4d_layout"] == LAYOUT
        assert metadata["more4d_profile"] == OWN.name
        assert metadata["more4d_recipe"], name


def test_files_are_small_enough_to_lie_beside_code(files):
    sizes = [path.stat().st_size for path in files.values()]
    assert max(sizes) <= tiny.FILE_LIMIT_BYTES
    assert sum(sizes) <= tiny.TOTAL_LIMIT_BYTES
