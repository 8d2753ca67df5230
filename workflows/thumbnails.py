"""The pictures beside the workflows: real renders of procedural scenes along real camera paths.

make demo  # with the embedded weights: makes the video
python -m workflows.thumbnails out/demo/orbit-left.mp4
"""

import sys
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from more4d_backend.camera_paths import PathSettings, scene_path, scene_scale
from more4d_backend.camera_paths.keyframes import cameras_from_keyframes, keyframes_from_json
from more4d_backend.camera_paths.preview import draw_path
from more4d_backend.files import replacing
from more4d_backend.files.videos import load_video
from more4d_backend.rendering import RenderSettings, render
from more4d_backend.rendering.settings import RenderMode
from more4d_backend.scene import Cameras, Scene4D
from training.procedural.demo_picture import demo_scene

from .texts import KEYFRAMES

_FOLDER = Path(__file__).parent
_PANEL_HW = (192, 264)
_AMPLITUDE = 0.35
_FRAMES = 49
_HOLE = torch.tensor([0.93, 0.93, 0.96])

Panel = Float[Tensor, "height width 3"]


def main(demo_video: Path) -> None:
    """Write one .jpg for every workflow."""
    boxes, worm = demo_scene(900_000_028).truth, demo_scene(900_000_049).truth
    still = worm.frames([0])
    write("image-to-4d-video", orbit(worm, (0, 16, 32, 48)))
    write("image-to-4d-video-tiny", filmed(demo_video, (0, 16, 32, 48)))
    path = scene_path("arc-right", still, _FRAMES, settings=PathSettings(amplitude=_AMPLITUDE))
    write("host-geometry-to-video", path_and_views(still, path))
    scale, keyframes = scene_scale(still), keyframes_from_json(KEYFRAMES, "KEYFRAMES")
    drawn = cameras_from_keyframes(keyframes, still.cameras, _FRAMES, scene_scale=scale)
    write("draw-a-camera", path_and_views(still, drawn))
    write("video-to-4d-video", [seen(boxes, "arc-right", 16 * i) for i in range(4)])
    presets = ("orbit-left", "dolly-in", "crane-up", "dolly-zoom")
    write("one-scene-many-cameras", [seen(boxes, preset, 48) for preset in presets])
    modes: tuple[RenderMode, ...] = ("nearest", "gaussian", "nearest", "splat")
    write(
        "scene-export",
        [seen(boxes, "crane-up", 16 * i, mode=mode) for i, mode in enumerate(modes)],
    )


def path_and_views(scene: Scene4D, path: Cameras) -> list[Panel]:
    """Return a drawing of a path, and its first view, one on the way and its last."""
    preview = draw_path(path, scene, width=640).resize((_PANEL_HW[1], _PANEL_HW[0]))
    drawn = torch.frombuffer(bytearray(preview.convert("RGB").tobytes()), dtype=torch.uint8)
    first, middle, last = (view(scene, path, frame) for frame in (0, _FRAMES // 2, _FRAMES - 1))
    return [first, drawn.view(*_PANEL_HW, 3) / 255, middle, last]


def orbit(scene: Scene4D, frames: tuple[int, ...]) -> list[Panel]:
    """Return views of a moving scene along an orbit."""
    return [seen(scene, "orbit-left", frame) for frame in frames]


def filmed(video: Path, frames: tuple[int, ...]) -> list[Panel]:
    """Return frames of a video."""
    rgb, _ = load_video(video)
    pictures = rearrange(rgb[list(frames)], "f h w c -> f c h w")
    larger = interpolate(pictures, _PANEL_HW, mode="bicubic")
    return list(rearrange(larger, "f c h w -> f h w c"))


def seen(scene: Scene4D, preset: str, frame: int, *, mode: RenderMode = "splat") -> Panel:
    """Return one frame of a camera path; holes are nearly white."""
    path = scene_path(preset, scene, _FRAMES, settings=PathSettings(amplitude=_AMPLITUDE))
    return view(scene, path, frame, mode=mode)


def view(scene: Scene4D, path: Cameras, frame: int, *, mode: RenderMode = "splat") -> Panel:
    """Return what one camera of a path sees; holes are nearly white."""
    camera = path.frames([frame]).resized(*_PANEL_HW)
    moment = scene if scene.num_frames == 1 else scene.frames([frame])
    found = render(moment, camera, RenderSettings(mode=mode))
    return found.rgb[0] + (1 - found.alpha[0, ..., None]) * _HOLE


def write(name: str, panels: list[Panel]) -> None:
    """Put four panels into one picture."""
    picture = rearrange(torch.stack(panels), "(row column) h w c -> (row h) (column w) c", row=2)
    pixels = (picture.clamp(0, 1) * 255).round().byte().numpy()
    with replacing(_FOLDER / f"{name}.jpg") as temporary:
        Image.fromarray(pixels).save(temporary, "jpeg", quality=85, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
