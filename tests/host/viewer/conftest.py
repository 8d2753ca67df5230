"""Scenes for the viewer, and its panel in a page of the host that has nothing else in it."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from more4d_backend.geometry import (
    intrinsics_from_focal,
    look_at,
    pixel_centers,
    unproject,
)
from more4d_backend.scene import Cameras, PointTracks, Scene4D
from more4d_backend.scene_files.view_file import ViewSettings, write_view

HEIGHT, WIDTH, FRAMES = 368, 512, 49


@pytest.fixture(scope="session")
def moving_scene():
    """`moving_scene(height, width, frames)`: a ball rolls before a smooth wall, which stands."""

    def make(height, width, frames):
        pixels = pixel_centers(height, width)
        x, y = (pixels / torch.tensor([width, height])).unbind(-1)
        wall = 3 + 0.3 * torch.sin(5 * x) * torch.cos(4 * y)
        from_ball = ((x - 0.3) * width / height).square() + (y - 0.5).square()
        on_ball = from_ball < 0.05
        depth = torch.where(on_ball, 2 - (0.05 - from_ball).clamp(min=0).sqrt(), wall)
        K = intrinsics_from_focal(torch.tensor([0.9 * width]), height, width)
        first = unproject(pixels, depth, K).flatten(0, 1)
        motion = torch.linspace(0, 1, frames)[:, None, None] * torch.tensor([0.9, 0.1, 0.0])
        colors = torch.stack([x, y, 0.5 + 0.4 * torch.sin(9 * x + 7 * y)], dim=-1)
        colors[on_ball] = torch.stack([0.9 + 0 * x, 0.3 + 0.4 * x, 0.2 + y / 3], -1)[on_ball]
        visibility = torch.ones(frames, height * width, dtype=torch.bool)
        visibility[frames // 2 :, : height * width // 9] = False
        points = PointTracks(
            positions=first + motion * on_ball.flatten()[:, None],
            colors=colors.flatten(0, 1),
            visibility=visibility,
            grid_hw=(height, width),
        )
        source = Cameras(
            world_to_camera=torch.eye(4)[None], intrinsics=K, height=height, width=width
        ).repeated(frames)
        return Scene4D(points=points, cameras=source, fps=8.0)

    return make


@pytest.fixture(scope="session")
def scene(moving_scene):
    """What the released model makes of a picture: 49 frames of 188 416 points."""
    return moving_scene(HEIGHT, WIDTH, FRAMES)


@pytest.fixture(scope="session")
def small_scene(moving_scene):
    return moving_scene(92, 128, 9)


@pytest.fixture(scope="session")
def three_cameras():
    position = torch.tensor([[0.4, -0.3, 0.2], [-0.6, 0.2, 0.5], [0.2, 0.4, -0.8]])
    target = torch.tensor([[0.0, 0.0, 3.0], [0.2, 0.1, 2.5], [-0.3, 0.0, 3.0]])
    up = torch.tensor([[0.0, -1.0, 0.0], [0.2, -1.0, 0.1], [-0.1, -1.0, 0.0]])
    focal_px = torch.tensor([460.0, 380.0, 610.0])
    return Cameras(
        world_to_camera=look_at(position, target, up),
        intrinsics=intrinsics_from_focal(focal_px, HEIGHT, WIDTH),
        height=HEIGHT,
        width=WIDTH,
    )


@pytest.fixture
def loose_points(small_scene):
    """`loose_points(positions)`: a scene of white points, seen by the small scene's cameras."""

    def make(positions):
        frames, count, _ = positions.shape
        points = PointTracks(
            positions=positions,
            colors=torch.ones(count, 3),
            visibility=torch.ones(frames, count, dtype=torch.bool),
        )
        cameras = small_scene.cameras.frames([0]).repeated(frames)
        return replace(small_scene, points=points, cameras=cameras)

    return make


@pytest.fixture
def put(comfy):
    """`put(name, scene, path=None, stride=1)`: a view file on the host, and its address."""

    def write(name, scene, path=None, stride=1):
        folder = comfy.base / "temp" / "more4d"
        folder.mkdir(parents=True, exist_ok=True)
        write_view(folder / f"{name}.m4dview", scene, path, ViewSettings(stride=stride))
        return f"/api/view?filename={name}.m4dview&subfolder=more4d&type=temp"

    return write


@pytest.fixture(scope="module")
def tab(comfy, browser):
    """A page of the host, under its content security policy, with nothing of the host in it."""
    tab = browser.new_page(viewport={"width": 1000, "height": 800})
    tab.goto(f"{comfy.url}/system_stats")
    tab.wait_for_function("() => document.readyState === 'complete'")
    yield tab
    tab.close()


@pytest.fixture
def panel(tab):
    """`panel(half=None, full=None)`: a panel in the page, and what it was given; returns its tab.

    Is `window.panel`; removed afterwards.
    """

    def show(half=None, full=None):
        tab.evaluate(
            """async ([half, full]) => {
            const { ScenePanel } = await import('/extensions/more4d/js/scene_panel.js');
            const panel = window.panel = new ScenePanel();
            panel.element.style.cssText = `position: fixed; left: 0; top: 0; z-index: 99999;
                width: 640px; height: 600px; background: #222`;
            document.body.append(panel.element);
            if (half) await panel.load({half, full: full ?? half}); }""",
            [half, full],
        )
        return tab

    yield show
    tab.evaluate("() => { window.panel?.destroy(); window.panel = null; }")


@pytest.fixture(scope="session")
def picture_of():
    """`picture_of(tab, script)`: (height, width, 3) of the data URL that a script gives."""

    def read(tab, script):
        content = base64.b64decode(tab.evaluate(script).split(",")[1])
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)

    return read


@pytest.fixture(scope="session")
def shown(picture_of):
    """`shown(tab, view)`: the canvas as it is drawn now."""

    def read(tab, view="window.panel.view"):
        return picture_of(tab, f"() => {{ {view}.drawNow(); return {view}.canvas.toDataURL(); }}")

    return read
