"""The page's path equals Python's, and it refuses and keeps the same documents. Needs node."""

import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from more4d_backend.camera_paths import PathSettings, make_path
from more4d_backend.camera_paths.edits import EASES
from more4d_backend.camera_paths.keyframes import (
    cameras_from_keyframes,
    keyframes_from_cameras,
    keyframes_from_json,
    keyframes_to_json,
)
from more4d_backend.files import FileFormatError
from more4d_backend.geometry import invert_rigid, matrix_from_quaternion_wxyz
from more4d_backend.scene import Cameras

_JS = Path(__file__).parents[2] / "web" / "js"
_MODULE = _JS / "camera_keyframes.js"
_DRIVER = """
import { readFileSync } from "node:fs";
const source = readFileSync(process.argv[1], "utf8");
const js = await import("data:text/javascript;base64," + Buffer.from(source).toString("base64"));
const results = JSON.parse(readFileSync(0, "utf8")).map(([name, ...values]) => {
  try { return js[name](...values); } catch (e) {
    if (!(e instanceof js.KeyframeError)) throw e;
    return { refused: e.field };
  }
});
process.stdout.write(JSON.stringify(results));
"""
_POSE = {"position": [1, 2, 3], "quaternion_wxyz": [0, 1, 0, 0], "zoom": 2}


def call(*calls):
    """Call functions of the module: (name, argument, ...) each; what is refused is marked."""
    # Without package.json, node 20 takes a .js file for no module; its text it takes.
    return run_node(_DRIVER, str(_MODULE), input=json.dumps(calls))


def run_node(script, *arguments, input=""):
    """Run a module in node, and return the JSON that it prints."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    command = [node, "--input-type=module", "--eval", script, *arguments]
    done = subprocess.run(
        command, input=input, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def start():
    intrinsics = torch.tensor([[[500.0, 0, 320], [0, 400, 240], [0, 0, 1]]]).double()
    return Cameras(
        world_to_camera=torch.eye(4).double()[None], intrinsics=intrinsics, height=480, width=640
    )


def keyframe(time, **changes):
    fields = {"position": [0, 0, 0], "quaternion_wxyz": [1, 0, 0, 0]} | changes
    return {"time": time, **fields}


def document(*keyframes, **fields):
    return {
        "format": "more4d-camera-keyframes", "version": 1, "keyframes": list(keyframes), **fields
    }  # fmt: skip


def random_keyframes(seed):
    rng = random.Random(seed)
    times = sorted(rng.random() for _ in range(rng.randint(1, 9)))
    frames = []
    for time in times:
        quaternion = [rng.gauss(0, 1) for _ in range(4)]
        length = sum(q * q for q in quaternion) ** 0.5
        position = [rng.uniform(-3, 3) for _ in range(3)]
        if frames and rng.random() < 0.3:
            position = frames[-1]["position"]  # rests
        frames.append(
            keyframe(
                time,
                position=position,
                quaternion_wxyz=[q / length for q in quaternion],
                zoom=rng.uniform(0.2, 5),
                ease=rng.choice(list(EASES)),
            )
        )
    return frames


def preset_keyframes(name):
    path = make_path(name, start(), 49, settings=PathSettings())
    return json.loads(keyframes_to_json(keyframes_from_cameras(path)))["keyframes"]


PATHS = {
    **{f"random-{seed}": random_keyframes(seed) for seed in range(20)},
    **{name: preset_keyframes(name) for name in ("orbit-left", "spiral", "dolly-zoom", "handheld")},
    "one": [keyframe(0.4, position=[1, 2, 3], zoom=1.5)],
    "still": [keyframe(0), keyframe(1)],
    "opposite-signs": [keyframe(0), keyframe(1, quaternion_wxyz=[-1, 0, 0, 0])],
    "half-turn": [keyframe(0), keyframe(1, quaternion_wxyz=[0, 0, 1, 0])],
    "hardly-turned": [keyframe(0), keyframe(1, quaternion_wxyz=[1, 1e-9, 0, 0])],
    "optional-fields-left-out": [keyframe(0.1), keyframe(0.9, position=[5, 0, 0])],
}


@pytest.mark.parametrize("num_frames", [1, 2, 49])
def test_the_path_of_the_page_is_the_path_of_the_renderer(num_frames):
    texts = [json.dumps(document(*frames)) for frames in PATHS.values()]
    parsed = call(*(("parseDocument", text) for text in texts))
    found = call(*(("posesAtFrames", read["keyframes"], num_frames) for read in parsed))
    for name, text, poses in zip(PATHS, texts, found, strict=True):
        path = cameras_from_keyframes(keyframes_from_json(text), start(), num_frames)
        wanted = invert_rigid(path.world_to_camera)
        position = torch.tensor([p["position"] for p in poses], dtype=torch.float64)
        quaternion = torch.tensor([p["quaternion_wxyz"] for p in poses], dtype=torch.float64)
        zoom = torch.tensor([p["zoom"] for p in poses], dtype=torch.float64)
        close = {"rtol": 0, "atol": 1e-9}
        torch.testing.assert_close(position, wanted[:, :3, 3], **close, msg=name)
        rotation = matrix_from_quaternion_wxyz(quaternion)
        torch.testing.assert_close(rotation, wanted[:, :3, :3], **close, msg=name)
        torch.testing.assert_close(500 * zoom, path.intrinsics[:, 0, 0], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "version"),
        ({"version": "1"}, "version"),
        ({"scene_scale": 0}, "scene_scale"),
        ({"scene_scale": "big"}, "scene_scale"),
        ({"keyframes": {}}, "keyframes"),
        ({"keyframes": []}, "keyframes"),
        ({"keyframes": [3]}, "keyframes[0]"),
        ({"keyframes": [keyframe(2)]}, "keyframes[0].time"),
        ({"keyframes": [keyframe(True)]}, "keyframes[0].time"),
        ({"keyframes": [keyframe("0")]}, "keyframes[0].time"),
        ({"keyframes": [keyframe(0), keyframe(0)]}, "keyframes[1].time"),
        ({"keyframes": [keyframe(0, position=[0, 0])]}, "keyframes[0].position"),
        ({"keyframes": [keyframe(0, position=[0, None, 0])]}, "keyframes[0].position[1]"),
        (
            {"keyframes": [keyframe(0, quaternion_wxyz=[2, 0, 0, 0])]},
            "keyframes[0].quaternion_wxyz",
        ),
        ({"keyframes": [keyframe(0, zoom=0)]}, "keyframes[0].zoom"),
        ({"keyframes": [keyframe(0, zoom=None)]}, "keyframes[0].zoom"),
        ({"keyframes": [keyframe(0, ease="bounce")]}, "keyframes[0].ease"),
        ({"keyframes": [keyframe(0, ease=["in"])]}, "keyframes[0].ease"),
    ],
)  # fmt: skip
def test_page_and_python_refuse_the_same_field(changed, field):
    text = json.dumps(document(keyframe(0)) | changed)
    assert call(("parseDocument", text)) == [{"refused": field}]
    with pytest.raises(FileFormatError, match=re.escape(field)):
        keyframes_from_json(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "NaN", '{"keyframes": NaN}', "null"])
def test_page_and_python_refuse_what_is_no_document(text):
    assert call(("parseDocument", text)) == [{"refused": "JSON"}]
    with pytest.raises(FileFormatError):
        keyframes_from_json(text)


def test_fields_of_other_programs_stay_through_every_edit():
    first = keyframe(0, note="first")
    given = document(first, keyframe(1, note="last"), author={"name": "x"})
    (read,) = call(("parseDocument", json.dumps(given)))
    assert read["author"] == {"name": "x"}
    frames = read["keyframes"]
    edits = call(
        ("addKeyframe", frames, _POSE, 0.5),
        ("replacePose", frames, 0, _POSE),
        ("changeField", frames, 0, "ease", "out"),
        ("moveInTime", frames, 0, 0.2),
        ("swapWithNeighbour", frames, 0, 1),
    )
    for edit in edits:
        assert [k["note"] for k in edit["keyframes"] if "note" in k].count("first") == 1
    (text,) = call(("formatDocument", read))
    assert keyframes_from_json(text).extra == {"author": {"name": "x"}}


def test_views_added_one_after_the_other_make_an_even_path():
    frames, time = [keyframe(0, ease="linear")], 0
    for _ in range(4):
        (edit,) = call(("addKeyframe", frames, _POSE, time))
        frames, time = edit["keyframes"], edit["keyframes"][edit["selected"]]["time"]
        assert time == 1
    assert [k["time"] for k in frames] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_a_view_added_elsewhere_goes_where_the_playhead_is():
    frames = [keyframe(0), keyframe(1)]
    at_playhead, between = call(
        ("addKeyframe", frames, _POSE, 0.3), ("addKeyframe", frames, _POSE, 0)
    )
    assert [k["time"] for k in at_playhead["keyframes"]] == [0, 0.3, 1]
    assert at_playhead["keyframes"][1]["position"] == [1, 2, 3]
    assert at_playhead["selected"] == 1
    assert [k["time"] for k in between["keyframes"]] == [0, 0.5, 1]


def test_moving_past_a_neighbour_changes_the_order_and_never_meets_it():
    frames = [keyframe(0), keyframe(0.5, zoom=2), keyframe(1)]
    past, onto, beyond = call(
        ("moveInTime", frames, 0, 0.7),
        ("moveInTime", frames, 0, 0.5),
        ("moveInTime", frames, 1, 7),
    )
    assert [k["time"] for k in past["keyframes"]] == [0.5, 0.7, 1]
    assert past["selected"] == 1
    for edit in (past, onto, beyond):
        keyframes_from_json(json.dumps(document(*edit["keyframes"])))  # which refuses equal times


def test_swapping_keeps_the_times_and_deleting_keeps_one():
    frames = [keyframe(0, zoom=3), keyframe(0.5), keyframe(1)]
    swap, at_end, delete, last = call(
        ("swapWithNeighbour", frames, 0, 1),
        ("swapWithNeighbour", frames, 0, -1),
        ("deleteKeyframe", frames, 2),
        ("deleteKeyframe", frames[:1], 0),
    )
    assert [(k["time"], k.get("zoom")) for k in swap["keyframes"]] == [
        (0, None),
        (0.5, 3),
        (1, None),
    ]
    assert swap["selected"] == 1
    assert at_end["keyframes"] == frames
    assert (len(delete["keyframes"]), delete["selected"]) == (2, 1)
    assert last["keyframes"] == frames[:1]


def test_a_new_document_is_the_input_view():
    (new,) = call(("newDocument",))
    path = cameras_from_keyframes(keyframes_from_json(json.dumps(new)), start(), 3)
    assert torch.equal(path.world_to_camera, start().world_to_camera.expand(3, 4, 4))
    assert torch.equal(path.intrinsics, start().intrinsics.expand(3, 3, 3))


def test_a_text_has_a_keyframe_a_line_and_loses_nothing():
    tricky = {"note": "[\n 1,\n 2 ]\n{ }", "tags": ["a, b", {"c": []}], "none": None}
    given = document(keyframe(0, **tricky), keyframe(1), scene_scale=2, author={"name": "x\n"})
    (text,) = call(("formatDocument", given))
    assert json.loads(text) == given
    assert len(text.splitlines()) == 2 + len(given) + 2 + 1
    (minimal,) = call(("formatDocument", document(keyframe(0))))
    assert "scene_scale" not in json.loads(minimal)


def test_angles_turn_right_up_and_clockwise_and_come_back():
    rng = random.Random(0)
    angles = [
        {
            "yaw": rng.uniform(-180, 180),
            "pitch": rng.uniform(-89, 89),
            "roll": rng.uniform(-180, 180),
        }
        for _ in range(50)
    ]
    quaternions = call(*(("quaternionOf", a) for a in angles))
    for given, found in zip(angles, call(*(("anglesOf", q) for q in quaternions)), strict=True):
        assert found == pytest.approx(given, abs=1e-9)
    turned = call(
        ("quaternionOf", {"yaw": 30, "pitch": 0, "roll": 0}),
        ("quaternionOf", {"yaw": 0, "pitch": 30, "roll": 0}),
        ("quaternionOf", {"yaw": 0, "pitch": 0, "roll": 30}),
    )
    right, up, clockwise = matrix_from_quaternion_wxyz(torch.tensor(turned, dtype=torch.float64))
    assert right[:, 2].tolist() == pytest.approx([0.5, 0, 0.75**0.5])  # forward, in +x right
    assert up[:, 2].tolist() == pytest.approx([0, -0.5, 0.75**0.5])  # +y is down
    assert clockwise[:, 0].tolist() == pytest.approx([0.75**0.5, 0.5, 0])  # its right side sinks


@pytest.mark.parametrize("pitch", [90, -90])
def test_straight_up_and_down_have_angles_too(pitch):
    (given,) = call(("quaternionOf", {"yaw": 40, "pitch": pitch, "roll": 25}))
    (angles,) = call(("anglesOf", given))
    (again,) = call(("quaternionOf", angles))
    wanted, found = matrix_from_quaternion_wxyz(torch.tensor([given, again], dtype=torch.float64))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert angles["pitch"] == pytest.approx(pitch)


def test_history_goes_back_and_forth_and_takes_a_drag_as_one_step():
    """States 1 to 5 were shown; 2 to 4 belong to one drag."""
    script = """
    const { EditHistory } = await import(url);
    const history = new EditHistory();
    history.record(1);
    for (const state of [2, 3, 4]) history.record(state, "drag");
    const steps = [history.undo(5), history.undo(2), history.undo(1), history.redo(1)];
    history.record(2, "drag");
    history.endGroup();
    history.record(6, "drag");
    steps.push(history.redo(7), history.undo(7), history.undo(6), history.undo(2));
    for (let i = 0; i < 500; i++) history.record(i);
    process.stdout.write(JSON.stringify([steps, history.past.length]));
    """
    source = json.dumps((_JS / "edit_history.js").read_text())
    url = f"const url = 'data:text/javascript,' + encodeURIComponent({source});"
    assert run_node(url + script) == [[2, 1, None, 2, None, 6, 2, 1], 200]
