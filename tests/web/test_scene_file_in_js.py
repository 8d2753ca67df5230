"""The page reads a view file as Python does, and says everything in both languages. Needs node."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene import Cameras, PointTracks, Scene4D
from more4d_backend.scene_files.view_file import read_view, write_view

_JS = Path(__file__).parents[2] / "web" / "js"
_FRAMES, _POINTS = 3, 21  # not a multiple of 8: each frame of flags starts a new byte

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@pytest.fixture(scope="module")
def run_js(tmp_path_factory):
    """`run_js(script)`: what a module script beside copies of the page's modules prints as JSON."""
    folder = tmp_path_factory.mktemp("js")
    for module in _JS.glob("*.js"):
        (folder / f"{module.stem}.mjs").write_text(module.read_text().replace('.js"', '.mjs"'))

    def run(script):
        driver = folder / "driver.mjs"
        driver.write_text(script)
        done = subprocess.run(
            ["node", str(driver)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_a_view_file_is_read_as_python_reads_it(run_js, tmp_path):
    torch.manual_seed(0)
    positions = torch.randn(_FRAMES, _POINTS, 3) + torch.tensor([0.3, 0.0, 4.0])
    positions[1, 4, 2] = torch.nan
    visibility = torch.rand(_FRAMES, _POINTS) > 0.5
    colors = torch.rand(_POINTS, 3)
    points = PointTracks(positions=positions, colors=colors, visibility=visibility)
    cameras = Cameras(
        world_to_camera=torch.eye(4).repeat(_FRAMES, 1, 1),
        intrinsics=intrinsics_from_focal(torch.tensor([14.0, 15.0, 16.0]), 12, 16),
        height=12,
        width=16,
    )
    file = tmp_path / "a.m4dview"
    write_view(file, Scene4D(points=points, cameras=cameras, fps=12.0), cameras.frames([1]))
    found = run_js(f"""
        import {{ readFileSync }} from "node:fs";
        import {{ decodeScene, isShown, pointAt }} from "./scene_file.mjs";
        const data = readFileSync({json.dumps(str(file))});
        const bytes = data.buffer.slice(data.byteOffset, data.byteOffset + data.length);
        const scene = decodeScene(bytes);
        const all = (of) => Array.from({{length: scene.numFrames}}, (_, frame) =>
            Array.from({{length: scene.numPoints}}, (_, index) => of(scene, frame, index)));
        const {{ fps, stride, isTracks, cameras, path, numPointsOfScene }} = scene;
        console.log(JSON.stringify({{ positions: all(pointAt), shown: all(isShown), fps, stride,
            isTracks, cameras, path, numPointsOfScene, colors: Array.from(scene.colors) }}));
    """)
    wanted = read_view(file).scene.points
    assert found["shown"] == visibility.tolist()
    assert found["positions"][1][4] is None
    found["positions"][1][4] = [torch.nan] * 3
    error = torch.tensor(found["positions"]) - wanted.positions
    assert error[~error.isnan()].abs().max() < 1e-6  # float32
    fours = torch.tensor(found["colors"]).view(_POINTS, 4)
    assert torch.equal(fours[:, :3], (colors * 255).round().int())
    assert (fours[:, 3] == 255).all()
    assert [c["fx"] for c in found["cameras"]] == [14, 15, 16]
    assert found["path"] == [found["cameras"][1]]
    assert found["cameras"][0] == {
        "worldToCamera": torch.eye(4).flatten().tolist(),
        "fx": 14, "fy": 14, "cx": 8, "cy": 6, "width": 16, "height": 12,
    }  # fmt: skip
    assert (found["fps"], found["stride"], found["isTracks"]) == (12, 1, True)
    assert found["numPointsOfScene"] == _POINTS


def test_every_text_is_there_in_both_languages_with_the_same_places(run_js):
    texts = run_js("""
        import { TEXTS } from "./texts.mjs";
        await import("./camera_editor_texts.mjs");
        console.log(JSON.stringify(TEXTS));
    """)
    english, chinese = texts["en"], texts["zh"]
    assert english.keys() == chinese.keys()
    assert len(english) > 80
    for key, text in english.items():
        places = [sorted(re.findall(r"\{\w+\}", t)) for t in (text, chinese[key])]
        assert places[0] == places[1], key
        assert not re.search(r"[\u4e00-\u9fff]", text), key


def test_every_text_that_the_page_asks_for_is_there(run_js):
    known = run_js("""
        import { TEXTS } from "./texts.mjs";
        await import("./camera_editor_texts.mjs");
        console.log(JSON.stringify(Object.keys(TEXTS.en)));
    """)
    for module in _JS.glob("*.js"):
        asked = re.findall(r"\btext\(\"([\w.]+)\"", module.read_text())
        assert set(asked) <= set(known), module.name
