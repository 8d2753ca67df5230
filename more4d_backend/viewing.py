"""A scene in the browser, by viser: play, fly through, filter by confidence; or as a recording.

Needs the extra [view]. Every frame is shown, the last one too.
"""

import io
import logging
import math
import os
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from .files import OutputError, replacing
from .geometry import fov_from_focal, quaternion_wxyz_from_matrix
from .scene import PointMaps, Scene4D

if TYPE_CHECKING:
    from viser import CameraFrustumHandle, PointCloudHandle, ViserServer

_log = logging.getLogger(__name__)

RECORDING_SUFFIX = ".viser"

_SERVER_TICK_S = 1 / 60
_LAST_PORT = 65535

_CAMERA_COLOR = (40, 110, 200)
_VIEW_BEHIND, _VIEW_ABOVE = 0.6, 0.3
"""Where the first look is from, beside the first camera, in distances to the scene."""


class ViewError(ValueError):
    """Settings of the viewer that cannot work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings:
    """What is shown, and where."""

    max_points: int = 100_000
    """Points of a frame; where a scene has more, they are thinned evenly, and the log says so."""

    hide_percent: float = 0.0
    """Share of all points to hide, the least confident first; 0 hides nothing."""

    point_size: float | None = None
    """In units of the scene. None: a two hundredth of the distance to it."""

    camera_images: bool = True
    """Show the pictures of point maps on their cameras."""

    host: str = "127.0.0.1"
    """Address to serve at; 0.0.0.0 lets other machines in."""

    port: int = 8080
    """The next free one is taken if it is in use."""

    def __post_init__(self) -> None:
        if self.max_points < 1:
            raise ViewError(f"max_points is {self.max_points}; expected at least 1.")
        if not 0 <= self.hide_percent < 100:
            raise ViewError(f"hide_percent is {self.hide_percent}; expected 0 to less than 100.")
        if self.point_size is not None and not self.point_size > 0:
            raise ViewError(f"point_size is {self.point_size}; expected a positive number.")
        if not 1 <= self.port <= _LAST_PORT:
            raise ViewError(f"port is {self.port}; expected 1 to {_LAST_PORT}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePoints:
    """The points of one frame that are shown."""

    positions: Float32[np.ndarray, "point 3"]
    """World coordinates."""

    colors: UInt8[np.ndarray, "point 3"]
    """sRGB."""


class ScenePoints:
    """The points of a scene, frame by frame, with those filtered out that are too uncertain."""

    def __init__(self, scene: Scene4D, max_points: int) -> None:
        """Prepare a scene."""
        self.scene = scene
        per_frame = math.prod(scene.points.positions.shape[1:-1])
        self.step = -(-per_frame // max_points)
        if self.step > 1:
            _log.info(
                "Every frame has %d points; 1 in %d is shown. Show more with max_points.",
                per_frame,
                self.step,
            )
        self._ranked = self._ranked_confidence()

    @property
    def has_confidence(self) -> bool:
        """Whether points can be hidden by it."""
        return self._ranked is not None

    def threshold(self, hide_percent: float) -> float:
        """Return the confidence below which `hide_percent` of all points are."""
        if self._ranked is None or not len(self._ranked):
            return -math.inf
        return float(self._ranked[int(hide_percent / 100 * len(self._ranked))])

    def frame(self, number: int, threshold: float = -math.inf) -> FramePoints:
        """Return the points of a frame whose confidence is at least `threshold`."""
        points = self.scene.points
        if isinstance(points, PointMaps):
            shown = points.valid[number].flatten()
            colors = points.colors[number].flatten(0, 1)
            confidence = None if points.confidence is None else points.confidence[number].flatten()
        else:
            shown, colors, confidence = points.visibility[number], points.colors, None
        positions = points.positions[number].reshape(-1, 3)
        if confidence is not None:
            shown = shown & (confidence >= threshold)
        shown = (shown & positions.isfinite().all(-1))[:: self.step]
        return FramePoints(
            positions=positions[:: self.step][shown].float().numpy(),
            colors=_bytes(colors[:: self.step][shown]),
        )

    def typical_distance(self) -> float:
        """Return the median distance of frame 0's points to its camera; 1 if it has none."""
        positions = torch.from_numpy(self.frame(0).positions)
        center = self.scene.cameras.camera_to_world[0, :3, 3]
        return float((positions - center).norm(dim=-1).median()) if len(positions) else 1.0

    def _ranked_confidence(self) -> Float[Tensor, " point"] | None:
        points = self.scene.points
        if not isinstance(points, PointMaps) or points.confidence is None:
            return None
        shown = points.valid.flatten(1)[:, :: self.step]
        return points.confidence.flatten(1)[:, :: self.step][shown].float().sort().values


class SceneOnServer:
    """A scene's frames and cameras as things of a viser server; one frame is visible at a time."""

    def __init__(self, server: "ViserServer", scene: Scene4D, settings: ViewSettings) -> None:
        """Add everything to the server."""
        self.server, self.scene = server, scene
        self.points = ScenePoints(scene, settings.max_points)
        self.size = self.points.typical_distance()
        self.frame, self.with_all_cameras = 0, False
        server.scene.set_up_direction("-y")
        self._look_from_first_camera()
        threshold = self.points.threshold(settings.hide_percent)
        size = settings.point_size or self.size / 200
        self.clouds = [self._cloud(number, threshold, size) for number in range(scene.num_frames)]
        self.cameras = [self._camera(n, settings.camera_images) for n in range(scene.num_frames)]

    def show(self, frame: int) -> None:
        """Show one frame and nothing else."""
        with self.server.atomic():
            self.clouds[self.frame].visible = False
            self.cameras[self.frame].visible = self.with_all_cameras
            self.clouds[frame].visible = self.cameras[frame].visible = True
            self.frame = frame

    def show_all_cameras(self, everywhere: bool) -> None:
        """Show the cameras of all frames, or only that of the frame that is shown."""
        self.with_all_cameras = everywhere
        with self.server.atomic():
            for number, camera in enumerate(self.cameras):
                camera.visible = everywhere or number == self.frame

    def hide_uncertain(self, hide_percent: float) -> None:
        """Filter all frames anew."""
        threshold = self.points.threshold(hide_percent)
        with self.server.atomic():
            for number, cloud in enumerate(self.clouds):
                points = self.points.frame(number, threshold)
                cloud.points, cloud.colors = points.positions, points.colors

    def _look_from_first_camera(self) -> None:
        """Begin a little behind and above it, so that camera and scene are both seen."""
        pose = self.scene.cameras.camera_to_world[0].double()
        center, ahead, up = pose[:3, 3], pose[:3, 2], -pose[:3, 1]
        start = center - self.size * (_VIEW_BEHIND * ahead - _VIEW_ABOVE * up)
        self.server.initial_camera.position = start.numpy()
        self.server.initial_camera.look_at = (center + self.size * ahead).numpy()

    def _cloud(self, number: int, threshold: float, size: float) -> "PointCloudHandle":
        points = self.points.frame(number, threshold)
        return self.server.scene.add_point_cloud(
            f"/frames/{number:05d}/points",
            points.positions,
            points.colors,
            point_size=size,
            point_shape="rounded",
            precision="float32",
            visible=number == self.frame,
        )

    def _camera(self, number: int, with_image: bool) -> "CameraFrustumHandle":
        cameras, points = self.scene.cameras, self.scene.points
        pose = cameras.camera_to_world[number].double()
        image = None
        if with_image and isinstance(points, PointMaps):
            stride = max(1, points.colors.shape[1] // 120)
            image = _bytes(points.colors[number, ::stride, ::stride])
        return self.server.scene.add_camera_frustum(
            f"/frames/{number:05d}/camera",
            fov=fov_from_focal(float(cameras.intrinsics[number, 1, 1]), cameras.height),
            aspect=cameras.width / cameras.height,
            scale=self.size / 15,
            thickness=self.size / 800,
            color=_CAMERA_COLOR,
            image=image,
            wxyz=quaternion_wxyz_from_matrix(pose[:3, :3]).numpy(),
            position=pose[:3, 3].numpy(),
            visible=number == self.frame,
        )


def record_scene(
    path: str | os.PathLike[str], scene: Scene4D, settings: ViewSettings | None = None
) -> None:
    """Write a recording that viser's own player shows offline: every frame for 1 / fps seconds.

    Raises:
        OutputError: the name does not end in .viser, or the place cannot be written.
        ImportError: viser is missing.
    """
    check_recording_name(path)
    settings = settings or ViewSettings()
    server = _server(settings)
    try:
        shown = SceneOnServer(server, scene, settings)
        recording = server.get_scene_serializer()
        for number in range(scene.num_frames):
            shown.show(number)
            recording.insert_sleep(1 / scene.fps)
        data = recording.serialize()
    finally:
        _stop(server)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def check_recording_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name that `record_scene` would not write to.

    Raises:
        OutputError: it does not end in .viser.
    """
    if Path(path).suffix.lower() != RECORDING_SUFFIX:
        raise OutputError(f"{path} does not end in {RECORDING_SUFFIX}, as recordings do.")


def view_scene(
    scene: Scene4D,
    settings: ViewSettings | None = None,
    *,
    stop: threading.Event | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a scene until `stop` is set (or for ever); `ready` is told the address.

    Raises:
        ImportError: viser is missing.
    """
    settings, stop = settings or ViewSettings(), stop or threading.Event()
    server = _server(settings)
    try:
        shown = SceneOnServer(server, scene, settings)
        player = _Player(shown, settings)
        if ready is not None:
            ready(f"http://{settings.host}:{server.get_port()}")
        player.run(stop)
    finally:
        _stop(server)


class _Player:
    """The controls beside the picture."""

    def __init__(self, shown: SceneOnServer, settings: ViewSettings) -> None:
        self._shown, scene, gui = shown, shown.scene, shown.server.gui
        last = scene.num_frames - 1
        self._playing = gui.add_checkbox("Play", initial_value=last > 0)
        # viser refuses a slider without a range.
        self._slider = gui.add_slider("Frame", 0, max(last, 1), 1, 0, disabled=last == 0)
        self._rate = gui.add_slider("Frames per second", 0.5, 60, 0.5, min(scene.fps, 60.0))
        self._slider.on_update(lambda _: shown.show(min(int(self._slider.value), last)))
        self._add_filters(settings)
        all_cameras = gui.add_checkbox("All cameras", initial_value=False)
        all_cameras.on_update(lambda _: shown.show_all_cameras(all_cameras.value))

    def _add_filters(self, settings: ViewSettings) -> None:
        shown, gui = self._shown, self._shown.server.gui
        size = gui.add_slider("Point size", 0.1, 5.0, 0.1, 1.0, hint="Times the first size.")
        first_size = shown.clouds[0].point_size

        def resize() -> None:
            for cloud in shown.clouds:
                cloud.point_size = first_size * size.value

        size.on_update(lambda _: resize())
        if shown.points.has_confidence:
            hide = gui.add_slider("Hide least certain (%)", 0, 99, 1, settings.hide_percent)
            hide.on_update(lambda _: shown.hide_uncertain(hide.value))

    def run(self, stop: threading.Event) -> None:
        """Play until told to stop."""
        num_frames = self._shown.scene.num_frames
        while not stop.wait(1 / self._rate.value if self._playing.value else _SERVER_TICK_S):
            if self._playing.value and num_frames > 1:
                self._slider.value = (int(self._slider.value) + 1) % num_frames


def _server(settings: ViewSettings) -> "ViserServer":
    try:
        import viser
    except ImportError as e:
        raise ImportError(f"Viewing scenes needs viser: pip install viser ({e}).") from e
    with redirect_stdout(io.StringIO()):  # its banner: `view` says the address itself
        return viser.ViserServer(host=settings.host, port=settings.port, verbose=False)


def _stop(server: "ViserServer") -> None:
    with redirect_stdout(io.StringIO()):
        server.stop()


def _bytes(colors: Float[Tensor, "*axes 3"]) -> UInt8[np.ndarray, "*axes 3"]:
    return (colors.clamp(0, 1) * 255).round().to(torch.uint8).contiguous().numpy()
