"""Wrong input, through a real server: the right node turns red and says what to do."""

import io
import json
import re
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.comfy_host import RejectedError
from workflows.graph import Graph

pytestmark = pytest.mark.host

HEIGHT, WIDTH, FRAMES = 48, 64, 5
STRAG, VISM = "more4d_tiny_strag.safetensors", "more4d_tiny_vism.safetensors"
WAN_VAE, MOTION_VAE = "more4d_tiny_wan_vae.safetensors", "more4d_tiny_motion_vae.safetensors"


def example(graph):
    picture = graph.add("More4DExamplePicture", 0)
    return picture, graph.add("More4DDepthTiny", 0, image=picture["image"])["scene"]


def text(graph):
    encoded = graph.add("More4DTinyTextEncode", 0, text="a red ball moves right")
    return {name: encoded["conditioning"] for name in ("positive", "negative")}


def model(graph, name):
    return graph.add("UNETLoader", 0, unet_name=name)["model"]


def vae(graph, name=WAN_VAE):
    return graph.add("VAELoader", 0, vae_name=name)["vae"]


def motion_vae(graph, name=MOTION_VAE):
    return graph.add("More4DLoadMotionVAE", 0, motion_vae_name=name)["motion_vae"]


def strag(graph, *, model_name=STRAG, vae_name=WAN_VAE, image=None, **changed):
    picture, scene = example(graph)
    size = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH} | changed
    node = graph.add(
        "More4DStragConditioning", 0, model=model(graph, model_name), vae=vae(graph, vae_name),
        motion_vae=motion_vae(graph), image=image or picture["image"], scene=scene,
        **text(graph), **size,
    )  # fmt: skip
    graph.add("PreviewAny", 0, source=node["latent"])


def vism(graph, *, model_name=VISM, mask_hw=(HEIGHT, WIDTH), mask=0.0, frames=FRAMES):
    rendered = graph.add("EmptyImage", 0, width=WIDTH, height=HEIGHT, batch_size=frames)
    one = graph.add("SolidMask", 0, value=mask, height=mask_hw[0], width=mask_hw[1])
    image = graph.add("MaskToImage", 0, mask=one["mask"])["image"]
    image = graph.add("RepeatImageBatch", 0, image=image, amount=frames)["image"]
    holes = graph.add("ImageToMask", 0, image=image)
    node = graph.add(
        "More4DVismConditioning", 0, model=model(graph, model_name), vae=vae(graph),
        rendered=rendered["image"], holes=holes["mask"], **text(graph),
    )  # fmt: skip
    graph.add("PreviewAny", 0, source=node["latent"])


def wrong_motion_vae(graph):
    graph.add("PreviewAny", 0, source=motion_vae(graph, WAN_VAE))


def depth_of_another_size(graph):
    picture, _ = example(graph)
    depth = graph.add("EmptyImage", 0, width=40, height=30, batch_size=1, color=0x808080)
    lifted = graph.add(
        "More4DDepthFromImage", 0, image=picture["image"], depth=depth["image"]
    )  # fmt: skip
    graph.add("PreviewImage", 0, images=lifted["depth"])


def path_of_another_length(graph):
    _, scene = example(graph)
    first, then = (
        graph.add("More4DCameraPreset", 0, scene=scene, preset=name, num_frames=frames)
        for name, frames in (("orbit-left", FRAMES), ("dolly-in", FRAMES + 2))
    )
    moving = graph.add("More4DSceneLoad", 0, file="good.safetensors")["scene"]
    rendered = graph.add("More4DRender", 0, scene=moving, camera_path=then["camera_path"])
    graph.add("PreviewImage", 0, images=rendered["image"])
    graph.add("More4DCameraPreview", 0, camera_path=first["camera_path"])


def keyframes(content):
    def draw(graph):
        _, scene = example(graph)
        path = graph.add("More4DCameraKeyframes", 0, scene=scene, keyframes=content)
        graph.add("More4DCameraPreview", 0, camera_path=path["camera_path"])

    return draw


def load_scene(name):
    def draw(graph):
        graph.add("More4DSceneSave", 0, scene=graph.add("More4DSceneLoad", 0, file=name)["scene"])

    return draw


def load_camera(name):
    def draw(graph):
        _, scene = example(graph)
        path = graph.add("More4DCameraLoad", 0, scene=scene, file=name)
        graph.add("More4DCameraPreview", 0, camera_path=path["camera_path"])

    return draw


def save(type, prefix, **inputs):
    def draw(graph):
        _, scene = example(graph)
        if type == "More4DCameraSave":
            path = graph.add("More4DCameraPreset", 0, scene=scene, num_frames=FRAMES)
            graph.add(type, 0, camera_path=path["camera_path"], filename_prefix=prefix, **inputs)
        else:
            graph.add(type, 0, scene=scene, filename_prefix=prefix, **inputs)

    return draw


def unidepth(graph):
    picture, _ = example(graph)
    lifted = graph.add("More4DDepthUniDepth", 0, image=picture["image"])
    graph.add("PreviewImage", 0, images=lifted["depth"])


def wrong_transformer(graph):
    graph.add("PreviewAny", 0, source=model(graph, "not-a-transformer.safetensors"))


def wrong_geo4d(graph):
    graph.add("PreviewAny", 0, source=graph.add(
        "More4DLoadGeo4D", 0, weights_name="not-geo4d.safetensors"
    )["geo4d"])  # fmt: skip


CASES = {
    "a ViSM model for STraG": (
        lambda g: strag(g, model_name=VISM), "More4DStragConditioning",
        "36 input channels, not 4D-STraG.*Load Diffusion Model",
    ),
    "a STraG model for ViSM": (
        lambda g: vism(g, model_name=STRAG), "More4DVismConditioning",
        "STraG with 64 input channels.*Wan2.1-Fun-InP.*more4d_tiny_vism",
    ),
    "a plain VAE as motion VAE": (
        wrong_motion_vae, "More4DLoadMotionVAE",
        "is a Wan2.1 VAE.*Needed here: the motion VAE.*Choose another file",
    ),
    "something else as Geo4D": (
        wrong_geo4d, "More4DLoadGeo4D", "not-geo4d.safetensors.*Geo4D.*Choose another file"
    ),
    "a VAE as transformer": (wrong_transformer, "UNETLoader", "Could not detect model type"),
    "a VAE of another family": (
        lambda g: strag(g, vae_name="pixel_space"), "More4DStragConditioning",
        "VAE is of another family.*wan_2.1_vae.safetensors",
    ),
    "a mask of another size": (
        lambda g: vism(g, mask_hw=(32, 40)), "More4DVismConditioning",
        "holes are 5 frames of 32x40.*video 5 frames of 48x64.*Render 4D Scene",
    ),
    "a frame count that is not 4k + 1": (
        lambda g: strag(g, num_frames=8), "More4DStragConditioning", "num_frames is 8.*Use 5 or 9"
    ),
    "rendered frames that are not 4k + 1": (
        lambda g: vism(g, frames=4, mask=1.0), "More4DVismConditioning", "frames is 4.*Use 1 or 5"
    ),
    "a size that is no multiple of 16": (
        lambda g: strag(g, height=40), "More4DStragConditioning", "height is 40.*Use 32 or 48"
    ),
    "depth and picture of different sizes": (
        depth_of_another_size, "More4DDepthFromImage", "30.*40.*128.*176|128.*176.*30.*40"
    ),
    "a path of another length than the scene": (
        path_of_another_length, "More4DRender", "7.*(frames|cameras).*5|5 frames.*7"
    ),
    "keyframes that are no JSON": (
        keyframes('{"format": "more4d-camera-keyframes", '), "More4DCameraKeyframes", "JSON"
    ),
    "keyframes without poses": (
        keyframes('{"format": "more4d-camera-keyframes", "version": 1, "keyframes": []}'),
        "More4DCameraKeyframes", "keyframe",
    ),
    "keyframes that are not finite": (
        keyframes(
            '{"format": "more4d-camera-keyframes", "version": 1, "scene_scale": 1, "keyframes":'
            ' [{"time": 0, "position": [NaN, 0, 0], "quaternion_wxyz": [1, 0, 0, 0]}]}'
        ),
        "More4DCameraKeyframes", "NaN|finite",
    ),
    "a truncated scene": (load_scene("truncated.safetensors"), "More4DSceneLoad", "truncated"),
    "weights instead of a scene": (load_scene("weights.safetensors"), "More4DSceneLoad", "scene"),
    "a scene that says it is enormous": (
        load_scene("enormous.safetensors"), "More4DSceneLoad", "enormous.safetensors"
    ),
    "tracks with code in them": (load_scene("hostile.npz"), "More4DSceneLoad", "hostile.npz"),
    "a camera file that is something else": (
        load_camera("wrong.json"), "More4DCameraLoad", "wrong.json"
    ),
    "a scene from outside the folders": (
        load_scene("../../../../etc/passwd"), "More4DSceneLoad", "leads out of the folder"
    ),
    "a camera from outside the folders": (
        load_camera("/etc/hostname"), "More4DCameraLoad", "leads out of the folder"
    ),
    "a scene to outside the folders": (
        save("More4DSceneSave", "../../evil"), "More4DSceneSave", "leads out of the folder"
    ),
    "an export to outside the folders": (
        save("More4DSceneExport", "/tmp/evil"), "More4DSceneExport", "leads out of the folder"
    ),
    "a camera to outside the folders": (
        save("More4DCameraSave", "..\\..\\evil/../../x"), "More4DCameraSave", "leads out of"
    ),
    "a file name that names nothing": (
        save("More4DSceneSave", "more4d/"), "More4DSceneSave", "names no file.*more4d/scene"
    ),
    "UniDepth without its package": (unidepth, "More4DDepthUniDepth", "pip install"),
    "USD without its package": (
        save("More4DSceneExport", "more4d/x", format="usd"), "More4DSceneExport",
        "pip install.*usd-core",
    ),
}  # fmt: skip


class _Code:
    def __reduce__(self):
        return (open, ("/tmp/more4d-was-here", "w"))


@pytest.fixture(scope="module")
def inputs(comfy, tracks_scene, tmp_path_factory):
    """Files of all kinds in the server's input folder."""
    from more4d_backend.scene_files import save_scene

    folder = comfy.base / "input"
    save_scene(folder / "good.safetensors", tracks_scene(frames=FRAMES))
    good = (folder / "good.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(good[: len(good) // 2])
    save_file({"blocks.0.weight": torch.zeros(2)}, folder / "weights.safetensors")
    header = json.dumps(
        {"positions": {"dtype": "F32", "shape": [2**40, 3], "data_offsets": [0, 12 * 2**40]}}
    ).encode()
    (folder / "enormous.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with zipfile.ZipFile(folder / "hostile.npz", "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.array([_Code()], dtype=object), allow_pickle=True)
        for name in ("tracks_XYZ", "visibility", "fx_fy_cx_cy", "images_jpeg_bytes"):
            archive.writestr(f"{name}.npy", buffer.getvalue())
    (folder / "wrong.json").write_text('{"recipe": "pancakes"}')
    wrong = {"diffusion_models": "not-a-transformer", "geometry_estimation": "not-geo4d"}
    for category, name in wrong.items():
        place = comfy.base / "models" / category
        place.mkdir(exist_ok=True)
        save_file({"encoder.conv1.weight": torch.zeros(8)}, place / f"{name}.safetensors")


def outcome(comfy, schemas, draw):
    """Return the node type that turned red, and what it says; or "" and the whole run."""
    graph = Graph()
    draw(graph)
    prompt = graph.prompt(schemas)
    try:
        run = comfy.run(prompt)
    except RejectedError as e:
        (number, said), *others = e.nodes.items()
        assert not others
        return prompt[number]["class_type"], " ".join(x["details"] for x in said["errors"])
    if run.end == "execution_success":
        return "", run
    return run.detail["node_type"], run.detail["exception_message"]


def good(graph):
    _, scene = example(graph)
    path = graph.add("More4DCameraPreset", 0, scene=scene, num_frames=3)
    rendered = graph.add("More4DRender", 0, scene=scene, camera_path=path["camera_path"])
    graph.add("PreviewImage", 0, images=rendered["image"])


@pytest.mark.usefixtures("inputs")
@pytest.mark.parametrize("case", CASES)
def test_the_node_turns_red_with_a_helpful_sentence_and_the_next_prompt_works(comfy, schemas, case):
    draw, node, said = CASES[case]
    if case == "USD without its package" and _has_package(comfy, "pxr"):
        pytest.skip("the host's environment has usd-core")
    if case == "UniDepth without its package" and _has_package(comfy, "unidepth"):
        pytest.skip("the host's environment has unidepth")
    type, sentence = outcome(comfy, schemas, draw)
    assert type == node, sentence
    assert re.search(said, sentence, re.DOTALL), sentence
    assert len(sentence) > 30
    assert "Traceback" not in sentence
    assert outcome(comfy, schemas, good)[0] == ""


def _has_package(comfy, name):
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([str(comfy.installation.python), "-c", code]).returncode == 0


def test_nothing_ran_that_was_in_a_file(comfy):

    assert not Path("/tmp/more4d-was-here").exists()
    assert not list(comfy.base.parent.glob("evil*"))
    assert not list(Path("/tmp").glob("evil*"))


@pytest.mark.parametrize(
    ("mask", "said"), [(1.0, "nearly everything"), (0.0, "inverted|next to nothing")]
)
def test_a_mask_that_is_likely_a_mistake_is_said_on_the_node(comfy, schemas, mask, said):
    type, run = outcome(comfy, schemas, lambda g: vism(g, mask=mask))
    assert type == "", run
    texts = [data["text"] for kind, data in run.events if kind == "text"]
    assert any(re.search(said, text) for text in texts), texts


def test_a_full_output_folder_is_said_and_nothing_half_written_stays(comfy, schemas):
    folder = comfy.base / "output" / "full"
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a folder that is full")
    try:
        type, sentence = outcome(comfy, schemas, save("More4DSceneSave", "full/scene"))
        assert type == "More4DSceneSave", sentence
        assert "space" in sentence, sentence
        assert not list(folder.iterdir())
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert outcome(comfy, schemas, save("More4DSceneSave", "full/scene"))[0] == ""
