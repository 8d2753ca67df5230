"""The workflows in the real page, in both of its renderers. Pictures of it are kept to look at."""

import json

import pytest

from benchmarks.comfy_host import ROOT
from workflows.build import BLUEPRINT, WORKFLOWS
from workflows.graph import NOTE, Graph

pytestmark = pytest.mark.host


@pytest.fixture
def shot(page, comfy, screenshots):
    """`shot(name)`: keep a picture of the page as it is."""
    version = comfy.get("/system_stats")["system"]["comfyui_version"]
    return lambda name: page.page.screenshot(
        path=str(screenshots / f"{name}-{version}-{page.renderer}.png")
    )


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_loads_and_would_send_what_its_generator_sends(page, schemas, shot, name):
    page.problems.clear()
    content = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    assert page.load(content) == [n["type"] for n in content["nodes"]]
    page.show_all()
    shot(name)
    graph = Graph()
    WORKFLOWS[name](graph)
    wanted, sent = graph.prompt(schemas), page.prompt()
    assert {k: v["class_type"] for k, v in sent.items()} == {
        k: v["class_type"] for k, v in wanted.items()
    }
    for number, node in wanted.items():
        given = sent[number]["inputs"]
        for key, value in node["inputs"].items():
            if node["class_type"] == "SaveVideo" and key.startswith(("format", "codec")):
                continue  # a newer host nests one in the other
            same = list(map(str, value)) if isinstance(value, list) else value
            found = given[key]
            assert same == (list(map(str, found)) if isinstance(found, list) else found), key
    assert set(controls(page)) <= {"fixed"}  # so that a second run finds its results
    assert not page.ours()
    assert not unknown_nodes(page)
    # Files that are not on this machine are marked; nothing else is.
    assert all("Load" in node for node in nodes_marked_red(page))


def controls(page):
    """Return what happens to each seed after a run."""
    return page.page.evaluate(
        """() => app.graph._nodes.flatMap(n => n.widgets ?? [])
            .filter(w => w.name === 'control_after_generate').map(w => w.value)"""
    )


def unknown_nodes(page):
    """Return the types that the page does not know."""
    return page.page.evaluate(
        """() => app.graph._nodes.map(n => n.type)
            .filter(t => !LiteGraph.registered_node_types[t] && !app.graph.subgraphs?.has(t))"""
    )


def nodes_marked_red(page):
    return page.page.evaluate("() => app.graph._nodes.filter(n => n.has_errors).map(n => n.type)")


def test_the_blueprint_is_one_node_with_the_whole_graph_inside(page, shot):
    page.problems.clear()
    content = json.loads((ROOT / "subgraphs" / f"{BLUEPRINT}.json").read_text())
    assert len(page.load(content)) == 1
    page.show_all()
    shot("blueprint")
    node = page.page.evaluate(
        "() => { const n = app.graph._nodes[0]; return {title: n.title,"
        " inputs: n.inputs.map(i => i.name), outputs: n.outputs.map(o => o.name),"
        " widgets: n.widgets.map(w => w.name)} }"
    )
    assert node["title"] == BLUEPRINT
    assert {"image", "prompt", "preset", "amplitude", "seed"} <= set(node["inputs"])
    widgets = {"prompt", "preset", "amplitude", "seed", "strag_model", "motion_vae"}
    assert widgets | {"fun_inp_model", "vism_lora"} <= set(node["widgets"])
    assert node["outputs"] == ["video", "scene"]
    inner = [n["class_type"] for n in page.prompt().values()]
    assert {"More4DStragConditioning", "More4DRender", "More4DVismConditioning"} <= set(inner)
    assert NOTE not in inner
    assert not page.ours()


def test_a_workflow_runs_from_the_page(page, comfy, shot):
    page.problems.clear()
    content = json.loads((ROOT / "workflows" / "image-to-4d-video-tiny.json").read_text())
    page.load(content)
    page.page.evaluate(
        """() => { const small = {num_frames: 5, height: 48, width: 64, steps: 1};
        for (const node of app.graph._nodes) for (const widget of node.widgets ?? [])
            if (widget.name in small && node.type !== 'More4DRender')
                widget.value = small[widget.name] }"""
    )
    page.page.evaluate(
        """async () => { const { api } = await import('/scripts/api.js'); window.ends = [];
        for (const kind of ['execution_success', 'execution_error'])
            api.addEventListener(kind, e => window.ends.push([kind, e.detail])) }"""
    )
    page.page.evaluate("() => { app.queuePrompt(0) }")
    page.page.wait_for_function("() => window.ends.length > 0", timeout=180_000)
    end, detail = page.page.evaluate("() => window.ends[0]")
    assert end == "execution_success", detail
    page.page.wait_for_timeout(1500)
    page.show_all()
    shot("after-run")
    assert not page.ours()
