"""The camera editor where it must also work: bad JSON, no WebGL, subgraphs, reloads, no page."""

import json

import pytest
import torch

from benchmarks.comfy_host import RejectedError
from more4d_backend.camera_files import load_cameras
from more4d_backend.camera_paths import scene_scale
from more4d_backend.camera_paths.keyframes import cameras_from_keyframes, keyframes_from_json

pytestmark = pytest.mark.host

_GIVEN = {
    "format": "more4d-camera-keyframes", "version": 1, "scene_scale": 2.0, "author": {"name": "A"},
    "keyframes": [
        {"time": 0, "position": [0, 0, 0], "quaternion_wxyz": [1, 0, 0, 0], "note": "mine"},
        {"time": 1, "position": [0.5, -0.1, 0.2], "quaternion_wxyz": [0.6, 0, 0.8, 0], "zoom": 2},
    ],
}  # fmt: skip


def open_json(editor):
    editor["text"].locator("summary").click()
    return editor["json"]


def test_what_is_wrong_in_the_text_is_named_here_and_by_the_host(page, comfy, load_editor, shot):
    editor = load_editor(keyframes=json.dumps(_GIVEN))
    area = open_json(editor)
    wrong = json.dumps(_GIVEN).replace('"position": [0.5', '"position": ["far"')
    area.fill(wrong)
    assert "keyframes[1].position[0]" in editor["error"].inner_text()
    assert '"far"' in editor["error"].inner_text()
    assert editor["add"].is_disabled()
    assert editor.text == wrong  # nothing is lost of what is being typed
    shot("refused")
    with pytest.raises(RejectedError) as refused:
        comfy.run(page.prompt())
    assert "keyframes[1].position[0]" in json.dumps(refused.value.nodes)
    area.fill(json.dumps(_GIVEN))
    assert editor["error"].inner_text() == ""
    editor.enter("zoom", "1.5")
    changed = editor.document
    assert changed["author"] == {"name": "A"}
    assert changed["keyframes"][0]["note"] == "mine"
    assert changed["keyframes"][0]["zoom"] == 1.5
    assert not page.ours()


def test_without_webgl_the_json_is_edited_and_runs(page, load_editor, shot):
    tab = page.page
    tab.evaluate(
        """() => { const { prototype } = HTMLCanvasElement;
        const ofAll = window.getContextOfAll = prototype.getContext;
        prototype.getContext = function (kind, ...more) {
            return kind === 'webgl2' ? null : ofAll.call(this, kind, ...more) } }"""
    )
    try:
        editor = load_editor(keyframes=json.dumps(_GIVEN))
        editor.run_without_scene()
        assert "WebGL2" in tab.locator(".more4d-note").inner_text()
        editor["track"].click(position={"x": 0.5 * editor["track"].bounding_box()["width"], "y": 4})
        editor["add"].click()
        assert len(editor.times) == 3
        editor.enter("y", "-0.5")
        assert editor.document["keyframes"][1]["position"][1] == -0.5
        editor.run_without_scene()
        shot("without-webgl")
        assert not page.ours()
    finally:
        tab.evaluate("() => { HTMLCanvasElement.prototype.getContext = window.getContextOfAll }")


def test_two_editors_are_two_and_are_there_after_a_reload(page, load_editor, editor_at, shot):
    load_editor(count=2, keyframes=json.dumps(_GIVEN))
    first, second = editor_at(0), editor_at(1)
    first.run()
    second.wait("scene")
    first["mark"].nth(1).click()
    first["delete"].click()
    second.enter("x", "0.25")
    texts = [first.text, second.text]
    assert len(first.times) == 1
    assert len(second.times) == 2
    shot("two")
    page.page.wait_for_timeout(2000)  # the host keeps the graph a little later
    page.page.reload(wait_until="domcontentloaded")
    page.page.wait_for_function("() => window.app?.graph?._nodes?.some(n => n.more4dEditor)")
    for editor, text in zip((first, second), texts, strict=True):
        editor.wait("scene")
        assert editor.text == text
        assert editor.get("view.path.length") == 5
    assert not page.ours()


def test_in_a_subgraph_it_edits_shows_and_runs(page, load_editor, shot):
    editor = load_editor()
    tab = editor.tab
    tab.evaluate(
        """() => { const node = app.graph._nodes.find(n => n.more4dEditor);
        window.inside = app.graph.convertToSubgraph(new Set([node])).subgraph; }"""
    )
    tab.wait_for_timeout(500)  # the page draws the graph without the node, as it would for a user
    tab.evaluate("() => app.canvas.openSubgraph(window.inside)")
    tab.wait_for_function("() => app.canvas.graph._nodes.some(n => n.more4dEditor)")
    editor.node = "app.canvas.graph._nodes.find(n => n.more4dEditor)"
    page.show_all()
    tab.locator(".more4d-note button").click()
    editor.wait("scene")
    editor.drag_view(40, 10)
    editor["add"].click()
    shot("subgraph")
    assert len(editor.times) == 2
    sent = [n for n in page.prompt().values() if n["class_type"] == "More4DCameraEditor"]
    assert [n["inputs"]["keyframes"] for n in sent] == [editor.text]
    editor.run()
    assert not page.ours()


def test_undo_of_the_host_knows_each_edit_and_leaves_the_view(page, load_editor):
    editor = load_editor()
    editor.run()
    editor.drag_view(50, 10)
    editor["add"].click()
    editor.drag_view(-20, 20)
    editor["add"].click()
    editor.tab.evaluate(f"() => {{ window.before = {editor.js} }}")
    pose = editor.get("view.pose")
    editor.tab.mouse.click(150, 1300)  # the empty canvas
    editor.tab.keyboard.press("Control+z")
    editor.tab.wait_for_function(f"() => {editor.js} && {editor.js} !== window.before")
    editor.wait("scene")
    assert editor.times == [0, 1]
    assert editor.get("view.pose") == pytest.approx(pose, abs=1e-9)
    assert not page.ours()


def test_frames_that_come_through_a_wire_are_those_of_the_run(page, load_editor):
    editor = load_editor(num_frames=3)
    editor.tab.evaluate(
        f"""() => {{ const frames = LiteGraph.createNode('PrimitiveInt'), node = {editor.node};
        app.graph.add(frames);
        frames.widgets[0].value = 4;
        frames.connect(0, node, node.inputs.findIndex(i => i.name === 'num_frames')); }}"""
    )
    editor.tab.locator(".more4d-note button").click()
    editor.wait("scene")
    editor.wait("shownFrames === 4")
    assert editor.get("view.path.length") == 4
    assert not page.ours()


def test_pasted_json_runs_without_a_page(comfy, schemas, editor_graph, scene):
    graph = editor_graph(keyframes=json.dumps(_GIVEN))
    editor = next(node for node in graph.nodes if node.type == "More4DCameraEditor")
    graph.add(
        "More4DCameraSave", 3, camera_path=editor["camera_path"], format="npz",
        filename_prefix="pasted",
    )  # fmt: skip
    comfy.run(graph.prompt(schemas))
    (file,) = (comfy.base / "output").glob("pasted*")
    found = load_cameras(file)
    wanted = cameras_from_keyframes(
        keyframes_from_json(json.dumps(_GIVEN)), scene.cameras.frames([0]), scene.num_frames,
        scene_scale=scene_scale(scene),
    )  # fmt: skip
    torch.testing.assert_close(found.world_to_camera, wanted.world_to_camera)


def test_a_removed_editor_gives_its_memory_back(page, load_editor):
    editor = load_editor()
    editor.run()
    editor.tab.evaluate(
        f"""() => {{ window.gone = {editor.js}; window.gl = gone.view.graphics.gl;
        app.graph.remove(app.graph._nodes.find(n => n.more4dEditor)) }}"""
    )
    editor.tab.wait_for_function("() => window.gl.isContextLost()", timeout=10_000)
    assert editor.tab.evaluate("() => window.gone.view") is None
    assert editor.tab.locator(".more4d-camera-editor").count() == 0
    assert not page.ours()
