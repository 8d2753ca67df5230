"""Videos with holes whose filling is known, from scenes of tracks: what 4D-ViSM learns from.

Three kinds, all rendered as the pipeline renders:

- `original`: the tracks from the source cameras. Holes are what motion uncovers, for every point
  was seen in frame 0. The released training has these alone.
- `round-trip`: the same, but only with the points that are also seen from a random other camera
  path. Holes are then also what that path does not see: parallax, and what lies outside its
  pictures. The filling is the source video.
- `novel`: the tracks from the sample's second path, whose true video is known. Exactly what the
  pipeline meets; procedural samples have it.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from more4d_backend.camera_paths import PathSettings, check_path_name, scene_path
from more4d_backend.geometry import project, transform_points
from more4d_backend.rendering import RenderSettings, hole_mask, render
from more4d_backend.scene import Cameras, PointTracks, Scene4D

from ..run.settings import SettingsError
from .samples import TrainingBatch

HoleKind = Literal["original", "round-trip", "novel"]

_SAME_SURFACE = 0.02
"""Relative depth by which a point may lie behind what is drawn at its pixel and still be it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoleSettings:
    """How often each kind of hole is trained on, and how far cameras move."""

    original: float = 0.25
    """Share of holes from motion alone."""

    round_trip: float = 0.35
    """Share of holes from motion, parallax and frame borders."""

    novel: float = 0.4
    """Share of renders from a path whose true video is known. Samples without one take the other
    kinds, by their shares."""

    paths: tuple[str, ...] = (
        *("orbit-left", "orbit-right", "arc-left", "arc-right", "crane-up", "crane-down"),
        *("truck-left", "truck-right", "dolly-in", "dolly-out", "spiral"),
    )
    """Camera paths of `round-trip`, by name."""

    amplitude: tuple[float, float] = (0.1, 0.8)
    """Range of their amplitude."""

    def __post_init__(self) -> None:
        shares = (self.original, self.round_trip, self.novel)
        if min(shares) < 0 or self.original + self.round_trip <= 0:
            raise SettingsError(
                f"holes has shares {shares}; expected none below 0, and more than 0 of original "
                "or round_trip, which every sample can have."
            )
        for name in self.paths:
            check_path_name(name)

    def kind(self, draw: float, *, has_novel: bool) -> HoleKind:
        """Choose by a number in [0, 1)."""
        shares: dict[HoleKind, float] = {"original": self.original, "round-trip": self.round_trip}
        if has_novel:
            shares["novel"] = self.novel
        position = draw * sum(shares.values())
        for kind, share in shares.items():
            if position < share:
                return kind
            position -= share
        return max(shares, key=lambda kind: shares[kind])  # draw was 1 but for rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class HoleSample:
    """A rendered video with holes, and what belongs there."""

    kind: HoleKind
    """Where the holes come from."""

    rendered: Float[Tensor, "frame height width 3"]
    """sRGB in [0, 1]."""

    hole_mask: Bool[Tensor, "frame height width"]
    """True = to be filled."""

    target: Float[Tensor, "frame height width 3"]
    """The whole video."""


def holes_of(
    batch: TrainingBatch, settings: HoleSettings, generator: torch.Generator
) -> list[HoleSample]:
    """Make one video with holes of each sample, on the device of the batch.

    Random numbers are drawn from `generator` in a fixed count per sample.
    """
    draws = torch.rand(batch.num_samples, 4, generator=generator, device=generator.device)
    return [_holes(batch, i, settings, draw) for i, draw in enumerate(draws.tolist())]


def _holes(
    batch: TrainingBatch, index: int, settings: HoleSettings, draw: list[float]
) -> HoleSample:
    kind = settings.kind(draw[0], has_novel=batch.novel_video is not None)
    scene, target = batch.scene(index), batch.video[index]
    cameras = scene.cameras
    if kind == "novel":
        assert batch.novel_video is not None
        cameras, target = batch.novel_cameras(index), batch.novel_video[index]
    elif kind == "round-trip":
        scene = _only(scene, seen_from(scene, _path(scene, settings, *draw[1:])))
    view = render(scene, cameras, RenderSettings())
    return HoleSample(
        kind=kind,
        rendered=view.rgb,
        hole_mask=hole_mask(view.alpha) > 0.5,
        target=target.float() / 255,
    )


def seen_from(scene: Scene4D, cameras: Cameras) -> Bool[Tensor, "frame point"]:
    """Which points of a scene of tracks are seen from other cameras, in each frame."""
    positions = _tracks(scene).positions
    drawn = render(scene, cameras, RenderSettings())
    in_camera = transform_points(positions, cameras.world_to_camera[:, None].to(positions))
    pixels, depth = project(in_camera, cameras.intrinsics[:, None].to(positions))
    x, y = pixels.unbind(-1)
    inside = (depth > 0) & (x >= 0) & (x < cameras.width) & (y >= 0) & (y < cameras.height)
    pixel = y.where(inside, 0).long() * cameras.width + x.where(inside, 0).long()
    nearest = drawn.depth.flatten(1).gather(1, pixel)
    return inside & (depth <= (1 + _SAME_SURFACE) * nearest)


def _path(
    scene: Scene4D, settings: HoleSettings, choice: float, extent: float, ease: float
) -> Cameras:
    low, high = settings.amplitude
    path = PathSettings(
        amplitude=low + (high - low) * extent, ease="in-out" if ease < 0.5 else "linear"
    )
    name = settings.paths[min(int(choice * len(settings.paths)), len(settings.paths) - 1)]
    return scene_path(name, scene, settings=path)


def _only(scene: Scene4D, seen: Bool[Tensor, "frame point"]) -> Scene4D:
    tracks = _tracks(scene)
    return replace(scene, points=replace(tracks, visibility=tracks.visibility & seen))


def _tracks(scene: Scene4D) -> PointTracks:
    assert isinstance(scene.points, PointTracks)  # the scenes of samples are
    return scene.points
