"""Scenes and conditions that the viewer's panel has to live with."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from more4d_backend.scene import PointMaps

pytestmark = pytest.mark.host

_LONG_MS = 60_000


def note(tab):
    tab.wait_for_selector(".more4d-note:not([hidden])")
    return tab.inner_text(".more4d-note")


def test_before_a_run_it_says_what_to_do(panel):
    tab = panel()
    assert note(tab) == "Run the workflow to see the scene."
    assert all(tab.locator(f"[data-option={n}]").is_disabled() for n in ("trails", "holes"))
    assert tab.locator("[data-action=play]").is_disabled()


def test_a_scene_without_points_says_so(panel, put, loose_points):
    tab = panel(put("none", loose_points(torch.zeros(3, 0, 3))))
    assert note(tab) == "The scene has no points."
    assert tab.inner_text(".more4d-counter").startswith("1 / 3")
    tab.click("[data-option=trails]")
    tab.evaluate("() => { window.panel.view.setFrame(2); window.panel.view.drawNow() }")


def test_where_memory_is_short_the_scene_that_is_shown_stays(panel, put, small_scene, shown):
    tab = panel(put("some", small_scene, stride=2), put("all", small_scene))
    before = shown(tab)
    tab.evaluate(
        """() => { const { gl } = window.panel.view.graphics; let times = 0;
        gl.getError = () => (times++ ? gl.NO_ERROR : gl.OUT_OF_MEMORY) }"""
    )
    tab.click("[data-action=full]")
    assert "no memory for so many points" in note(tab)
    tab.click(".more4d-note button")
    assert not tab.is_visible(".more4d-note")
    assert tab.is_visible("[data-action=full]")
    np.testing.assert_array_equal(shown(tab), before)


def test_a_single_point_is_drawn(panel, put, loose_points, shown):
    tab = panel(put("one", loose_points(torch.tensor([[[0.0, 0.0, 2.0]]]))))
    assert (shown(tab).min(-1) > 200).sum() >= 1
    assert "1" in tab.inner_text(".more4d-info")


def test_points_that_are_not_finite_are_left_out(panel, put, loose_points, shown):
    places = torch.tensor([[-0.4, 0.0, 2.0], [0.0, 0.0, 2.0], [0.4, 0.0, 2.0]]).expand(2, 3, 3)
    tab = panel(put("whole", loose_points(places)))
    all_three = (shown(tab).min(-1) > 200).sum()
    broken = places.clone()
    broken[0, 0, 1], broken[0, 2, 2] = torch.nan, torch.inf
    tab.evaluate("() => window.panel.destroy()")
    panel(put("broken", loose_points(broken)))
    # Discs of one size have a pixel more or less each, by where in a pixel they are.
    assert (shown(tab).min(-1) > 200).sum() == pytest.approx(all_three / 3, rel=0.2)
    tab.click("[data-option=trails]")
    tab.evaluate("() => window.panel.view.setFrame(1)")
    assert (shown(tab).min(-1) > 200).sum() == all_three


def test_five_million_points_are_drawn(panel, put, loose_points, shown):
    torch.manual_seed(0)
    places = torch.rand(1, 5_000_000, 3) * torch.tensor([2.0, 1.4, 0.1]) + torch.tensor(
        [-1.0, -0.7, 2.0]
    )
    scene = loose_points(places)
    tab = panel(put("half-of-many", scene, stride=2), put("many", scene))
    assert tab.evaluate("() => window.panel.view.scene.numPoints") == 1_250_000
    tab.click("[data-action=full]")
    tab.wait_for_function("() => window.panel.view.scene.numPoints === 5_000_000", timeout=_LONG_MS)
    assert (shown(tab).min(-1) > 200).mean() > 0.5


def test_point_maps_have_no_trails_and_say_why(panel, put, small_scene, shown):
    tracks = small_scene.points
    height, width = tracks.grid_hw
    maps = PointMaps(
        positions=tracks.positions.unflatten(1, (height, width)),
        colors=tracks.colors.unflatten(0, (height, width)).expand(9, -1, -1, -1),
        valid=tracks.visibility.unflatten(1, (height, width)),
    )
    tab = panel(put("maps", replace(small_scene, points=maps)))
    trails = tab.locator("[data-option=trails]")
    assert trails.is_disabled()
    assert "not followed" in trails.get_attribute("title")
    first = shown(tab)
    tab.evaluate("() => window.panel.view.setFrame(8)")
    assert (np.abs(shown(tab) - first).max(-1) > 30).mean() > 0.01


def test_without_webgl2_it_says_so_and_its_controls_are_off(panel, tab, put, small_scene):
    tab.evaluate(
        """() => { const proto = HTMLCanvasElement.prototype; window.getContext = proto.getContext;
        proto.getContext = function (kind, ...more) {
            return kind === 'webgl2' ? null : window.getContext.call(this, kind, ...more) } }"""
    )
    try:
        panel(put("small", small_scene))
        assert "does not offer WebGL2" in note(tab)
        assert tab.locator("[data-action=through]").is_disabled()
        assert tab.evaluate("() => window.panel.view") is None
    finally:
        tab.evaluate("() => { HTMLCanvasElement.prototype.getContext = window.getContext }")


def test_a_connection_that_is_lost_can_be_tried_again(panel, put, small_scene):
    """The browser's own fetch, but the first answer ends after 100 kB as a lost connection does."""
    tab = panel()
    tab.evaluate(
        """url => { const whole = window.fetch;
        window.fetch = async (...given) => { window.fetch = whole;
            const { body } = await whole(...given), reader = body.getReader();
            let sent = 0;
            return new Response(new ReadableStream({ async pull(to) {
                const { value } = await reader.read();
                if (sent > 100_000) return to.error(new TypeError('network error'));
                sent += value.length; to.enqueue(value); } })) };
        return window.panel.load({half: url, full: url}) }""",
        put("small", small_scene),
    )
    assert "connection was lost" in note(tab)
    tab.click(".more4d-note button")
    tab.wait_for_function("() => window.panel.view.scene", timeout=_LONG_MS)
    tab.wait_for_selector(".more4d-note", state="hidden")


def test_a_file_that_is_gone_asks_for_another_run(panel):
    tab = panel("/api/view?filename=nowhere.m4dview&subfolder=more4d&type=temp")
    assert note(tab) == "The host no longer has this scene. Run the workflow again."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"PLY" + data[3:], "not a view file"),
        (lambda data: data[:8] + b"\7\0\0\0" + data[12:], "version 7; expected 1"),
        (lambda data: data[:10], "cut off"),
        (lambda data: data[: len(data) // 2], "ends at"),
    ],
    ids=["other", "newer", "head", "half"],
)
def test_a_damaged_file_is_named_as_what_it_is(comfy, panel, put, small_scene, change, words):
    url = put("damaged", small_scene)
    file = comfy.base / "temp" / "more4d" / "damaged.m4dview"
    file.write_bytes(change(file.read_bytes()))
    tab = panel(url)
    assert words in note(tab)
    assert tab.locator(".more4d-note button").inner_text() == "Try again"
