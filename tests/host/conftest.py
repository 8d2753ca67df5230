"""A running ComfyUI with the pack in it, and its page in headless Chromium.

The variables in `benchmarks/comfy_host.py` say which ComfyUI; without one, these tests are skipped.
MORE4D_SCREENSHOTS names the folder for pictures of the page; it is out/screenshots otherwise.
"""

import io
import json
import os
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.comfy_host import ROOT, ComfyHost, installations, link_pack
from workflows.build import tiny_video
from workflows.graph import Graph

_PAGE_READY = """() => window.app?.graph && window.app.extensionManager
    && Object.keys(window.LiteGraph?.registered_node_types || {}).length > 50"""
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_CHROMIUM_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
_SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.UseNewMenu": "Top"}


def pytest_collection_modifyitems(config, items):
    """Keep the tests of one server on one worker (`-n auto --dist loadgroup`)."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if "comfy" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group("comfyui"))


def _hosts():
    return [pytest.param(found, id=found.folder.name) for found in installations()] or [
        pytest.param(None, id="no-host")
    ]


@pytest.fixture(scope="session")
def weights_folder(request):
    """Random embedded files where the pack has none yet; else None."""
    pack = Path(os.environ.get("MORE4D_PACK", ROOT))
    if list(pack.glob("more4d_backend/tiny/weights/*/more4d_tiny_strag.safetensors")):
        return None
    return request.getfixturevalue("random_embedded")


@pytest.fixture(scope="session", params=_hosts())
def comfy(request, tmp_path_factory, weights_folder):
    """One server after the other, each in a base folder of its own."""
    if request.param is None:
        pytest.skip("no ComfyUI: COMFYUI_PATH names none, and there is none in ~/comfy")
    base = tmp_path_factory.mktemp("comfy") / "base"
    link_pack(base, weights_folder)
    host = ComfyHost(request.param, base, "--preview-method", "latent2rgb")
    _page_settings(base, False)
    with host:
        yield host


def _page_settings(base, nodes2):
    settings = _SETTINGS | {"Comfy.VueNodes.Enabled": nodes2}
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def schemas(comfy):
    """What the server says of each of its nodes."""
    return comfy.get("/object_info")


@pytest.fixture(scope="session")
def make_tiny_prompt(schemas):
    """`make_tiny_prompt(**settings)`: the tiny workflow as a prompt, in two steps if not told."""

    def make(**settings):
        graph = Graph()
        tiny_video(graph, **({"steps": 2} | settings))
        return graph.prompt(schemas)

    return make


@pytest.fixture(scope="session")
def png():
    """`png(array)`: the bytes of a picture file."""

    def encode(array):
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(array, np.uint8)).save(buffer, "png")
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def video_frames():
    """`video_frames(content)`: (frame, height, width, 3) of a video file."""

    def decode(content):
        with av.open(io.BytesIO(content)) as video:
            return np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)])

    return decode


@pytest.fixture(scope="session")
def screenshots():
    """Folder for pictures to be looked at."""
    folder = Path(os.environ.get("MORE4D_SCREENSHOTS", ROOT / "out" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class HostPage:
    """The page of a server, and all that went wrong in it."""

    def __init__(self, page, url):
        self.page, self.problems = page, []
        page.on("console", self._console)
        page.on("pageerror", lambda e: self.problems.append(e.stack or str(e)))
        page.on("response", self._response)
        page.goto(url, wait_until="domcontentloaded")
        page.wait_for_function(_PAGE_READY, timeout=120_000)
        page.wait_for_timeout(1000)

    def _console(self, message):
        if message.type in ("error", "warning"):
            place = message.location.get("url", "")
            self.problems.append(f"{message.type} {message.text} ({place})")

    def _response(self, response):
        if response.status >= 400:
            self.problems.append(f"http {response.status} {response.url}")

    def load(self, workflow):
        """Load a graph, and return the types of its nodes."""
        self.page.evaluate("w => window.app.loadGraphData(w)", workflow)
        self.page.wait_for_timeout(1500)
        return self.page.evaluate("() => app.graph._nodes.map(n => n.type)")

    def prompt(self):
        """Return what the page would send."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def show_all(self):
        """Zoom out to the whole graph, and let it be drawn."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1000)

    def ours(self):
        """Return the problems that name the pack."""
        return [text for text in self.problems if re.search("more4d", text, re.IGNORECASE)]


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; it draws without end, so not longer than it is needed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((p for p in map(shutil.which, _CHROMIUM) if p), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=_CHROMIUM_OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def page(request, comfy, browser):
    """The page of the server, in both renderers."""
    _page_settings(comfy.base, request.param == "nodes2")
    tab = browser.new_page(viewport={"width": 2560, "height": 1440})
    shown = HostPage(tab, comfy.url)
    shown.renderer = request.param
    yield shown
    tab.close()
