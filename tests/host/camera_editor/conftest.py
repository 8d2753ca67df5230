"""A graph with camera editors in the real page, and what a user does with one."""

import json

import pytest
import torch

from more4d_backend.geometry import intrinsics_from_focal, pixel_centers, unproject
from more4d_backend.scene import Cameras, PointMaps, Scene4D
from more4d_backend.scene_files import load_scene, save_scene
from workflows.graph import Graph, page_file

_FILE = "editor.safetensors"
_FRAMES = 5
_SIZE = [660, 860]
_LONG_MS = 60_000
_IDS = "() => app.graph._nodes.filter(n => n.more4dEditor).map(n => Number(n.id))"
_RUN = """async () => { const { api } = await import('/scripts/api.js'); const shown = {};
    const executed = e => { shown[e.detail.node] = e.detail.output };
    api.addEventListener('executed', executed);
    const end = await new Promise(done => {
        for (const kind of ['execution_success', 'execution_error'])
            api.addEventListener(kind, e => done([kind, e.detail]), {once: true});
        app.queuePrompt(0); });
    api.removeEventListener('executed', executed);
    return [...end, shown]; }"""


class Editor:
    """One of the editors of the page, numbered in the order of their nodes' ids."""

    def __init__(self, page, number=0):
        self.page, self.tab = page, page.page
        self.id = sorted(self.tab.evaluate(_IDS))[number]
        self.node = f"app.graph._nodes.find(n => Number(n.id) === {self.id})"

    @property
    def js(self):
        return f"{self.node}.more4dEditor"

    @property
    def panel(self):
        self.tab.evaluate(f"() => {{ {self.js}.element.dataset.node = {self.id} }}")
        return self.tab.locator(f".more4d-camera-editor[data-node='{self.id}']")

    def __getitem__(self, name):
        """Return controls by name."""
        return self.panel.locator(f"[data-name='{name}']")

    @property
    def canvas(self):
        return self.panel.locator(".more4d-stage > canvas")

    def get(self, what):
        """Return a property of the editor, such as `selected`."""
        return self.tab.evaluate(f"() => {self.js}.{what}")

    @property
    def text(self):
        """What the node's widget has."""
        return self.tab.evaluate(
            f"() => {self.node}.widgets.find(w => w.name === 'keyframes').value"
        )

    @property
    def document(self):
        return json.loads(self.text)

    @property
    def times(self):
        return [k["time"] for k in self.document["keyframes"]]

    def enter(self, name, value):
        self[name].fill(value)
        self[name].press("Enter")

    def wait(self, what):
        """Wait until an expression of the editor, such as `scene`, is true."""
        self.tab.wait_for_function(f"() => {self.js}.{what}", timeout=_LONG_MS)

    def run(self):
        """Queue the page's graph, wait for the scene, and return what the nodes showed."""
        shown = self.run_without_scene()
        self.wait("scene")
        return shown

    def run_without_scene(self):
        """Queue the page's graph, and return what the nodes showed."""
        end, detail, shown = self.tab.evaluate(_RUN)
        assert end == "execution_success", detail
        return shown

    def drag_view(self, dx, dy):
        box = self.canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.tab.mouse.move(x, y)
        self.tab.mouse.down()
        self.tab.mouse.move(x + dx, y + dy, steps=4)
        self.tab.mouse.up()

    def assert_shows_path(self, wanted):
        """Assert that the page's cameras of all frames are these."""
        shown = self.get("view.path")
        poses = torch.tensor([camera["worldToCamera"] for camera in shown], dtype=torch.float32)
        poses = poses.reshape(-1, 4, 4)
        # float32 in Python; the page has the scene's scale in float64
        torch.testing.assert_close(poses, wanted.world_to_camera, rtol=0, atol=2e-6)
        for name, row, column in (("fx", 0, 0), ("fy", 1, 1), ("cx", 0, 2), ("cy", 1, 2)):
            found = torch.tensor([camera[name] for camera in shown], dtype=torch.float32)
            torch.testing.assert_close(found, wanted.intrinsics[:, row, column], rtol=1e-6, atol=0)
        assert {(c["width"], c["height"]) for c in shown} == {(wanted.width, wanted.height)}


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def scene(scene_file):
    return load_scene(scene_file)


@pytest.fixture
def editor_graph(scene_file):
    """`editor_graph(count=1, **inputs)`: a graph in which the last editor's path is rendered."""

    def make(count=1, **inputs):
        graph = Graph()
        scene = graph.add("More4DSceneLoad", 0, file=_FILE)["scene"]
        editors = [
            graph.add("More4DCameraEditor", 1 + i, scene=scene, **inputs) for i in range(count)
        ]
        path = editors[-1]["camera_path"]
        view = graph.add("More4DRender", count + 1, scene=scene, camera_path=path, mode="nearest")
        graph.add("PreviewImage", count + 2, images=view["image"])
        return graph

    return make


@pytest.fixture
def load_editor(page, comfy, editor_graph):
    """`load_editor(count=1, **inputs)`: load such a graph in the page; return its first editor."""

    def load(count=1, **inputs):
        file = page_file(editor_graph(count, **inputs), comfy.get("/object_info"))
        for node in file["nodes"]:
            node["pos"][0] *= 2.3
            if node["type"] == "More4DCameraEditor":
                node["size"] = _SIZE
        page.problems.clear()
        page.load(file)
        page.show_all()
        return Editor(page)

    return load


@pytest.fixture
def editor_at(page):
    """`editor_at(number)`: one of several editors of the page."""
    return lambda number: Editor(page, number)


@pytest.fixture
def shot(page, comfy, screenshots):
    """`shot(name)`: keep a picture of the page as it is."""
    version = comfy.get("/system_stats")["system"]["comfyui_version"]
    return lambda name: page.page.screenshot(
        path=str(screenshots / f"editor-{name}-{version}-{page.renderer}.png")
    )
