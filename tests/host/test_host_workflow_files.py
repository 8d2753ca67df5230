"""The example workflows against what the server says of its nodes."""

import json
import re

import numpy as np
import pytest
import torch

from benchmarks.comfy_host import PACK_NAME, ROOT, RejectedError
from more4d_backend.files.videos import save_video
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.scene_files import load_scene, save_scene
from more4d_backend.weights.geo4d import save_geo4d
from workflows.build import BLUEPRINT, WORKFLOWS, blueprint
from workflows.graph import NOTE, Graph, has_control, input_definitions, is_widget, page_file

pytestmark = pytest.mark.host

FILES = [*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def graphs(content):
    """Return the parts of a file that have nodes: itself, or the subgraphs."""
    return content.get("definitions", {}).get("subgraphs", [content])


def nodes(content):
    return [n for graph in graphs(content) for n in graph["nodes"] if n["type"] != NOTE]


def test_every_workflow_has_a_thumbnail_and_a_drawing():
    assert {p.stem for p in (ROOT / "workflows").glob("*.json")} == set(WORKFLOWS)
    assert {p.stem for p in (ROOT / "workflows").glob("*.jpg")} == set(WORKFLOWS)
    assert [p.stem for p in (ROOT / "subgraphs").glob("*.json")] == [BLUEPRINT]


def test_the_host_lists_workflows_and_blueprint(comfy):
    assert sorted(comfy.get("/workflow_templates")[PACK_NAME]) == sorted(WORKFLOWS)
    for name in WORKFLOWS:
        path = f"/api/workflow_templates/{PACK_NAME}/{name}"
        assert comfy.get(f"{path}.json")["nodes"]
        assert comfy.get_bytes(f"{path}.jpg")[:2] == b"\xff\xd8"
    listed = comfy.get("/global_subgraphs")
    ours = {
        k: v for k, v in listed.items() if v["info"]["node_pack"] == f"custom_nodes.{PACK_NAME}"
    }
    assert [v["name"] for v in ours.values()] == [BLUEPRINT]
    assert json.loads(comfy.get(f"/global_subgraphs/{next(iter(ours))}")["data"])["definitions"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_fits_the_nodes_of_the_host(schemas, path):
    for node in nodes(read(path)):
        if re.fullmatch(r"[\da-f-]{36}", node["type"]):
            continue  # the subgraph itself
        definitions = input_definitions(schemas, node["type"])
        names = [i["name"] for i in node["inputs"]]
        assert set(names) <= set(definitions), node["type"]
        linked = {i["name"] for i in node["inputs"] if i["link"] is not None}
        required = {
            n for n, (kind, _, needed) in definitions.items() if needed and not is_widget(kind)
        }
        assert required <= linked, f"{node['type']} lacks {required - linked}"
        shown = [o["name"] for o in node["outputs"]]
        # Links go by place, and a newer host may have more outputs.
        assert shown == schemas[node["type"]]["output_name"][: len(shown)], node["type"]
        check_values(node, definitions)


def check_values(node, definitions):
    values = iter(node["widgets_values"])
    for name, (kind, options, _) in definitions.items():
        if not is_widget(kind) or name not in {i["name"] for i in node["inputs"]}:
            continue
        value = next(values)
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= value <= options["max"], (node["type"], name)
        choices = kind if isinstance(kind, list) else options.get("options") or []
        is_file = isinstance(value, str) and re.search(r"\.(safetensors|png)", value)
        if choices and not isinstance(choices[0], dict) and not is_file:
            assert value in choices, (node["type"], name)
        if has_control(name, options):
            assert next(values) == "fixed"  # so that a second run finds its results
        if options.get("image_upload") or options.get("video_upload"):
            assert next(values) == "image"
    assert not list(values), node["type"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_links_join_outputs_and_inputs_of_one_type(path):
    for graph in graphs(read(path)):
        by_id = {n["id"]: n for n in graph["nodes"]}
        for row in graph["links"]:
            link = row if isinstance(row, list) else list(row.values())
            number, origin, slot, target, target_slot, kind = link
            if origin in by_id:
                output = by_id[origin]["outputs"][slot]
                assert number in output["links"]
                assert output["type"] == kind
            if target in by_id:
                socket = by_id[target]["inputs"][target_slot]
                assert socket["link"] == number
                assert kind == "*" or kind in socket["type"].split(",")


@pytest.mark.parametrize("name", [n for n in WORKFLOWS if n != "draw-a-camera"])
def test_nothing_but_files_of_the_user_is_missing_to_run_a_workflow(comfy, schemas, name):
    graph = Graph()
    WORKFLOWS[name](graph)
    prompt = graph.prompt(schemas)
    for node in prompt.values():  # not to be run here: an output that never comes
        for name in {"unet_name", "file"} & set(node["inputs"]):
            node["inputs"][name] = "not-there.safetensors"
    with pytest.raises(RejectedError) as refused, comfy.listen() as listener:
        comfy.queue(prompt, listener)
    wrong = [e for node in refused.value.nodes.values() for e in node["errors"]]
    assert wrong
    for error in wrong:
        missing = error["type"] == "value_not_in_list" or "There is no file" in error["details"]
        picture = re.search("Invalid (image|video) file", error["details"])
        assert missing or picture, error


@pytest.fixture
def scene_file(comfy, tracks_scene):
    """Name of a scene of 5 frames in the server's input folder."""
    save_scene(comfy.base / "input" / "moving.safetensors", tracks_scene(frames=5))
    return "moving.safetensors"


def run_on(comfy, schemas, name, scene_file):
    graph = Graph()
    WORKFLOWS[name](graph)
    prompt = graph.prompt(schemas)
    for key, node in list(prompt.items()):
        if node["class_type"] == "More4DSceneLoad":
            node["inputs"]["file"] = scene_file
        if node["inputs"].get("format") == "usd":
            del prompt[key]  # its package need not be there
    run = comfy.run(prompt)
    assert run.end == "execution_success", run.detail
    return run


def test_one_scene_gives_a_video_for_every_camera(comfy, schemas, scene_file, video_frames):
    run = run_on(comfy, schemas, "one-scene-many-cameras", scene_file)
    files = [out["images"][0] for out in run.outputs.values()]
    saved = [file for file in files if file["filename"].endswith(".mp4")]
    videos = [video_frames(comfy.file(file)) for file in saved]
    assert [len(video) for video in videos] == [5] * 4
    assert len({video[-1].tobytes() for video in videos}) == 4
    assert len(files) == 8  # a drawing of each path, too


def test_a_camera_path_that_was_drawn_gives_a_video(comfy, schemas, video_frames):
    run = run_on(comfy, schemas, "draw-a-camera", None)
    (file,) = [
        file
        for out in run.outputs.values()
        for file in out.get("images", [])
        if file["filename"].endswith(".mp4")
    ]
    frames = video_frames(comfy.file(file))
    assert frames.shape == (49, 128, 176, 3)
    assert np.abs(frames[24].astype(float) - frames[0]).mean() > 8  # of 255


@pytest.fixture
def toy_geo4d(comfy):
    """Name of a Geo4D file of random values that the server lists."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = Geo4DNetworks(GEO4D_SIZES["toy"]).eval()
    folder = comfy.base / "models" / "geometry_estimation"
    folder.mkdir(parents=True, exist_ok=True)
    save_geo4d(networks, folder / "toy_geo4d.safetensors", dtype=torch.float32)
    return "toy_geo4d.safetensors"


def test_a_video_is_reconstructed_and_shot_again_before_its_holes_are_filled(
    comfy, schemas, toy_geo4d, video_frames
):
    y, x = np.mgrid[0:48, 0:64]
    waves = [np.sin(x / 9 + y / 7 + frame / 3)[..., None] * [1, 0.5, -1] for frame in range(9)]
    save_video(comfy.base / "input" / "waves.mp4", torch.tensor(np.array(waves)) / 2 + 0.5, fps=8)
    graph = Graph()
    WORKFLOWS["video-to-4d-video"](graph)
    prompt = graph.prompt(schemas)
    keys = {node["class_type"]: key for key, node in prompt.items()}
    prompt[keys["LoadVideo"]]["inputs"]["file"] = "waves.mp4"
    prompt[keys["More4DLoadGeo4D"]]["inputs"]["weights_name"] = toy_geo4d
    prompt[keys["ImageFromBatch"]]["inputs"]["length"] = 9
    # 4D-ViSM's networks are the user's to bring: the render, holes and all, becomes the video.
    prompt[keys["CreateVideo"]]["inputs"]["images"] = [keys["More4DRender"], 0]
    needed, found = [keys["SaveVideo"], keys["More4DSceneSave"]], set()
    while needed:
        found.add(key := needed.pop())
        links = [v for v in prompt[key]["inputs"].values() if isinstance(v, list)]
        needed += [str(link[0]) for link in links if str(link[0]) not in found]
    run = comfy.run({key: prompt[key] for key in found})
    assert run.end == "execution_success", run.detail
    (file,) = run.outputs[keys["SaveVideo"]]["images"]
    assert video_frames(comfy.file(file)).shape == (9, 48, 64, 3)
    (scene,) = (comfy.base / "output" / "more4d").glob("video-scene*.safetensors")
    assert load_scene(scene).num_frames == 9


def test_a_scene_is_exported_in_every_format(comfy, schemas, scene_file):
    run_on(comfy, schemas, "scene-export", scene_file)
    folder = comfy.base / "output" / "more4d"
    assert len(list(folder.glob("ply_*/*.ply"))) == 5
    assert len(list(folder.glob("gaussians_*/*.ply"))) == 5
    assert list(folder.glob("tapvid3d_*.npz"))


def test_full_size_workflows_say_where_their_models_are():
    for name in ("image-to-4d-video", "host-geometry-to-video"):
        content = read(ROOT / "workflows" / f"{name}.json")
        models = [m for n in nodes(content) for m in n["properties"].get("models", [])]
        assert len(models) >= 5
        for model in models:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["directory"]
        loaders = [n for n in nodes(content) if n["type"].endswith(("Loader", "LoadMoGeModel"))]
        for node in loaders:
            assert node["properties"]["models"][0]["name"] in node["widgets_values"]


def test_the_files_are_what_the_generator_draws(comfy, schemas):
    """Against the oldest host; a newer one knows more inputs."""
    if comfy.get("/system_stats")["system"]["comfyui_version"].split(".")[:2] != ["0", "25"]:
        pytest.skip("files are written against ComfyUI 0.25")
    for name, draw in WORKFLOWS.items():
        graph = Graph()
        draw(graph)
        assert read(ROOT / "workflows" / f"{name}.json") == page_file(graph, schemas)
    assert read(ROOT / "subgraphs" / f"{BLUEPRINT}.json") == blueprint(schemas)
