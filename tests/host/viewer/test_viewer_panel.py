"""The panel of the viewer in a page: held against the renderer, and used by mouse and keys."""

import logging
import time

import numpy as np
import pytest
import torch

from more4d_backend.geometry import project, transform_points
from more4d_backend.rendering import RenderSettings, render
from more4d_backend.scene import Cameras

pytestmark = pytest.mark.host

log = logging.getLogger(__name__)

_SCREENSHOT = """async () => { const blob = await window.panel.view.screenshot();
    const reader = new FileReader(); reader.readAsDataURL(blob);
    await new Promise(done => { reader.onload = done }); return reader.result; }"""
_POSE = "() => Array.from(window.panel.view.pickCamera().worldToCamera)"


def page_cameras(cameras):
    """Return what the page has for cameras."""
    K = cameras.intrinsics
    return [
        {
            "worldToCamera": cameras.world_to_camera[i].flatten().tolist(),
            "fx": float(K[i, 0, 0]), "fy": float(K[i, 1, 1]),
            "cx": float(K[i, 0, 2]), "cy": float(K[i, 1, 2]),
            "width": cameras.width, "height": cameras.height,
        }
        for i in range(cameras.num_frames)
    ]  # fmt: skip


def test_the_page_projects_points_where_the_renderer_does(tab, three_cameras):
    torch.manual_seed(0)
    world = torch.randn(100, 3) * torch.tensor([1.0, 1.0, 0.5]) + torch.tensor([0.0, 0.0, 3.0])
    seen = transform_points(world, three_cameras.world_to_camera[:, None])
    wanted, depth = project(seen, three_cameras.intrinsics[:, None])
    assert (depth > 0).all()
    found = tab.evaluate(
        """async ([cameras, points]) => {
        const { project } = await import('/extensions/more4d/js/camera_math.js');
        const pixel = (c, p) => { const { x, y } = project(c, p); return [x, y]; };
        return cameras.map(c => points.map(p => pixel(c, p))) }""",
        [page_cameras(three_cameras), world.tolist()],
    )
    error = (torch.tensor(found) - wanted).norm(dim=-1).max()
    log.info("largest distance of 100 points x 3 cameras: %.5f px", error)
    assert error < 0.01


def test_each_point_is_drawn_on_the_pixel_of_the_renderer(
    panel, put, loose_points, three_cameras, picture_of
):
    """The shader, not the module: single white points on black, cameras turned and rolled."""
    torch.manual_seed(1)
    world = torch.randn(100, 3) * torch.tensor([0.5, 0.3, 0.3]) + torch.tensor([0.0, 0.0, 3.0])
    tab = panel(put("points", loose_points(world[None])))
    for number, camera in enumerate(page_cameras(three_cameras)):
        tab.evaluate("c => { window.camera = c }", camera)
        drawn = picture_of(
            tab,
            """() => { const data = window.panel.view.pictureOf(window.camera);
            const c = document.createElement('canvas'); c.width = data.width;
            c.height = data.height; c.getContext('2d').putImageData(data, 0, 0);
            return c.toDataURL(); }""",
        )
        rows, columns = np.nonzero(drawn[..., 0] > 128)
        wanted, _ = project(
            transform_points(world, three_cameras.world_to_camera[number]),
            three_cameras.intrinsics[number],
        )
        inside = ((wanted > 0.5) & (wanted < torch.tensor([511.5, 367.5]))).all(-1)
        centers = torch.tensor(np.stack([columns, rows], -1)) + 0.5
        far = (wanted[inside][:, None] - centers[None]).abs().amax(-1).min(-1).values
        log.info("camera %d: %d points, %.3f px from a centre", number, inside.sum(), far.max())
        # A point is inside its pixel: half a pixel from the centre, and 0.03 for 16 bits.
        assert inside.sum() > 50
        assert far.max() < 0.53


def test_looking_through_a_camera_shows_the_nearest_render(
    panel, put, scene, three_cameras, picture_of
):
    path = Cameras(
        world_to_camera=three_cameras.world_to_camera[[0, 1, 2] * 17][: scene.num_frames],
        intrinsics=three_cameras.intrinsics[[0, 1, 2] * 17][: scene.num_frames],
        height=three_cameras.height,
        width=three_cameras.width,
    )
    frames = [0, 16, 32, 48]
    wanted = render(scene.frames(frames), path.frames(frames), RenderSettings(mode="nearest"))
    tab = panel(put("path", scene, path))
    tab.evaluate("() => window.panel.view.lookThrough('path')")
    for i, frame in enumerate(frames):
        tab.evaluate(f"() => window.panel.view.setFrame({frame})")
        picture = picture_of(tab, _SCREENSHOT)
        assert picture.shape[:2] == (path.height, path.width)
        covered = (wanted.alpha[i] > 0).numpy()
        difference = np.abs(picture - wanted.rgb[i].numpy() * 255).max(-1)
        share = (difference[covered] <= 8.5).mean()
        holes = (picture[~covered].max(-1) == 0).mean()
        log.info(
            "frame %d: %.4f of covered pixels within 8/255, %.4f of holes", frame, share, holes
        )
        assert share >= 0.95
        assert holes >= 0.95
    assert "as rendered" in tab.inner_text(".more4d-through")


def test_half_the_density_comes_first_and_all_of_it_on_request(panel, put, scene):
    half, full = put("half", scene, stride=2), put("full", scene)
    start = time.monotonic()
    tab = panel(half, full)
    tab.evaluate("() => { const v = window.panel.view; v.drawNow(); v.graphics.finish(); }")
    first_s = time.monotonic() - start
    assert tab.evaluate("() => window.panel.view.scene.numPoints") == 47_104
    assert digits(tab.inner_text(".more4d-info")) == "47104188416"
    rate = tab.evaluate(
        """() => { const v = window.panel.view; const start = performance.now();
        for (let i = 0; i < 98; i++) { v.setFrame(i % 49); v.drawNow(); v.graphics.finish(); }
        return 98 / (performance.now() - start) * 1000; }"""
    )
    start = time.monotonic()
    tab.click("[data-action=full]")
    tab.wait_for_function("() => window.panel.view.scene.numPoints === 188416")
    tab.evaluate("() => { const v = window.panel.view; v.drawNow(); v.graphics.finish(); }")
    log.info(
        "first picture after %.2f s; %.0f frames/s at 47 104 points; all 188 416 after %.2f s",
        first_s, rate, time.monotonic() - start,
    )  # fmt: skip
    assert digits(tab.inner_text(".more4d-info")) == "188416"
    assert not tab.is_visible("[data-action=full]")


def digits(text):
    return "".join(c for c in text if c.isdigit())


def test_it_plays_over_and_over_and_stops(panel, put, small_scene):
    tab = panel(put("small", small_scene))
    tab.evaluate(
        """() => { window.seen = []; window.panel.on.onFrame = f => window.seen.push(f);
        window.panel.changeOptions({speed: 2}) }"""
    )
    assert tab.locator("select").input_value() == "2"
    tab.click("[data-action=play]")
    assert tab.get_attribute("[data-action=play]", "aria-label") == "Pause"
    tab.wait_for_function("() => window.seen.filter(f => f === 0).length >= 2", timeout=60_000)
    tab.click("[data-action=play]")
    frame = tab.evaluate("() => { window.seen = []; return window.panel.view.frame }")
    tab.wait_for_timeout(400)
    assert tab.evaluate("() => window.seen.length") == 0
    assert tab.inner_text(".more4d-counter").startswith(f"{frame + 1} / 9")


def test_every_control_changes_the_picture(panel, put, small_scene, shown):
    tab = panel(put("small", small_scene))
    tab.evaluate(
        """() => { const c = window.panel.view.controls; c.orbit(0.5, 0.2); c.approach(0.6);
        window.panel.view.setFrame(8) }"""
    )
    before = shown(tab)
    slider = tab.locator("input[type=range]").first
    slider.focus()
    slider.press("Home")
    assert tab.evaluate("() => window.panel.view.frame") == 0
    assert changed(shown(tab), before)
    slider.press("End")
    assert not changed(shown(tab), before)
    for name in ("frusta", "trails", "unseen", "holes"):
        option = tab.locator(f"[data-option={name}]")
        pressed = option.get_attribute("aria-pressed")
        option.focus()
        option.press("Enter")
        assert option.get_attribute("aria-pressed") != pressed
        assert changed(shown(tab), before), name
        option.press("Enter")
        assert not changed(shown(tab), before)
    tab.locator("input[type=range]").nth(1).fill("4")
    assert changed(shown(tab), before)


def changed(picture, before):
    return picture.shape != before.shape or (np.abs(picture - before).max(-1) > 30).sum() > 50


def test_keys_fly_look_and_step_but_only_inside_the_view(panel, put, small_scene):
    tab = panel(put("small", small_scene))
    tab.evaluate(
        """() => { window.outside = [];
        window.addEventListener('keydown', e => window.outside.push(e.code)) }"""
    )
    tab.focus("canvas")
    home = np.array(tab.evaluate(_POSE)).reshape(4, 4)
    for key, axis, sign in (("w", 2, 1), ("s", 2, -1), ("a", 0, -1), ("d", 0, 1), ("e", 1, -1)):
        tab.keyboard.down(key)
        tab.wait_for_function(
            "before => window.panel.view.pose.some((x, i) => Math.abs(x - before[i]) > 1e-3)",
            arg=home.flatten().tolist(),
        )
        tab.keyboard.up(key)
        # The camera is at -R^T t; R is the identity here.
        position = -np.array(tab.evaluate(_POSE)).reshape(4, 4)[:3, 3]
        assert position[axis] * sign > 0
        assert np.abs(np.delete(position, axis)).max() < 1e-9
        tab.keyboard.press("Home")
        assert np.array(tab.evaluate(_POSE)) == pytest.approx(home.flatten())
    tab.keyboard.press(".")
    tab.keyboard.press(".")
    tab.keyboard.press(",")
    assert tab.evaluate("() => window.panel.view.frame") == 1
    tab.keyboard.press("c")
    assert tab.is_visible(".more4d-through")
    tab.keyboard.press("Escape")
    assert not tab.is_visible(".more4d-through")
    tab.keyboard.press("Delete")  # would remove the node, and r would ask for a reload
    tab.keyboard.press("r")
    assert tab.evaluate("() => window.outside") == []
    tab.keyboard.press("Control+Enter")
    assert "Enter" in tab.evaluate("() => window.outside")


def test_the_mouse_orbits_approaches_and_centers(panel, put, small_scene):
    tab = panel(put("small", small_scene))
    box = tab.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    target = "() => { const v = window.panel.view; return v.target(v.pickCamera().worldToCamera) }"
    position = "() => window.panel.view.pickCamera().position"
    before, start = tab.evaluate(target), np.array(tab.evaluate(position))
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 80, y + 30, steps=4)
    tab.mouse.up()
    assert tab.evaluate(target) == pytest.approx(before, abs=1e-6)
    now = np.array(tab.evaluate(position))
    assert np.linalg.norm(now - start) > 0.3
    distance = np.linalg.norm(now - before)
    assert distance == pytest.approx(np.linalg.norm(start - before))
    tab.mouse.wheel(0, -200)
    assert np.linalg.norm(np.array(tab.evaluate(position)) - before) < distance
    assert tab.evaluate(target) == pytest.approx(before, abs=1e-6)
    tab.mouse.dblclick(x + 60, y + 20)
    assert tab.evaluate(target) != pytest.approx(before, abs=1e-2)


def test_a_screenshot_has_the_size_of_what_is_seen(panel, put, small_scene, picture_of):
    tab = panel(put("small", small_scene))
    size = tab.evaluate("() => [window.panel.view.canvas.height, window.panel.view.canvas.width]")
    assert list(picture_of(tab, _SCREENSHOT).shape[:2]) == size
    tab.click("[data-action=through]")
    assert picture_of(tab, _SCREENSHOT).shape[:2] == (92, 128)
    with tab.expect_download() as download:
        tab.click("[data-action=screenshot]")
    assert download.value.suggested_filename == "more4d_0000.png"


def test_removed_panels_give_their_graphics_memory_back(tab, put, small_scene):
    """A page may have 16 contexts: the seventeenth takes the first one's, with a warning."""
    url, warnings = put("small", small_scene), []
    tab.on("console", lambda message: warnings.append(message.text))
    lost = tab.evaluate(
        """async url => {
        const { ScenePanel } = await import('/extensions/more4d/js/scene_panel.js');
        const lost = [];
        for (let i = 0; i < 24; i++) {
            const panel = new ScenePanel();
            document.body.append(panel.element);
            await panel.load({half: url, full: url});
            const { gl } = panel.view.graphics;
            panel.view.drawNow(); panel.destroy(); lost.push(gl.isContextLost());
        }
        return lost; }""",
        url,
    )
    assert lost == [True] * 24
    assert not [text for text in warnings if "context" in text.lower()]


def test_a_lost_context_comes_back_with_the_same_picture(panel, put, small_scene, shown):
    tab = panel(put("small", small_scene))
    before = shown(tab)
    tab.evaluate(
        """() => { const { gl } = window.panel.view.graphics;
        window.loss = gl.getExtension('WEBGL_lose_context'); window.loss.loseContext() }"""
    )
    tab.wait_for_selector(".more4d-note:not([hidden])")
    assert "graphics memory" in tab.inner_text(".more4d-note")
    tab.evaluate("() => window.loss.restoreContext()")
    tab.wait_for_selector(".more4d-note", state="hidden")
    assert not changed(shown(tab), before)


def test_it_speaks_chinese_where_the_host_does(panel, put, small_scene, screenshots):
    tab = panel()
    try:
        tab.evaluate(
            """() => { window.panel.destroy();
            window.app = {extensionManager: {setting: {get: () => 'zh'}}} }"""
        )
        panel(put("small", small_scene))
        assert tab.inner_text("[data-action=through]") == "相机视角"
        words = tab.inner_text(".more4d-panel")
        assert not [c for c in words.replace("x", "").replace("s", "") if c.isalpha() and c < "z"]
        tab.screenshot(path=str(screenshots / "viewer-zh.png"))
    finally:
        tab.evaluate("() => { delete window.app }")
