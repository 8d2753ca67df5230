"""Camera, render and scene nodes beside the backend's own functions and the host's own nodes."""

import logging
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_extras.nodes_camera_trajectory import WanCameraEmbedding
from comfy_extras.nodes_gaussian_splat import File3DToSplat, RenderSplat
from more4d_pack.more4d_backend import camera_paths
from more4d_pack.more4d_backend.camera_files import load_cameras
from more4d_pack.more4d_backend.camera_files.json_formats import load3d_from_cameras
from more4d_pack.more4d_backend.camera_paths.edits import concatenate_paths
from more4d_pack.more4d_backend.camera_paths.wan_embedding import wan_camera_embedding
from more4d_pack.more4d_backend.depth.depth_pictures import depth_picture
from more4d_pack.more4d_backend.rendering import RenderSettings, hole_mask, render
from more4d_pack.more4d_backend.scene import Cameras
from more4d_pack.more4d_backend.scene_files import load_scene
from more4d_pack.more4d_backend.synthetic import make_world
from more4d_pack.nodes import camera, camera_files, scene
from more4d_pack.nodes.folders import file_at
from more4d_pack.nodes.render import More4DRender

HEIGHT, WIDTH, FRAMES = 48, 64, 5
RENDER = {
    "mode": "nearest", "width": 0, "height": 0, "grow_px": 0, "feather_px": 0,
    "min_area_px": 0, "draw_unseen": False, "depth_as": "camera z",
}  # fmt: skip
PRESET = {
    "num_frames": 0, "amplitude": 1.0, "ease": "auto", "loop": False, "angle_deg": 0.0,
    "pivot_distance": 0.0, "seed": 0,
}  # fmt: skip


def _scene(frames=FRAMES):
    world = make_world(1)
    return world.scene(world.cameras(frames, HEIGHT, WIDTH))


def _poses(path):
    return {"world_to_camera": path.world_to_camera, "intrinsics": path.intrinsics}


def preset(frames, inputs):
    made = _scene(frames)
    (path,) = camera.More4DCameraPreset.execute(made, "arc-left", **(PRESET | inputs)).result
    settings = camera_paths.PathSettings(
        amplitude=inputs.get("amplitude", 1.0),
        ease="in-out",
        angle_deg=inputs.get("angle_deg") or None,
    )
    wanted = camera_paths.scene_path("arc-left", made, path.num_frames, settings=settings)
    return {"found": _poses(path), "wanted": _poses(wanted)}


class _Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def preset_warnings(name, inputs):
    """What the log warns of when a path is made."""
    warnings = _Warnings()
    logger = logging.getLogger("more4d_pack")
    logger.addHandler(warnings)
    try:
        camera.More4DCameraPreset.execute(_scene(), name, **(PRESET | inputs))
    finally:
        logger.removeHandler(warnings)
    return {"texts": warnings.texts}


def keyframes(text=None):
    made = _scene()
    text = camera._EXAMPLE_KEYFRAMES if text is None else text
    said = camera.More4DCameraKeyframes.validate_inputs(text)
    if said is not True:
        return {"said": said}
    (path,) = camera.More4DCameraKeyframes.execute(made, text, 7).result
    end = path.camera_to_world[-1, :3, 3] / camera_paths.scene_scale(made)
    return {"said": said, "end": end, "frames": path.num_frames}


def combine(inputs):
    made = _scene()
    first = camera_paths.scene_path("orbit-left", made)
    then = camera_paths.scene_path("dolly-in", made)
    usual = {"reverse": False, "there_and_back": False, "num_frames": 0, "ease": "linear"}
    inputs = usual | inputs
    joined = inputs.pop("joined", True)
    result = camera.More4DCameraCombine.execute(first, then=then if joined else None, **inputs)
    wanted = concatenate_paths(first, then) if joined else first
    return {"found": _poses(result.result[0]), "wanted": _poses(wanted)}


def load3d(start_at_input_view, ends, fov=True):
    made = _scene()
    targets = camera_paths.scene_path("arc-left", made).frames([2, 4])
    infos = load3d_from_cameras(targets)
    if not fov:
        infos = [{k: v for k, v in info.items() if k != "fov"} for info in infos]
    (path,) = camera.More4DCameraFromLoad3D.execute(
        made, infos[0], start_at_input_view, 9, "linear", infos[1] if ends == 2 else None
    ).result
    start = made.cameras.frames([0])
    return {"found": _poses(path), "targets": _poses(targets), "start": _poses(start)}


def wan_embedding(pose):
    """Ours of the very path that the host's own node makes for a movement."""
    import numpy as np
    from comfy_extras import nodes_camera_trajectory as host

    width, height, frames, focal = 64, 48, 9, 0.7
    wanted, *sizes = WanCameraEmbedding.execute(
        pose, width, height, frames, speed=0.8, fx=focal, fy=focal
    ).result
    motion = host.CAMERA_DICT[pose]
    poses = torch.eye(4).repeat(frames, 1, 1).double()
    poses[:, :3] = torch.from_numpy(
        host.get_camera_motion(np.array(motion["angle"]), np.array(motion["T"]), 0.8, frames)
    )
    # The host takes focal lengths to be of a 1280x720 picture, and fits that to the video.
    pose_aspect, aspect = 1280 / 720, width / height
    fx, fy = focal, focal
    if pose_aspect > aspect:
        fx = height * pose_aspect * focal / width
    else:
        fy = width / pose_aspect * focal / height
    intrinsics = torch.tensor([[fx * width, 0, width / 2], [0, fy * height, height / 2], [0, 0, 1]])
    path = Cameras(
        world_to_camera=torch.linalg.inv(poses),
        intrinsics=intrinsics.double().repeat(frames, 1, 1),
        height=height,
        width=width,
    )
    found, *ours = camera.More4DCameraToWanEmbedding.execute(path, 0, 0, 1.0).result
    assert torch.equal(found, wan_camera_embedding(path))
    return {"found": found, "wanted": wanted, "sizes": sizes, "our_sizes": ours}


def preview():
    made = _scene()
    path = camera_paths.scene_path("orbit-left", made)
    node = camera.More4DCameraPreview.execute(path, 640, made)
    return {"image": node.result[0], "shown": len(node.ui.as_dict()["images"])}


def save_and_load_path(format):
    made = _scene()
    path = camera_paths.scene_path("orbit-left", made)
    prefix = f"more4d/path_{format}"
    saved = camera_files.More4DCameraSave.execute(path, prefix, format, 8.0)
    name = saved.result[0]
    if format == "colmap":
        file = folder_paths.get_annotated_filepath(name)
        return {"found": _poses(load_cameras(file)), "wanted": _poses(path), "name": name}
    listed = camera_files.More4DCameraLoad.INPUT_TYPES()["required"]["file"][1]["options"]
    assert name in listed, (name, listed)
    before = camera_files.More4DCameraLoad.fingerprint_inputs(file=name, num_frames=0)
    (loaded,) = camera_files.More4DCameraLoad.execute(made, name, 0, False).result
    assert camera_files.More4DCameraLoad.fingerprint_inputs(file=name) == before
    return {"found": _poses(loaded), "wanted": _poses(path), "name": name}


def path_in_scene_world(in_scene_world):
    """A path that does not start at the input view, loaded."""
    made = _scene()
    path = camera_paths.scene_path("orbit-left", made).frames([2, 3, 4])
    name = camera_files.More4DCameraSave.execute(path, "more4d/part", "npz", 8.0).result[0]
    (loaded,) = camera_files.More4DCameraLoad.execute(made, name, 3, in_scene_world).result
    return {"found": _poses(loaded), "wanted": _poses(path)}


def rendered(inputs):
    made = _scene()
    path = camera_paths.scene_path("orbit-left", made)
    inputs = RENDER | inputs
    image, holes, depth, view, fps = More4DRender.execute(made, path, **inputs).result
    sized = path.resized(inputs["height"] or HEIGHT, inputs["width"] or WIDTH)
    settings = RenderSettings(mode=inputs["mode"], draw_unseen=inputs["draw_unseen"])
    wanted = render(made, sized, settings)
    sizes = {name: inputs[name] for name in ("grow_px", "feather_px")}
    shown = wanted.depth if inputs["depth_as"] == "camera z" else depth_picture(wanted.depth)
    return {
        "image": image,
        "holes": holes,
        "depth": depth,
        "view_rgb": view.rgb,
        "wanted_image": wanted.rgb,
        "wanted_holes": hole_mask(wanted.alpha, **sizes),
        "wanted_depth": shown,
        "fps": fps,
        "wanted_fps": made.fps,
    }


def render_refused(path_frames):
    made = _scene()
    path = camera_paths.scene_path("orbit-left", made, path_frames)
    More4DRender.execute(made, path, **RENDER)


def render_interrupted():
    """Interrupt after the first frames are reported; then once more, to the end."""
    made = _scene(9)
    path = camera_paths.scene_path("orbit-left", made)
    reported = []

    def hook(value, total, preview, **_):
        reported.append((value, total))
        comfy.model_management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(hook)
    from more4d_pack.more4d_backend.rendering import reference

    usual, reference._CPU_BYTES = reference._CPU_BYTES, 1  # one frame at a time
    try:
        More4DRender.execute(made, path, **RENDER)
        interrupted = False
    except comfy.model_management.InterruptProcessingException:
        interrupted = True
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        reference._CPU_BYTES = usual
    image = More4DRender.execute(made, path, **RENDER).result[0]
    return {"interrupted": interrupted, "reported": reported, "frames": len(image)}


def save_and_load_scene():
    made = _scene()
    names = [scene.More4DSceneSave.execute(made, "more4d/try").result[0] for _ in range(2)]
    (loaded,) = scene.More4DSceneLoad.execute(names[1]).result
    direct = load_scene(file_at(names[0]))
    return {
        "names": names,
        "found": loaded.points.positions,
        "direct": direct.points.positions,
        "wanted": made.points.positions,
    }


def place(node, name):
    """What a node says of a place before it runs."""
    classes = {
        "load": (scene.More4DSceneLoad, "file"),
        "save": (scene.More4DSceneSave, "filename_prefix"),
        "export": (scene.More4DSceneExport, "filename_prefix"),
        "load path": (camera_files.More4DCameraLoad, "file"),
        "save path": (camera_files.More4DCameraSave, "filename_prefix"),
    }
    cls, argument = classes[node]
    return {"said": cls.validate_inputs(**{argument: name})}


def run_save(prefix):
    scene.More4DSceneSave.execute(_scene(), prefix)


def place_where_windows_rules(name):
    """What Save says of a name where the system has Windows' rules for them."""
    from more4d_pack.nodes import folders

    folders._REFUSED = '<>:"|?*'
    try:
        return place("save", name)
    finally:
        folders._REFUSED = ""


def saved_name(prefix):
    return {"name": scene.More4DSceneSave.execute(_scene(), prefix).result[0]}


def combine_of_two_sizes():
    path = camera_paths.scene_path("orbit-left", _scene())
    then = path.resized(2 * HEIGHT, 2 * WIDTH)
    camera.More4DCameraCombine.execute(path, False, False, 0, "linear", then)


def nothing_seen(which):
    """A path in a scene whose points all lie behind the input view."""
    made = _scene()
    made = replace(made, points=replace(made.points, positions=made.points.positions - 1e6))
    if which == "preset":
        camera.More4DCameraPreset.execute(made, "orbit-left", **PRESET)
    else:
        camera.More4DCameraKeyframes.execute(made, camera._EXAMPLE_KEYFRAMES, 7)


def viewer_runs():
    """What the host compares to know whether a viewer is to run again."""
    from comfy_api.latest import io
    from more4d_pack.nodes.viewer import More4DSceneViewer

    made = _scene()
    node = More4DSceneViewer.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "5"}})

    def run():
        return node.execute(made).ui["more4d_view"][0]["full"]["filename"]

    before, name = node.fingerprint_inputs(), run()
    after = node.fingerprint_inputs()
    (Path(folder_paths.get_temp_directory()) / "more4d" / name).unlink()
    lost = node.fingerprint_inputs()
    names = [name, run()]
    return {"before": before, "after": after, "lost": lost, "again": node.fingerprint_inputs(),
            "names": names}  # fmt: skip


def run_save_where_nothing_fits(node):
    """As on a full disk: no file may grow beyond a few bytes."""
    import resource
    import signal

    made, path = _scene(), camera_paths.scene_path("orbit-left", _scene())
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        if node == "save":
            scene.More4DSceneSave.execute(made, "full/scene")
        elif node == "export":
            scene.More4DSceneExport.execute(made, "gaussians", "full/export", -1)
        else:
            camera_files.More4DCameraSave.execute(path, "full/path", "keyframes", 8.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def run_load(name):
    scene.More4DSceneLoad.execute(name)


def export(format, frame, prefix=None):
    made = _scene()
    prefix = prefix or f"more4d/export_{format}"
    name = scene.More4DSceneExport.execute(made, format, prefix, frame).result[0]
    path = folder_paths.get_annotated_filepath(name)
    return {"name": name, "path": path}


def splat():
    """Our splats in the host's own renderer, from the input view; and its reading of our PLY."""
    made = _scene(1)
    (value,) = scene.More4DSceneToSplat.execute(made, 0).result
    (file,) = scene.More4DSceneToFile3D.execute(made, 0, "gaussians").result
    (read,) = File3DToSplat.execute(file).result
    image = RenderSplat.execute(
        splat=value, width=WIDTH, height=HEIGHT, splat_scale=1.0, sharpen=1.0,
        headlight_shading=0.0, frames=1, opacity_threshold=0.0, background="#000000",
        render_style="color", camera_info=load3d_from_cameras(made.cameras)[0],
    ).result[0]  # fmt: skip
    names = ("positions", "scales", "rotations", "opacities")
    return {
        "image": image,
        "wanted": render(made, made.cameras, RenderSettings(mode="splat")).rgb,
        "value": {n: getattr(value, n) for n in names} | {"color": value.sh[..., 0, :]},
        "read": {n: getattr(read, n) for n in names} | {"color": read.sh[..., 0, :]},
    }


def points_file():
    made = _scene()
    (file,) = scene.More4DSceneToFile3D.execute(made, 1, "points").result
    return {"format": file.format, "start": list(file.get_bytes()[:3])}


def frame_outside():
    scene.More4DSceneToSplat.execute(_scene(), FRAMES)


def own_nodes_module():
    """Which file the name `nodes` stands for once the pack is there."""
    import importlib

    return {"file": importlib.import_module("nodes").__file__, "pack": scene.__name__}
