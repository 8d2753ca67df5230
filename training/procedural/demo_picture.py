"""The picture that `make demo` starts from: a procedural scene that nothing was trained on.

    python -m training.procedural.demo_picture out/demo --seed 900000000

Writes photo.png and caption.txt, and says how far each thing will have to move. Seeds from
`FIRST_HELD_OUT_SEED` on are for this and for nothing else.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from more4d_backend.files import replacing
from more4d_backend.files.images import save_image
from more4d_backend.geometry import project, transform_points
from more4d_backend.scene import Scene4D

from ..data.samples import SampleObject
from ..run.settings import SettingsError
from .dataset import procedural_tiny
from .scenes import draw_scene

_log = logging.getLogger(__name__)

FIRST_HELD_OUT_SEED = 900_000_000
"""Training and validation draw from smaller seeds."""

DEMO_SEED = 900_000_028
"""Things that move differently, each by at least `LEAST_MOTION_PX`."""

LEAST_MOTION_PX = 10.0
"""Less could be noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoScene:
    """A picture, what is said of it, and what is true of it."""

    image: Float[Tensor, "height width 3"]
    """sRGB in [0, 1]."""

    depth: Float[Tensor, "height width"]
    """Camera z in metres."""

    caption: str
    """Names everything that is not scenery, and what it does."""

    objects: tuple[SampleObject, ...]
    """In the order of the caption."""

    object_index: Int[Tensor, "height width"]
    """Which of `objects` a pixel shows; -1 for scenery."""

    truth: Scene4D
    """Where every pixel's point goes."""


def demo_scene(seed: int) -> DemoScene:
    """Draw the scene of a seed, as the embedded weights know them.

    Raises:
        SettingsError: no scene fits the settings.
    """
    settings = procedural_tiny()
    drawn, size = draw_scene(seed, settings), settings.size
    cameras = drawn.world.cameras(size.num_frames, size.height, size.width)
    view = drawn.world.view(cameras.frames([0]), samples=settings.samples)
    tracks = drawn.world.tracks(cameras, first=view)
    actor_of = torch.tensor([*drawn.actor_of, -1])  # the sky is object -1, the last
    return DemoScene(
        image=view.rgb[0],
        depth=view.depth[0],
        caption=drawn.caption,
        objects=drawn.actors,
        object_index=actor_of[view.object_index[0]],
        truth=Scene4D(points=tracks, cameras=cameras, fps=settings.fps),
    )


def largest_motion_px(
    scene: Scene4D, object_index: Int[Tensor, "height width"], num_objects: int
) -> list[float]:
    """Return how far the middle one of each object's pixels gets from its place in the picture."""
    cameras, points = scene.cameras, scene.points
    in_camera = transform_points(points.positions, cameras.world_to_camera[:, None])
    pixels, _ = project(in_camera, cameras.intrinsics[:, None])
    distance = (pixels - pixels[:1]).norm(dim=-1).amax(0)
    of_object = object_index.flatten()
    return [float(distance[of_object == i].median()) for i in range(num_objects)]


def write(destination: Path, /, *, seed: int = DEMO_SEED) -> int:
    """Write photo.png and caption.txt.

    Args:
        destination: folder to write to.
        seed: chooses the scene; 900000000 or more.
    """
    if seed < FIRST_HELD_OUT_SEED:
        raise SettingsError(
            f"seed is {seed}; expected {FIRST_HELD_OUT_SEED} or more: smaller ones may have been "
            "trained on."
        )
    scene = demo_scene(seed)
    motion_px = largest_motion_px(scene.truth, scene.object_index, len(scene.objects))
    save_image(destination / "photo.png", scene.image)
    with replacing(destination / "caption.txt") as temporary:
        temporary.write_text(scene.caption + "\n", encoding="utf-8")
    _log.info("Held-out scene %d: %s", seed, scene.caption)
    for thing, moved in zip(scene.objects, motion_px, strict=True):
        _log.info("  %s %s: %.0f pixels at most", thing.name, thing.motion, moved)
    if max(motion_px) < LEAST_MOTION_PX:
        _log.warning("Nothing moves by %g pixels; another seed shows more.", LEAST_MOTION_PX)
    return 0


if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    raise SystemExit(tyro.cli(write))
