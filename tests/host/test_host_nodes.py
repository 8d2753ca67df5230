"""What a real server says of every node of the pack."""

import math
import re

import pytest

from benchmarks.comfy_host import PACK_NAME, ROOT

pytestmark = pytest.mark.host

IDS = sorted(
    {
        found
        for path in (ROOT / "nodes").glob("*.py")
        for found in re.findall(r'node_id="(\w+)"', path.read_text())
    }
)
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def inputs(schema):
    return {
        name: (spec[0], spec[1] if len(spec) > 1 else {})
        for part in ("required", "optional")
        for name, spec in schema["input"].get(part, {}).items()
    }


def test_the_pack_loads_without_a_complaint_of_the_server(comfy):
    start = comfy.log_text().split("To see the GUI go to")[0]
    about = [line for line in start.splitlines() if PACK_NAME in line.lower()]
    wrong = [line for line in about if re.search("fail|error|cannot|warn", line, re.IGNORECASE)]
    assert not wrong
    seconds = next(re.search(r"([\d.]+) seconds.*custom_nodes", x) for x in about if "seconds" in x)
    assert float(seconds[1]) < 5  # under 1 s on a free machine


def test_the_server_has_exactly_the_nodes_of_the_pack(schemas):
    module = f"custom_nodes.{PACK_NAME}"
    assert sorted(k for k, v in schemas.items() if v["python_module"] == module) == IDS
    assert len(IDS) >= 27


@pytest.mark.parametrize("node_id", IDS)
def test_a_node_explains_itself(comfy, schemas, node_id):
    schema = schemas[node_id]
    assert schema["category"].startswith("More4D/")
    assert schema["display_name"].endswith("(More4D)")
    assert schema["description"].endswith(".")
    assert schema["search_aliases"]
    assert schema["output"] or schema["output_node"]
    for name, (_, options) in inputs(schema).items():
        assert len(options.get("tooltip", "")) > 8, name
    page = comfy.get_bytes(f"/extensions/{PACK_NAME}/docs/{node_id}.md").decode()
    assert page.startswith(f"# {schema['display_name'].removesuffix(' (More4D)')}")
    missing = [name for name in inputs(schema) if name not in page]
    assert not missing, f"the help page does not name {missing}"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_text_of_a_node_is_in_the_locales(comfy, schemas, language):
    texts = comfy.get("/i18n")[language]["nodeDefs"]
    assert set(IDS) <= set(texts)
    for node_id in IDS:
        entry = texts[node_id]
        assert {"display_name", "description"} <= set(entry), node_id
        assert set(entry["inputs"]) == set(inputs(schemas[node_id])), node_id
        if language == "zh":
            assert re.search("[\u4e00-\u9fff]", entry["description"]), node_id


def test_no_seed_is_drawn_anew_after_a_run_unless_its_node_says_so(schemas):
    """Pages do that to every input of such a name; then all that follows runs again each time."""
    for node_id in IDS:
        for name, (_, options) in inputs(schemas[node_id]).items():
            if name in ("seed", "noise_seed"):
                assert options.get("control_after_generate") is False, node_id


def test_a_bypassed_paste_back_gives_the_filled_video(schemas):
    """The page then takes the input in the output's place, if it is of its type."""
    schema = schemas["More4DPasteBack"]
    assert schema["output"] == ["IMAGE"]
    assert next(iter(inputs(schema))) == "filled"


def test_widgets_have_defaults_that_the_server_takes(schemas):
    """API users send no value for what has a default."""
    for node_id in IDS:
        for name, (kind, options) in inputs(schemas[node_id]).items():
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], (node_id, name)
            if kind == "FLOAT":
                # The page rounds what is typed to the digits of the step; none is a step of 0.5.
                smallest = 10 ** math.floor(math.log10(options["step"]))
                assert options["min"] <= 0 or smallest <= options["min"], (node_id, name)
                assert name != "fps" or smallest <= 0.01, node_id  # 23.98
            if kind == "COMBO" and "default" in options:
                assert options["default"] in options["options"], (node_id, name)
