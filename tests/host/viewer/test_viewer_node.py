"""The viewer node in the host's own page, in both renderers."""

from itertools import pairwise

import numpy as np
import pytest

from more4d_backend.scene_files import save_scene
from workflows.graph import Graph, page_file

pytestmark = pytest.mark.host

_FILE = "viewer.safetensors"
_LONG_MS = 60_000
_PANELS = """[...app.rootGraph?.subgraphs?.values() ?? [], app.rootGraph ?? app.graph]
    .flatMap(g => g._nodes ?? g.nodes).map(n => n.more4dPanel).filter(p => p)"""


@pytest.fixture(scope="module", autouse=True)
def scene_file(comfy, small_scene):
    """In the input folder before the page loads, or the page would mark the name until R is hit."""
    save_scene(comfy.base / "input" / _FILE, small_scene)


@pytest.fixture
def load(page, comfy):
    """`load(count=1)`: a graph with viewers in the page; returns its tab."""

    def load_viewers(count=1):
        information = comfy.get("/object_info")
        graph = Graph()
        scene = graph.add("More4DSceneLoad", 0, file=_FILE)["scene"]
        path = graph.add("More4DCameraPreset", 1, scene=scene, preset="orbit-left")["camera_path"]
        for column in range(count):
            graph.add("More4DSceneViewer", 2 + column, scene=scene, camera_path=path)
        page.problems.clear()
        page.load(page_file(graph, information))
        page.show_all()
        return page.page

    return load_viewers


def run(tab, only=None):
    """Queue the page's graph, or what nodes of one type need, and wait for the end."""
    end, detail = tab.evaluate(
        """async only => { const { api } = await import('/scripts/api.js');
        const end = new Promise(done => {
            for (const kind of ['execution_success', 'execution_error'])
                api.addEventListener(kind, e => done([kind, e.detail]), {once: true}) });
        if (!only) app.queuePrompt(0);
        else {
            app.canvas.selectItems(app.graph._nodes.filter(n => n.type === only));
            app.extensionManager.command.execute('Comfy.QueueSelectedOutputNodes');
        }
        return await end; }""",
        only,
    )
    assert end == "execution_success", detail


def wait_for_scenes(tab, count=1):
    tab.wait_for_function(
        f"""() => {{ const panels = {_PANELS};
        return panels.length === {count} && panels.every(p => p.view.scene) }}""",
        timeout=_LONG_MS,
    )


def test_a_run_shows_the_scene_and_scrubbing_changes_the_picture(page, load, shown, screenshots):
    tab = load()
    run(tab)
    wait_for_scenes(tab)
    page.show_all()
    view = f"({_PANELS})[0].view"
    assert tab.evaluate(f"() => {view}.path.length") == 9
    assert not tab.evaluate("() => app.graph._nodes.some(n => n.has_errors)")
    first = shown(tab, view)
    slider = tab.locator(".more4d-row input[type=range]").first
    slider.focus()
    slider.press("End")
    assert (np.abs(shown(tab, view) - first).max(-1) > 30).mean() > 0.01
    tab.screenshot(path=str(screenshots / f"viewer-{page.renderer}.png"))
    assert not page.ours()


def test_its_button_runs_only_what_it_needs(page, load):
    tab = load()
    tab.click(".more4d-note button")
    wait_for_scenes(tab)
    assert not tab.is_visible(".more4d-note")
    assert not page.ours()


def test_mouse_and_keys_in_the_view_do_not_reach_the_graph(page, load):
    tab = load()
    tab.click(".more4d-note button")
    wait_for_scenes(tab)
    graph = """() => { const { scale, offset } = app.canvas.ds; const nodes = app.graph._nodes;
        return JSON.stringify([scale, [...offset], nodes.map(n => [...n.pos, ...n.size])]) }"""
    pose = f"() => [...({_PANELS})[0].view.pickCamera().worldToCamera]"
    box = tab.locator(".more4d-panel canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    poses, before = [tab.evaluate(pose)], tab.evaluate(graph)
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 40, y + 20, steps=4)
    tab.mouse.up()
    poses.append(tab.evaluate(pose))
    tab.mouse.wheel(0, -120)
    tab.wait_for_timeout(300)
    poses.append(tab.evaluate(pose))
    tab.keyboard.press("ArrowLeft", delay=200)
    poses.append(tab.evaluate(pose))
    tab.keyboard.press("Delete")
    tab.keyboard.press("Backspace")
    assert all(a != b for a, b in pairwise(poses))
    assert tab.evaluate(graph) == before
    assert not page.ours()


def test_every_control_is_reached_by_the_tab_key(page, load):
    tab = load()
    tab.click(".more4d-note button")
    wait_for_scenes(tab)
    tab.focus(".more4d-panel canvas")
    reached = []
    for _ in range(15):
        tab.keyboard.press("Tab")
        reached.append(
            tab.evaluate(
                """() => { const { dataset, tagName, type } = document.activeElement;
                return dataset.option ?? dataset.action ?? type ?? tagName }"""
            )
        )
    wanted = ["full", "reset", "screenshot", "wide", "help", "play", "range", "select-one"]
    wanted += ["through", "frusta", "trails", "unseen", "holes", "range"]
    assert reached[: len(wanted)] == wanted


def test_several_viewers_show_their_own_frames(page, load, shown):
    tab = load(3)
    run(tab)
    wait_for_scenes(tab, 3)
    tab.evaluate(f"() => {_PANELS}.forEach((p, i) => p.view.setFrame(4 * i))")
    pictures = [shown(tab, f"({_PANELS})[{i}].view") for i in range(3)]
    assert all(np.abs(a - b).max() > 30 for a, b in pairwise(pictures))
    assert not page.ours()


def test_a_removed_node_gives_its_graphics_memory_back(page, load):
    tab = load()
    run(tab)
    wait_for_scenes(tab)
    tab.evaluate(
        """() => { const node = app.graph._nodes.find(n => n.more4dPanel);
        window.graphics = node.more4dPanel.view.graphics.gl; app.graph.remove(node) }"""
    )
    assert tab.evaluate("() => window.graphics.isContextLost()")
    assert tab.locator(".more4d-panel").count() == 0
    assert not page.ours()


def test_copying_takes_no_graphics_memory_and_what_is_pasted_shows_the_scene(page, load):
    """Hosts copy by making each node anew, and forget that one. Browsers have 16 contexts."""
    tab = load()
    tab.evaluate("() => app.graph.add(LiteGraph.createNode('More4DCameraEditor'))")
    run(tab, "More4DSceneViewer")
    wait_for_scenes(tab)
    made = tab.evaluate(
        """() => { const { prototype } = HTMLCanvasElement, real = prototype.getContext;
        let made = 0;
        prototype.getContext = function (kind, ...more) {
            made += kind === 'webgl2'; return real.call(this, kind, ...more) };
        const timers = window.setInterval;
        window.setInterval = (...given) => { made += 1; return timers(...given) };
        app.canvas.selectItems(app.graph._nodes);
        for (let i = 0; i < 3; i++) app.canvas.copyToClipboard();
        Object.assign(prototype, { getContext: real });
        window.setInterval = timers;
        return made }"""
    )
    assert made == 0
    tab.evaluate(
        """() => { app.canvas.selectItems(app.graph._nodes.filter(n => n.more4dPanel));
        app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard() }"""
    )
    wait_for_scenes(tab, 2)
    assert not page.ours()


def test_after_a_reload_the_scene_and_the_options_are_there_again(page, load):
    tab = load()
    run(tab)
    wait_for_scenes(tab)
    tab.click("[data-option=trails]")
    workflow = tab.evaluate("() => app.graph.serialize()")
    tab.reload(wait_until="domcontentloaded")
    tab.wait_for_function(
        "() => window.app?.graph && window.app.extensionManager", timeout=_LONG_MS
    )
    tab.wait_for_timeout(4000)
    page.load(workflow)
    wait_for_scenes(tab)
    assert tab.evaluate(f"() => ({_PANELS})[0].view.options.trails")
    assert tab.get_attribute("[data-option=trails]", "aria-pressed") == "true"


def test_it_works_in_a_subgraph(page, load):
    tab = load()
    tab.evaluate(
        """() => { const node = app.graph._nodes.find(n => n.more4dPanel);
        app.graph.convertToSubgraph(new Set([node])) }"""
    )
    tab.wait_for_timeout(500)
    assert "More4DSceneViewer" not in tab.evaluate("() => app.graph._nodes.map(n => n.type)")
    run(tab)
    wait_for_scenes(tab)
    tab.evaluate("() => app.canvas.openSubgraph([...app.rootGraph.subgraphs.values()][0])")
    tab.wait_for_selector(".more4d-panel canvas")
    assert not page.ours()
