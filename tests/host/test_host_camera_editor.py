"""The camera editor in the real page: its clicks, its JSON, and the path that is rendered."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from more4d_backend.camera_paths import scene_scale
from more4d_backend.camera_paths.keyframes import cameras_from_keyframes, keyframes_from_json
from more4d_backend.geometry import intrinsics_from_focal, pixel_centers, unproject
from more4d_backend.rendering import RenderSettings, render
from more4d_backend.scene import Cameras, PointMaps, Scene4D
from more4d_backend.scene_files import load_scene, save_scene
from workflows.graph import Graph, page_file

pytestmark = pytest.mark.host

_FILE = "editor.safetensors"
_FRAMES = 5
_EDITOR = "app.graph._nodes.find(n => n.more4dEditor).more4dEditor"
_LONG_MS = 60_000


@pytest.fixture(scope="module")
def scene_file(comfy):
    """A wavy wall with a ball before it, five frames, in the host's input folder."""
    height, width = 96, 128
    pixels = pixel_centers(height, width)
    x, y = (pixels / torch.tensor([width, height])).unbind(-1)
    K = intrinsics_from_focal(torch.tensor([110.0]), height, width)
    maps = []
    for frame in range(_FRAMES):
        from_ball = ((x - 0.3 - 0.08 * frame) * 1.33).square() + (y - 0.5).square()
        wall = 3 + 0.3 * torch.sin(5 * x) * torch.cos(4 * y)
        maps.append(unproject(pixels, torch.where(from_ball < 0.04, 2.0, wall), K))
    checks = ((8 * x).floor() + (6 * y).floor()) % 2
    colors = torch.stack([x, y, 0.3 + 0.5 * checks], -1).expand(_FRAMES, -1, -1, -1)
    points = PointMaps(
        positions=torch.stack(maps), colors=colors.contiguous(),
        valid=torch.ones(_FRAMES, height, width, dtype=torch.bool),
    )  # fmt: skip
    camera = Cameras(
        world_to_camera=torch.eye(4)[None], intrinsics=K, height=height, width=width
    ).repeated(_FRAMES)
    path = comfy.base / "input" / _FILE
    save_scene(path, Scene4D(points=points, cameras=camera, fps=8.0))
    return path


@pytest.fixture
def load_editor(page, comfy, scene_file, schemas):
    """`load_editor(count=1)`: load a graph with editors in the page, and return its tab."""

    def load(count=1):
        graph = Graph()
        scene = graph.add("More4DSceneLoad", 0, file=_FILE)["scene"]
        for column in range(1, count + 1):
            path = graph.add("More4DCameraEditor", column, scene=scene)["camera_path"]
        view = graph.add("More4DRender", count + 1, scene=scene, camera_path=path, mode="nearest")
        graph.add("PreviewImage", count + 2, images=view["image"])
        page.problems.clear()
        page.load(page_file(graph, comfy.get("/object_info")))
        page.show_all()
        return page.page

    return load


@pytest.fixture
def shot(page, screenshots):
    return lambda name: page.page.screenshot(
        path=str(screenshots / f"editor-{name}-{page.renderer}.png")
    )


def run_in_page(tab):
    """Queue the page's graph; return how it ended, and what the nodes showed."""
    return tab.evaluate(
        """async () => { const { api } = await import('/scripts/api.js'); const shown = {};
        const executed = e => { shown[e.detail.node] = e.detail.output };
        api.addEventListener('executed', executed);
        const end = await new Promise(done => {
            for (const kind of ['execution_success', 'execution_error'])
                api.addEventListener(kind, e => done([kind, e.detail]), {once: true});
            app.queuePrompt(0); });
        api.removeEventListener('executed', executed);
        return [...end, shown]; }"""
    )


def run_until_shown(tab):
    end, detail, shown = run_in_page(tab)
    assert end == "execution_success", detail
    tab.wait_for_function(f"() => {_EDITOR}.scene", timeout=_LONG_MS)
    return shown


def control(tab, name, number=0):
    return tab.locator(f".more4d-camera-editor [data-name='{name}']").nth(number)


def document(tab):
    """Return what the node's widget has."""
    return json.loads(
        tab.evaluate(
            "() => app.graph._nodes.find(n => n.more4dEditor)"
            ".widgets.find(w => w.name === 'keyframes').value"
        )
    )


def drag_view(tab, dx, dy):
    box = tab.locator(".more4d-camera-editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + dx, y + dy, steps=4)
    tab.mouse.up()


def test_the_path_that_was_clicked_is_the_path_that_is_rendered(
    page, comfy, load_editor, scene_file, shot
):
    tab = load_editor()
    assert [k["time"] for k in document(tab)["keyframes"]] == [0]
    run_until_shown(tab)
    drag_view(tab, 40, 0)
    control(tab, "add").click()
    drag_view(tab, 0, 30)
    control(tab, "add").click()
    drawn = document(tab)["keyframes"]
    assert [k["time"] for k in drawn] == [0, 0.5, 1]
    assert drawn[0]["position"] == [0, 0, 0]
    assert drawn[1]["position"][0] != 0
    assert drawn[1]["position"][0] == pytest.approx(drawn[2]["position"][0], abs=0.3)
    assert drawn[2]["position"][1] != drawn[1]["position"][1]
    control(tab, "mark", 1).click()
    control(tab, "zoom").fill("1.25")
    control(tab, "zoom").press("Enter")
    control(tab, "ease").select_option("out")
    control(tab, "time").fill("0.4")
    control(tab, "time").press("Enter")
    middle = document(tab)["keyframes"][1]
    assert (middle["zoom"], middle["ease"], middle["time"]) == (1.25, "out", 0.4)
    shot("drawn")

    shown = run_until_shown(tab)
    files = next(output["images"] for output in shown.values() if "images" in output)
    scene = load_scene(scene_file)
    keyframes = keyframes_from_json(json.dumps(document(tab)))
    path = cameras_from_keyframes(
        keyframes, scene.cameras.frames([0]), _FRAMES, scene_scale=scene_scale(scene)
    )
    wanted = render(scene, path, RenderSettings(mode="nearest")).rgb
    assert (wanted[0] - wanted[-1]).abs().mean() > 0.02  # the path goes somewhere
    for file, picture in zip(files, wanted, strict=True):
        content = (comfy.base / file["type"] / file["subfolder"] / file["filename"]).read_bytes()
        found = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) / 255
        assert np.abs(found - picture.numpy()).max() < 1.5 / 255
    assert not page.ours()
