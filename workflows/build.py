"""The example workflows and the subgraph blueprint, written against a host's own nodes.

    python -m workflows.build http://127.0.0.1:8188

asks a running ComfyUI (the oldest one that is supported, so that newer ones can read the files) and
writes workflows/*.json and subgraphs/*.json. Thumbnails: `workflows.thumbnails`.
"""

import json
import sys
import urllib.request
from pathlib import Path

from .blueprints import blueprint_file
from .graph import Graph, Link, Model, Node, Outer, Schemas, page_file
from .texts import KEYFRAMES, NOTES

ROOT = Path(__file__).parents[1]

_HUB = "https://huggingface.co"
_RELEASED = f"{_HUB}/Yanran21/MoGe4D/resolve/main"
_WAN = f"{_HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
STRAG = Model(
    name="4D-STraG.safetensors",
    url=f"{_RELEASED}/4D-STraG/diffusion_pytorch_model.safetensors",
    directory="diffusion_models",
)
VISM_LORA = Model(
    name="4D-ViSM-lora.safetensors",
    url=f"{_RELEASED}/4D-ViSM/lora_diffusion_pytorch_model.safetensors",
    directory="loras",
)
FUN_INP = Model(
    name="Wan2.1-Fun-V1.1-14B-InP.safetensors",
    url=f"{_HUB}/alibaba-pai/Wan2.1-Fun-V1.1-14B-InP/resolve/main/"
    "diffusion_pytorch_model.safetensors",
    directory="diffusion_models",
)
WAN_VAE = Model(
    name="wan_2.1_vae.safetensors",
    url=f"{_WAN}/vae/wan_2.1_vae.safetensors",
    directory="vae",
)
UMT5 = Model(
    name="umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    url=f"{_WAN}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    directory="text_encoders",
)
CLIP_VISION = Model(
    name="clip_vision_h.safetensors",
    url=f"{_WAN}/clip_vision/clip_vision_h.safetensors",
    directory="clip_vision",
)
MOGE = Model(
    name="moge_2_vitl_normal_fp16.safetensors",
    url=f"{_HUB}/Comfy-Org/MoGe/resolve/main/geometry_estimation/"
    "moge_2_vitl_normal_fp16.safetensors",
    directory="geometry_estimation",
)
MOTION_VAE = "more4d_motion_vae.safetensors"
"""Made of three released files by `weights convert`; nowhere to be downloaded."""

GEO4D = "geo4d.safetensors"
"""Made of two released files by `weights convert`; nowhere to be downloaded either."""

SAVED_SCENE = "more4d/scene_00001.safetensors [output]"
"""What the two workflows that make a scene write first."""

EXPORTS = {
    "ply": "Points: one PLY per frame",
    "gaussians": "Gaussian splats: one PLY per frame",
    "usd": "USD: moving points and camera",
    "tapvid3d": "Tracks: npz of TAPVid-3D",
}
"""Format -> title of its node."""


def tiny_video(
    graph: Graph,
    *,
    num_frames: int = 49,
    height: int = 128,
    width: int = 176,
    steps: int = 20,
    seed: int = 0,
) -> None:
    """Image to 4D to video, with the embedded models only."""
    example = graph.add("More4DExamplePicture", 0)
    scene = _tiny_scene(
        graph, example, num_frames=num_frames, height=height, width=width, steps=steps, seed=seed
    )
    camera = graph.add("More4DCameraPreset", 4, scene=scene, num_frames=num_frames, amplitude=0.15)
    render = graph.add("More4DRender", 4, scene=scene, camera_path=camera["camera_path"])
    model = _vism_model(
        graph, 5, "more4d_tiny_vism.safetensors", "more4d_tiny_vism_lora.safetensors", 1.0
    )
    text = [n["conditioning"] for n in graph.nodes if n.type == "More4DTinyTextEncode"]
    vae = next(n for n in graph.nodes if n.type == "VAELoader")["vae"]
    video = _filled(
        graph, 6, render, model, vae, text, steps=steps, cfg=1.5, seed=seed, feather_px=2
    )
    _saved(graph, 8, video, "more4d/tiny", fps=render["fps"])
    graph.groups |= {0: "1. Picture and text", 1: "2. Motion", 4: "3. Camera", 5: "4. Fill holes"}


def _tiny_scene(
    graph: Graph, example: Node, *, num_frames: int, height: int, width: int, steps: int, seed: int
) -> Link:
    positive = graph.add("More4DTinyTextEncode", 0, title="What moves", text=example["text"])
    negative = graph.add("More4DTinyTextEncode", 0, title="Nothing to avoid", text="")
    depth = graph.add("More4DDepthTiny", 1, image=example["image"])
    model = graph.add("UNETLoader", 1, unet_name="more4d_tiny_strag.safetensors")
    vae = graph.add("VAELoader", 1, vae_name="more4d_tiny_wan_vae.safetensors")
    motion_vae = graph.add(
        "More4DLoadMotionVAE", 1, motion_vae_name="more4d_tiny_motion_vae.safetensors"
    )
    return _moving_scene(
        graph, 2, model["model"], [positive["conditioning"], negative["conditioning"]],
        vae["vae"], motion_vae["motion_vae"], example["image"], depth["scene"], steps=steps,
        cfg=1.5, seed=seed, num_frames=num_frames, height=height, width=width,
    )  # fmt: skip


def _moving_scene(graph, column, model, text, vae, motion_vae, image, scene, *, steps, cfg, seed,
                  **conditions):  # fmt: skip
    condition = graph.add(
        "More4DStragConditioning", column, model=model, positive=text[0], negative=text[1],
        vae=vae, motion_vae=motion_vae, image=image, scene=scene, **conditions,
    )  # fmt: skip
    latent = _sampled(graph, column + 1, model, condition, steps=steps, cfg=cfg, seed=seed)
    decoded = graph.add(
        "More4DDecodeMotion", column + 1, samples=latent, motion_vae=motion_vae,
        scene=condition["scene"],
    )  # fmt: skip
    return decoded["scene"]


def _sampled(graph, column, model, condition, *, steps, cfg, seed):
    sampler = graph.add(
        "KSampler", column, model=model, seed=seed, steps=steps, cfg=cfg, sampler_name="euler",
        scheduler="normal", denoise=1.0, positive=condition["positive"],
        negative=condition["negative"], latent_image=condition["latent"],
    )  # fmt: skip
    return sampler["latent"]


def _vism_model(graph, column, name, lora, strength, models=((), ())):
    base = graph.add("UNETLoader", column, unet_name=name, models=models[0])
    lora = graph.add(
        "LoraLoaderModelOnly", column, model=base["model"], lora_name=lora,
        strength_model=strength, models=models[1],
    )  # fmt: skip
    shift = graph.add("ModelSamplingSD3", column, model=lora["model"], shift=5.0)
    return shift["model"]


def _filled(graph, column, render, model, vae, text, *, steps, cfg, seed, feather_px=8, clip=None):
    extra = {} if clip is None else {"clip_vision_output": clip}
    condition = graph.add(
        "More4DVismConditioning", column, model=model, positive=text[0], negative=text[1],
        vae=vae, rendered=render["image"], holes=render["holes"], **extra,
    )  # fmt: skip
    latent = _sampled(graph, column, model, condition, steps=steps, cfg=cfg, seed=seed)
    decoded = graph.add("VAEDecode", column + 1, samples=latent, vae=vae)
    pasted = graph.add(
        "More4DPasteBack", column + 1, known=render["image"], filled=decoded["image"],
        holes=render["holes"], feather_px=feather_px,
    )  # fmt: skip
    return pasted["image"]


def _saved(graph, column, images, name, fps: Link):
    video = graph.add("CreateVideo", column, images=images, fps=fps)
    graph.add("SaveVideo", column, video=video["video"], filename_prefix=name)


def tiny_saved_scene(graph: Graph) -> None:
    """The tiny workflow, whose scene is also kept and shown."""
    tiny_video(graph)
    scene = next(n for n in graph.nodes if n.type == "More4DDecodeMotion")["scene"]
    graph.add("More4DSceneSave", 3, scene=scene, filename_prefix="more4d/scene")
    camera = next(n for n in graph.nodes if n.type == "More4DCameraPreset")["camera_path"]
    graph.add("More4DSceneViewer", 4, scene=scene, camera_path=camera)
    graph.note(0, NOTES["tiny"])


def full_video(graph: Graph) -> None:
    """Image to 4D to video, with the released weights."""
    graph.note(0, NOTES["full"])
    image = graph.add("LoadImage", 0, image="example.png")["image"]
    said = "a man walks to the right and waves his hand"
    video, scene = _full_video(graph, image, said, preset="orbit-left", amplitude=1.0, seed=0)
    graph.add("SaveVideo", 9, video=video, filename_prefix="more4d/video")
    graph.add("More4DSceneSave", 4, scene=scene, filename_prefix="more4d/scene")
    camera = next(n for n in graph.nodes if n.type == "More4DCameraPreset")["camera_path"]
    graph.add("More4DSceneViewer", 5, scene=scene, camera_path=camera)
    graph.groups |= {0: "1. Picture, text, depth", 2: "2. Motion", 5: "3. Camera"}
    graph.groups |= {6: "4. Fill holes"}


def _full_video(graph, image, said, *, preset, amplitude, seed, as_inputs=False):
    def file(name, label):
        return Outer(label, name) if as_inputs else name

    text = _texts(graph, 0, said)
    scene = _moge_scene(graph, 1, image)
    vae = graph.add("VAELoader", 1, vae_name=WAN_VAE.name, models=(WAN_VAE,))["vae"]
    model = graph.add(
        "UNETLoader", 2, unet_name=file(STRAG.name, "strag_model"), models=(STRAG,)
    )["model"]  # fmt: skip
    motion_vae = graph.add(
        "More4DLoadMotionVAE", 2, motion_vae_name=file(MOTION_VAE, "motion_vae")
    )["motion_vae"]  # fmt: skip
    clip = graph.add("CLIPVisionLoader", 2, clip_name=CLIP_VISION.name, models=(CLIP_VISION,))
    moving = _moving_scene(
        graph, 3, model, text, vae, motion_vae, image, scene, steps=50, cfg=6.0, seed=seed,
        clip_vision=clip["clip_vision"],
    )  # fmt: skip
    camera = graph.add(
        "More4DCameraPreset", 5, scene=moving, preset=preset, amplitude=amplitude
    )["camera_path"]  # fmt: skip
    render = graph.add("More4DRender", 5, scene=moving, camera_path=camera)
    files = file(FUN_INP.name, "fun_inp_model"), file(VISM_LORA.name, "vism_lora")
    images = _full_fill(graph, 6, render, vae, text, seed, files)
    return graph.add("CreateVideo", 9, images=images, fps=render["fps"])["video"], moving


def host_geometry(graph: Graph) -> None:
    """A still scene from the host's geometry nodes, seen by a moving camera."""
    graph.note(0, NOTES["geometry"])
    image = graph.add("LoadImage", 0, image="example.png")["image"]
    text = _texts(graph, 0, "a quiet street in the morning")
    scene = _moge_scene(graph, 1, image)
    vae = graph.add("VAELoader", 1, vae_name=WAN_VAE.name, models=(WAN_VAE,))["vae"]
    camera = graph.add("More4DCameraPreset", 2, scene=scene, preset="arc-right")
    graph.add("More4DCameraPreview", 2, camera_path=camera["camera_path"], scene=scene)
    render = graph.add("More4DRender", 2, scene=scene, camera_path=camera["camera_path"])
    _saved(graph, 6, _full_fill(graph, 3, render, vae, text, 0), "more4d/geometry", render["fps"])
    graph.groups |= {0: "1. Picture, text, depth", 2: "2. Camera", 3: "3. Fill holes"}


def reshot_video(graph: Graph) -> None:
    """A video to a moving scene, seen by another camera, with its holes filled."""
    graph.note(0, NOTES["video"])
    loaded = graph.add("LoadVideo", 0, file="example.mp4")
    parts = graph.add("GetVideoComponents", 0, video=loaded["video"])
    clip = graph.add("ImageFromBatch", 0, image=parts["images"], batch_index=0, length=49)
    text = _texts(graph, 1, "a street in the morning, people walk by")
    networks = graph.add("More4DLoadGeo4D", 1, weights_name=GEO4D)["geo4d"]
    scene = graph.add(
        "More4DReconstruct", 2, geo4d=networks, image=clip["image"], fps=parts["fps"]
    )["scene"]  # fmt: skip
    graph.add("More4DSceneSave", 2, scene=scene, filename_prefix="more4d/video-scene")
    vae = graph.add("VAELoader", 1, vae_name=WAN_VAE.name, models=(WAN_VAE,))["vae"]
    camera = graph.add("More4DCameraPreset", 3, scene=scene, preset="arc-right", amplitude=0.5)
    graph.add("More4DCameraPreview", 3, camera_path=camera["camera_path"], scene=scene)
    render = graph.add("More4DRender", 3, scene=scene, camera_path=camera["camera_path"])
    graph.add("More4DSceneViewer", 2, scene=scene, camera_path=camera["camera_path"])
    _saved(graph, 7, _full_fill(graph, 4, render, vae, text, 0), "more4d/reshot", render["fps"])
    graph.groups |= {0: "1. Video", 1: "2. Models and text", 2: "3. Scene", 3: "4. New camera"}
    graph.groups |= {4: "5. Fill holes"}


def drawn_camera(graph: Graph) -> None:
    """A picture's points, a camera path drawn in them by hand, and the video along it."""
    graph.note(0, NOTES["drawn"])
    picture = graph.add("More4DExamplePicture", 0)
    scene = graph.add("More4DDepthTiny", 0, image=picture["image"])["scene"]
    camera = graph.add("More4DCameraEditor", 1, scene=scene, keyframes=KEYFRAMES)["camera_path"]
    render = graph.add("More4DRender", 2, scene=scene, camera_path=camera)
    _saved(graph, 3, render["image"], "more4d/drawn-camera", fps=render["fps"])
    graph.groups |= {0: "1. Picture and depth", 1: "2. Draw the camera", 2: "3. Video"}


def many_cameras(graph: Graph) -> None:
    """One scene along four paths."""
    graph.note(0, NOTES["cameras"])
    scene = graph.add("More4DSceneLoad", 0, file=SAVED_SCENE)["scene"]
    for column, preset in enumerate(("orbit-left", "dolly-in", "crane-up", "dolly-zoom"), start=1):
        camera = graph.add("More4DCameraPreset", column, scene=scene, preset=preset)
        graph.add("More4DCameraPreview", column, camera_path=camera["camera_path"], scene=scene)
        render = graph.add("More4DRender", column, scene=scene, camera_path=camera["camera_path"])
        _saved(graph, column, render["image"], f"more4d/{preset}", fps=render["fps"])
    graph.groups |= {0: "Scene", 1: "Cameras"}


def scene_export(graph: Graph) -> None:
    """One scene in the formats of other programs."""
    graph.note(0, NOTES["export"])
    scene = graph.add("More4DSceneLoad", 0, file=SAVED_SCENE)["scene"]
    for format, title in EXPORTS.items():
        graph.add("More4DSceneExport", 1, title=title, scene=scene, format=format,
                  filename_prefix=f"more4d/{format}")  # fmt: skip
    graph.groups |= {0: "Scene", 1: "Files for other programs"}


def _texts(graph: Graph, column: int, said: str) -> list[Link]:
    clip = graph.add("CLIPLoader", column, clip_name=UMT5.name, type="wan", models=(UMT5,))["clip"]
    positive = graph.add("CLIPTextEncode", column, title="What moves", text=said, clip=clip)
    negative = graph.add("CLIPTextEncode", column, title="Nothing to avoid", text="", clip=clip)
    return [positive["conditioning"], negative["conditioning"]]


def _moge_scene(graph: Graph, column: int, image: Link) -> Link:
    model = graph.add("LoadMoGeModel", column, model_name=MOGE.name, models=(MOGE,))
    geometry = graph.add("MoGeInference", column, moge_model=model["moge_model"], image=image)
    lifted = graph.add(
        "More4DDepthFromMoGe", column, moge_geometry=geometry["moge_geometry"], drop_edges=False
    )
    return lifted["scene"]


def _full_fill(graph, column, render, vae, text, seed, files=(FUN_INP.name, VISM_LORA.name)):
    base, lora = files
    model = _vism_model(graph, column, base, lora, 0.55, models=((FUN_INP,), (VISM_LORA,)))
    return _filled(graph, column + 1, render, model, vae, text, steps=50, cfg=6.0, seed=seed)


WORKFLOWS = {
    "image-to-4d-video": full_video,
    "image-to-4d-video-tiny": tiny_saved_scene,
    "host-geometry-to-video": host_geometry,
    "video-to-4d-video": reshot_video,
    "draw-a-camera": drawn_camera,
    "one-scene-many-cameras": many_cameras,
    "scene-export": scene_export,
}
"""Name of the file -> what draws it."""

BLUEPRINT = "Image to 4D video"


def write_all(schemas: Schemas) -> None:
    """Write every file."""
    for name, draw in WORKFLOWS.items():
        graph = Graph()
        draw(graph)
        _write(ROOT / "workflows" / f"{name}.json", page_file(graph, schemas))
    _write(ROOT / "subgraphs" / f"{BLUEPRINT}.json", blueprint(schemas))


def blueprint(schemas: Schemas) -> dict[str, object]:
    """Return the subgraph that turns a picture and a text into a video."""
    graph = Graph()
    video, scene = _full_video(
        graph, Outer("image"), Outer("prompt", ""), preset=Outer("preset", "orbit-left"),
        amplitude=Outer("amplitude", 1.0), seed=Outer("seed", 0), as_inputs=True,
    )  # fmt: skip
    said = "A photo and what moves in it become a 4D scene, and a video of it along a camera path."
    return blueprint_file(BLUEPRINT, graph, {"video": video, "scene": scene}, schemas, said)


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with urllib.request.urlopen(f"{sys.argv[1]}/object_info") as answer:
        write_all(json.load(answer))
