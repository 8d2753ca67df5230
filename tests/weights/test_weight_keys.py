"""Names of weights, both ways."""

import json
import re

import pytest
import torch

from more4d_backend.weights.files import StoredTensor, WeightsError
from more4d_backend.weights.keys import (
    CLIP_VISION,
    MOTION_VAE,
    STRAG_TRANSFORMER,
    UMT5,
    WAN_TRANSFORMER,
    WAN_VAE,
    renamed,
    renamer,
)

TABLES = {
    "wan transformer": WAN_TRANSFORMER,
    "strag": STRAG_TRANSFORMER,
    "wan vae": WAN_VAE,
    "motion vae": MOTION_VAE,
    "umt5": UMT5,
    "clip": CLIP_VISION,
}


def described(shapes: dict[str, list[int]]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(
            shape=tuple(shape),
            dtype=torch.bfloat16,
            read=lambda shape=shape: torch.empty(shape, device="meta", dtype=torch.bfloat16),
        )
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("name", TABLES)
def test_no_two_rows_of_a_table_share_a_side(name):
    table = TABLES[name]
    assert len({original for original, _ in table}) == len(table)
    assert len({library for _, library in table}) == len(table)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_comes_back(name):
    table = TABLES[name]
    there, back = renamer(table), renamer(table, inverse=True)
    for original, library in table:
        for index in ("0", "7", "12", "39"):
            key = original.replace("{n}", index) + ".weight"
            new = there(key)
            assert new == library.replace("{n}", index) + ".weight"
            assert back(new) == key


def test_a_prefix_ends_at_a_dot_or_at_the_end():
    rename = renamer((("head.modulation", "table"), ("conv1", "quant")))
    assert rename("head.modulation") == "table"
    assert rename("conv1.bias") == "quant.bias"
    assert rename("conv12.bias") is None
    assert rename("xhead.modulation") is None


def test_a_name_without_a_row_stays_as_it_is():
    result = renamed(described({"conv1.weight": [1], "stranger": [1]}), (("conv1", "quant"),))
    assert list(result) == ["quant.weight", "stranger"]


def test_two_names_that_become_one_are_refused():
    with pytest.raises(WeightsError, match=r"Two names become quant\.weight"):
        renamed(described({"conv1.weight": [1], "quant.weight": [1]}), (("conv1", "quant"),))


def tagged(names):
    return {name: torch.full((2,), float(i)) for i, name in enumerate(names)}


def diffusers_converter(name):
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    return getattr(single_file, name)


def library_state(kind: str) -> dict[str, torch.Tensor]:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        if kind == "vae":
            return diffusers.AutoencoderKLWan(base_dim=4).state_dict()
        return diffusers.WanTransformer3DModel(
            num_layers=3,
            num_attention_heads=1,
            ffn_dim=8,
            image_dim=8,
            added_kv_proj_dim=128,
            pos_embed_seq_len=514,
        ).state_dict()


@pytest.mark.parametrize(
    ("kind", "table", "converter"),
    [
        ("transformer", WAN_TRANSFORMER, "convert_wan_transformer_to_diffusers"),
        ("vae", WAN_VAE, "convert_wan_vae_to_diffusers"),
    ],
)
def test_names_agree_with_those_of_diffusers_own_converter(kind, table, converter):
    library = list(library_state(kind))
    back = renamer(table, inverse=True)
    original = [back(name) for name in library]
    if kind == "transformer":
        # diffusers' converter has no row for the positions of first-and-last-frame models.
        index = library.index("condition_embedder.image_embedder.pos_embed")
        assert original.pop(index) == "img_emb.emb_pos"
        library.pop(index)
    assert None not in original
    tags = tagged(original)
    values = {float(tensor[0]): name for name, tensor in tags.items()}
    converted = diffusers_converter(converter)(dict(tags))
    rename = renamer(table)
    assert len(converted) == len(library)
    for theirs, tensor in converted.items():
        assert rename(values[float(tensor[0])]) == theirs


@pytest.mark.parity
@pytest.mark.parametrize(
    ("title", "table", "prefix"),
    [
        ("4D-STraG transformer (VideoX-Fun key names)", STRAG_TRANSFORMER, ""),
        ("Wan2.1-Fun-InP transformer (base of 4D-ViSM)", WAN_TRANSFORMER, ""),
        ("motion VAE (Wan VAE, keys as saved)", WAN_VAE, "model."),
    ],
)
def test_every_released_name_goes_there_and_back(parity_dir, title, table, prefix):
    released = json.loads((parity_dir / "released_keys.json").read_text())[title]
    names = [name.removeprefix(prefix) for name in released]
    there, back = renamer(table), renamer(table, inverse=True)
    library = [there(name) for name in names]
    assert None not in library
    assert len(set(library)) == len(names)
    assert [back(name) for name in library] == names


@pytest.mark.parity
def test_released_vae_names_are_those_of_the_diffusers_class(parity_dir):
    released = json.loads((parity_dir / "released_keys.json").read_text())
    names = released["motion VAE (Wan VAE, keys as saved)"]
    rename = renamer(WAN_VAE)
    assert {rename(name.removeprefix("model.")) for name in names} == set(library_state("vae"))


def test_rows_are_literal_but_for_the_index():
    # A template with a pattern in it would match more than it says.
    for table in TABLES.values():
        for side in (s for row in table for s in row):
            assert re.fullmatch(r"[a-z0-9_.{}A-Z]+", side)
            assert set(re.findall(r"{[^}]*}", side)) <= {"{n}"}
