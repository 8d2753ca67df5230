"""The depth nodes and Scene From Geometry, on worlds whose truth is known."""

import sys
import types
from pathlib import Path

import torch
from more4d_pack.more4d_backend import tiny
from more4d_pack.more4d_backend.camera_paths import scene_path
from more4d_pack.more4d_backend.depth import TinyDepth, lift_prediction
from more4d_pack.more4d_backend.synthetic import make_world
from more4d_pack.nodes.depth import (
    More4DDepthFromDepthAnything3,
    More4DDepthFromImage,
    More4DDepthFromMoGe,
    More4DDepthTiny,
    More4DDepthUniDepth,
)
from more4d_pack.nodes.scene import More4DSceneFromGeometry

HEIGHT, WIDTH, FRAMES = 48, 64, 3
OPTIONS = {"fov_deg": 0.0, "max_depth": 0.0, "drop_edges": False}


def _view(moving_camera=True):
    world = make_world(1, moving_camera=moving_camera)
    cameras = world.cameras(FRAMES, HEIGHT, WIDTH)
    return world.view(cameras), cameras


def _moge(view, cameras):
    """As the host's Run MoGe Inference gives it: intrinsics in widths and heights."""
    scale = torch.tensor([1 / WIDTH, 1 / HEIGHT, 1.0])[:, None]
    mask = torch.ones_like(view.depth, dtype=torch.bool)
    mask[:, :4] = False
    return {
        "image": view.rgb,
        "depth": view.depth.where(mask, torch.inf),
        "intrinsics": scale * cameras.intrinsics,
        "mask": mask,
        "points": view.positions,
    }


def _da3(view, cameras, network_hw=(42, 56)):
    """As the host's Run Depth Anything 3 gives it: cameras at the network's size, any world."""
    shift = torch.eye(4)
    shift[:3, 3] = torch.tensor([1.0, -2.0, 0.5])
    seen = cameras.resized(*network_hw)
    sky = torch.zeros_like(view.depth)
    sky[:, :5] = 1.0
    return {
        "mode": "multiview",
        "image": view.rgb,
        "depth": view.depth,
        "sky": sky,
        "confidence": 1 / view.depth,
        "extrinsics": (cameras.world_to_camera @ shift)[None, :, :3],
        "intrinsics": seen.intrinsics[None],
    }


def _shown(scene, view):
    points = scene.points
    return {
        "positions": points.positions,
        "valid": points.valid,
        "colors": points.colors,
        "intrinsics": scene.cameras.intrinsics,
        "world_to_camera": scene.cameras.world_to_camera,
        "true_positions": view.positions,
        "true_colors": view.rgb,
        "confidence": torch.zeros(0) if points.confidence is None else points.confidence,
        "fps": scene.fps,
    }


def from_moge():
    view, cameras = _view(moving_camera=False)
    geometry = _moge(view, cameras)
    scene, depth = More4DDepthFromMoGe.execute(geometry, 1, **OPTIONS).result
    return _shown(scene, view) | {"depth": depth, "true_intrinsics": cameras.intrinsics}


def from_da3():
    view, cameras = _view(moving_camera=False)
    scene, _ = More4DDepthFromDepthAnything3.execute(_da3(view, cameras), 2, **OPTIONS).result
    return _shown(scene, view) | {"true_intrinsics": cameras.intrinsics}


def refused_geometry(what):
    view, cameras = _view()
    moge, da3 = _moge(view, cameras), _da3(view, cameras)
    if what == "panorama":
        del moge["intrinsics"]
        More4DDepthFromMoGe.execute(moge, 0, **OPTIONS)
    if what == "index":
        More4DDepthFromMoGe.execute(moge, FRAMES, **OPTIONS)
    for name in ("intrinsics", "extrinsics"):
        del da3[name]
    da3["mode"] = "mono"
    if what == "mono":
        More4DDepthFromDepthAnything3.execute(da3, 0, **OPTIONS)
    if what == "mono video":
        More4DSceneFromGeometry.execute(da3, 8.0, 0.0, 0.0, False)


def video(kind, fov_deg=0.0):
    view, cameras = _view(moving_camera=kind == "da3")
    geometry = _da3(view, cameras) if kind == "da3" else _moge(view, cameras)
    (scene,) = More4DSceneFromGeometry.execute(geometry, 12.0, fov_deg, 0.0, False).result
    path = scene_path("orbit-left", scene, FRAMES)
    return _shown(scene, view) | {
        "true_world_to_camera": cameras.world_to_camera,
        "true_intrinsics": cameras.intrinsics,
        "path_frames": path.num_frames,
    }


def from_image(encoding, near, far, depth=None, fov_deg=60.0):
    view, _ = _view()
    z = view.depth[:1]
    values = {
        "disparity 0-1": (1 / z - 1 / far) / (1 / near - 1 / far),
        "depth 0-1": (z - near) / (far - near),
        "depth": z,
    }[encoding]
    values = values[..., None].expand(-1, -1, -1, 3) if depth is None else depth
    options = OPTIONS | {"fov_deg": fov_deg}
    scene, picture = More4DDepthFromImage.execute(
        view.rgb[:1], values, encoding, near, far, **options
    ).result
    return {"z": scene.points.positions[..., 2], "true_z": z, "picture": picture}


def tiny_depth(folder, image):
    usual, tiny.WEIGHTS_FOLDER = tiny.WEIGHTS_FOLDER, Path(folder)
    try:
        scene, picture = More4DDepthTiny.execute(image[None], **OPTIONS).result
        wanted = lift_prediction(image, TinyDepth.load().predict(image))
    finally:
        tiny.WEIGHTS_FOLDER = usual
    return {
        "positions": scene.points.positions,
        "wanted": wanted.points.positions,
        "picture": picture,
    }


class _FakeUniDepth(torch.nn.Module):
    """What the node asks of the package: depth 3 m, a focal length of 50 px, 0 to 255 in."""

    interpolation_mode = None

    @classmethod
    def from_pretrained(cls, folder):
        assert Path(folder, "config.json").is_file()
        return cls()

    def infer(self, rgb):
        assert rgb.dtype == torch.uint8
        intrinsics = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
        return {"depth": torch.full((1, 1, *rgb.shape[1:]), 3.0), "intrinsics": intrinsics[None]}


def unidepth(models):
    import folder_paths

    folder = Path(models) / "unidepth-v2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    folder_paths.add_model_folder_path("geometry_estimation", models)
    before = More4DDepthUniDepth.validate_inputs("unidepth-v2/model.safetensors")
    package = types.ModuleType("unidepth")
    package.__spec__ = types.SimpleNamespace(name="unidepth")
    package.models = types.ModuleType("unidepth.models")
    package.models.UniDepthV2 = _FakeUniDepth
    sys.modules |= {"unidepth": package, "unidepth.models": package.models}
    try:
        after = More4DDepthUniDepth.validate_inputs("unidepth-v2/model.safetensors")
        wrong = More4DDepthUniDepth.validate_inputs("nothing.safetensors")
        image = torch.rand(1, HEIGHT, WIDTH, 3)
        result = More4DDepthUniDepth.execute(image, "unidepth-v2/model.safetensors", **OPTIONS)
    finally:
        del sys.modules["unidepth"], sys.modules["unidepth.models"]
    scene = result.result[0]
    return {
        "before": before,
        "after": after,
        "wrong": wrong,
        "z": scene.points.positions[..., 2],
        "intrinsics": scene.cameras.intrinsics,
    }


def cameras_of_the_hosts_network():
    """The host's own Depth Anything 3, untrained, on pictures of another size than it works at."""
    import comfy.ops
    import comfy_extras.nodes_depth_anything_3 as host
    from comfy.ldm.depth_anything_3.model import DepthAnything3Net
    from more4d_pack.nodes.convert import host_geometry

    torch.manual_seed(0)
    network = DepthAnything3Net(
        backbone_name="vits", out_layers=(5, 7, 9, 11), alt_start=4, qknorm_start=4, rope_start=4,
        cat_token=True, head_type="dualdpt", head_dim_in=768, head_output_dim=2, head_features=64,
        head_out_channels=(48, 96, 192, 384), has_cam_enc=True, has_cam_dec=True,
        dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    network.dtype = torch.float32
    model = types.SimpleNamespace(model=types.SimpleNamespace(diffusion_model=network.eval()))
    usual, host.mm.load_model_gpu = host.mm.load_model_gpu, lambda _: None
    mode = {"mode": "multiview", "ref_view_strategy": "first", "pose_method": "cam_dec"}
    try:
        images = torch.rand(3, 90, 160, 3)
        geometry = host.DA3Inference.execute(model, images, 140, "upper_bound_resize", mode)
    finally:
        host.mm.load_model_gpu = usual
    geometry = geometry.result[0]
    found = host_geometry(geometry)
    return {
        "intrinsics": found.intrinsics,
        "host_intrinsics": geometry["intrinsics"][0],
        "world_to_camera": found.world_to_camera,
    }
