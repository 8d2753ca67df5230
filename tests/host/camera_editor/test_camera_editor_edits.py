"""The camera editor in the real page: its clicks, its JSON, and the path that is rendered."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from more4d_backend.camera_paths import path_descriptions, scene_path, scene_scale
from more4d_backend.camera_paths.keyframes import cameras_from_keyframes, keyframes_from_json
from more4d_backend.geometry import invert_rigid
from more4d_backend.rendering import RenderSettings, render

pytestmark = pytest.mark.host

_GIVEN = {
    "format": "more4d-camera-keyframes", "version": 1, "scene_scale": 2.0, "author": {"name": "A"},
    "keyframes": [
        {"time": 0, "position": [0, 0, 0], "quaternion_wxyz": [1, 0, 0, 0], "note": "[\n 1 ]"},
        {"time": 1, "position": [0.5, -0.1, 0.2], "quaternion_wxyz": [0.6, 0, 0.8, 0], "zoom": 2},
    ],
}  # fmt: skip


def path_of(text, scene, num_frames):
    return cameras_from_keyframes(
        keyframes_from_json(text),
        scene.cameras.frames([0]),
        num_frames,
        scene_scale=scene_scale(scene),
    )


def test_the_path_that_was_clicked_is_the_path_that_is_rendered(
    page, comfy, load_editor, scene, shot
):
    editor = load_editor()
    assert editor.times == [0]
    shot("before-a-run")
    first_run = editor.run()
    editor.drag_view(40, 0)
    editor["add"].click()
    editor.drag_view(0, 30)
    editor["add"].click()
    drawn = editor.document["keyframes"]
    assert editor.times == [0, 0.5, 1]
    assert drawn[0]["position"] == [0, 0, 0]
    assert drawn[1]["position"][0] != 0
    assert drawn[1]["position"][0] == pytest.approx(drawn[2]["position"][0], abs=0.3)
    assert drawn[2]["position"][1] != drawn[1]["position"][1]
    editor["mark"].nth(1).click()
    for name, value in {"zoom": "1.25", "time": "0.4", "roll": "10"}.items():
        editor.enter(name, value)
    editor["ease"].select_option("out")
    middle = editor.document["keyframes"][1]
    assert (middle["zoom"], middle["ease"], middle["time"]) == (1.25, "out", 0.4)
    assert float(editor["frame"].input_value()) == pytest.approx(2.6)
    fov_deg = 2 * np.degrees(np.arctan(128 / (2 * 1.25 * 110)))
    assert float(editor["fov"].input_value()) == pytest.approx(fov_deg, abs=1e-3)
    path = path_of(editor.text, scene, scene.num_frames)
    editor.assert_shows_path(path)
    shot("drawn")

    shown = editor.run()
    written = [_views(run) for run in (first_run, shown)]
    assert written[0] == written[1]  # an edit of the path writes no file of the scene again
    files = next(output["images"] for output in shown.values() if "images" in output)
    wanted = render(scene, path, RenderSettings(mode="nearest")).rgb
    assert (wanted[0] - wanted[-1]).abs().mean() > 0.02  # the path goes somewhere
    for file, picture in zip(files, wanted, strict=True):
        content = (comfy.base / file["type"] / file["subfolder"] / file["filename"]).read_bytes()
        found = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) / 255
        assert np.abs(found - picture.numpy()).max() < 1.5 / 255
    assert not page.ours()


def _views(shown):
    return [output["more4d_view"] for output in shown.values() if "more4d_view" in output]


def test_every_preset_of_the_backend_is_a_start(page, load_editor, scene):
    editor = load_editor(num_frames=49)
    editor.tab.locator(".more4d-note button").click()  # runs the editor, not the renderer behind
    editor.wait("scene")
    options = editor["presets"].locator("option")
    assert options.evaluate_all("all => all.map(o => o.value)")[1:] == list(path_descriptions())
    for name in path_descriptions():
        editor.tab.evaluate(f"() => {editor.js}.usePreset('{name}', 1)")
        drawn, wanted = path_of(editor.text, scene, 49), scene_path(name, scene, 49)
        editor.assert_shows_path(drawn)
        poses, others = (invert_rigid(p.world_to_camera) for p in (drawn, wanted))
        extent = (others[:, :3, 3] - others[:, :3, 3].mean(0)).norm(dim=-1).max()
        far = (poses[:, :3, 3] - others[:, :3, 3]).norm(dim=-1).max()
        assert far <= 0.0101 * extent + 1e-5, name  # keyframes_from_cameras allows 1 % and 0.01
        assert (poses - others)[:, :3, :3].abs().max() < 0.0101, name
        zoom = drawn.intrinsics[:, 0, 0] / wanted.intrinsics[:, 0, 0]
        assert (zoom - 1).abs().max() < 0.0101, name
    assert not page.ours()


def test_amplitude_scales_a_preset_and_a_wrong_one_is_said(page, comfy, load_editor):
    editor = load_editor(num_frames=49)
    editor["amplitude"].fill("0.5")
    editor["presets"].select_option("truck-right")
    editor.wait("keyframes.length === 2")
    end = editor.document["keyframes"][1]["position"]
    full = comfy.get("/more4d/camera_presets/truck-right")["keyframes"][1]["position"]
    assert full[0] != 0
    assert end == pytest.approx([x / 2 for x in full], abs=1e-7)
    before = editor.text
    editor.tab.evaluate(f"() => {editor.js}.usePreset('orbit-lef', 1)")
    assert "Did you mean orbit-left" in editor["error"].inner_text()
    assert editor.text == before


def test_the_keyboard_edits_and_undoes_without_the_host(page, load_editor):
    editor = load_editor(keyframes=json.dumps(_GIVEN))
    editor.run()
    keyboard = editor.tab.keyboard
    editor.tab.evaluate(f"() => {{ window.kept = {editor.js} }}")
    editor["mark"].first.focus()
    keyboard.press("ArrowRight")
    assert editor.times == [0.25, 1]
    keyboard.press("ArrowDown")
    assert editor.get("selected") == 1
    keyboard.press("Delete")
    assert editor.times == [0.25]
    assert editor.tab.evaluate("() => document.activeElement.dataset.name") == "mark"
    keyboard.press("k")
    assert len(editor.times) == 2
    keyboard.press("BracketLeft")
    assert editor.get("selected") == 0
    editor.canvas.focus()
    for _ in range(3):
        keyboard.press("Control+z")
        editor.tab.wait_for_timeout(200)  # the host looks at the key in its next picture
    assert editor.document == _GIVEN
    keyboard.press("Control+y")
    keyboard.press("Control+Shift+Z")
    assert editor.times == [0.25]
    editor["undo"].click()
    assert editor.times == [0.25, 1]
    assert editor.tab.evaluate(f"() => window.kept === {editor.js}")  # no node was made anew
    assert not page.ours()


def test_the_hosts_shortcuts_work_in_fields_but_for_those_that_edit_text(page, load_editor):
    """Ctrl+S in a field is meant for the workflow; unheard, the browser saves its own page."""
    editor = load_editor(keyframes=json.dumps(_GIVEN))
    editor["text"].evaluate("details => { details.open = true }")
    editor.tab.evaluate(
        f"""() => {{ window.heard = [];
        {editor.js}.element.parentElement.addEventListener('keydown', event => {{
            if (!event.key.startsWith('Control')) window.heard.push(event.code);
            event.stopPropagation(); }}) }}"""
    )
    for field in ("zoom", "json"):
        editor[field].focus()
        for key in ("Control+s", "Control+Enter", "Control+a", "Control+z", "1"):
            editor.tab.keyboard.press(key)
    assert editor.tab.evaluate("() => window.heard") == ["KeyS", "Enter"] * 2
    assert not page.ours()


def test_marks_are_dragged_in_one_step_and_past_each_other(page, load_editor):
    editor = load_editor(keyframes=json.dumps(_GIVEN))
    editor.run()
    editor["mark"].first.hover()  # waits until nothing moves on its own
    track = editor["track"].bounding_box()
    mouse = editor.tab.mouse
    mouse.down()
    for part in (0.2, 0.5, 0.75):
        mouse.move(track["x"] + part * track["width"], track["y"] + 8)
    mouse.up()
    assert editor.times == [0.75, 1]
    editor["later"].click()
    first, second = editor.document["keyframes"]
    assert "note" not in first
    assert second["note"] == "[\n 1 ]"
    editor["track"].dblclick(position={"x": 0.25 * editor["track"].bounding_box()["width"], "y": 4})
    assert editor.times == [0.25, 0.75, 1]
    for _ in range(3):
        editor["undo"].click()
    assert editor.document == _GIVEN
    assert not page.ours()
