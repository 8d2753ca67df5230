"""Scenes of `reconstruct` against benchmarks of video depth and camera motion.

The protocols are those of the published tables (Geo4D, arXiv 2504.07961, section 4): depth is
fitted once per video by least absolute errors, pixels of all videos weigh alike, and cameras are
measured by evo after a similarity. Other than in the published code a video that fails counts: it
is named, and makes the means NaN.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from .benchmark_readers import (
    ProceduralVideo,
    SintelVideo,
    TrueVideo,
    TumVideo,
    depth_of_scene,
)
from .comparison import DEPTH_ERROR_COLUMNS
from .depth import Alignment
from .poses import pose_errors, still_rotation_deg, straight_line_ate
from .tables import Column, EvaluationError, EvaluationReport, Ratio, SampleRow, Value
from .video_depth import (
    CONFIDENCE_GROUPS,
    DepthProtocol,
    VideoDepth,
    VideoDepthErrors,
    video_depth_errors,
)

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Make = Callable[[TrueVideo, Path], None]
"""Reconstructs a video and writes its scene."""

_OF_THE_VIDEO = (ValueError, OSError, MemoryError)
"""What goes wrong with one video, and not with the others; errors of the program pass."""

_ROUNDED_PX = 2

_DEPTH_COLUMNS = (
    *DEPTH_ERROR_COLUMNS,
    Column(name="constant within 1.25", unit="%", digits=1),
)
_CAMERA_COLUMNS = (
    Column(name="ATE", digits=4, better="lower"),
    Column(name="RPE translation", digits=4, better="lower"),
    Column(name="RPE rotation", unit="deg", better="lower"),
    Column(name="ATE of best line", digits=4),
    Column(name="ATE / best line", digits=2, better="lower"),
    Column(name="RPE rotation of still camera", unit="deg"),
    Column(name="RPE rotation / still", digits=2, better="lower"),
)
CONFIDENCE_COLUMNS = tuple(
    Column(name=f"error {i + 1} of {CONFIDENCE_GROUPS}", unit="%", digits=1)
    for i in range(CONFIDENCE_GROUPS)
)
_CONFIDENCE_NOTE = (
    "Mean relative error of depth in five equal groups of pixels, from the highest confidence (the "
    "least predicted sigma) to the lowest. Where sigma is calibrated, errors grow."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Videos, and how they are judged."""

    title: str
    """For tables."""

    open: Callable[[Path, str], TrueVideo]
    """The data set's folder and a video's name -> the video."""

    depth_videos: tuple[str, ...] = ()
    """Of the depth table; of a benchmark without names, all that the folder holds."""

    camera_videos: tuple[str, ...] = ()
    """Of the camera table; the same."""

    depth: DepthProtocol = field(default_factory=DepthProtocol)
    """What is done with depth."""

    names: Callable[[Path], tuple[str, ...]] | None = None
    """Finds the videos where the benchmark has none of its own."""

    tells_cameras: bool = True
    """Whether cameras are compared where the benchmark has no names of its own."""

    def videos(self, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the videos of both tables."""
        if self.names is None:
            return self.depth_videos, self.camera_videos
        found = self.names(folder)
        return found, found if self.tells_cameras else ()


def _scenes_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.safetensors")))


_SINTEL_POSES = (
    *("alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2"),
    *("market_5", "market_6", "shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3"),
)
_SINTEL_OTHERS = (
    *("alley_1", "ambush_2", "ambush_7", "bamboo_1", "bamboo_2", "bandage_1", "bandage_2"),
    *("mountain_1", "shaman_2"),
)
_TUM_VIDEOS = tuple(
    f"{who}_{how}"
    for who in ("sitting", "walking")
    for how in ("halfsphere", "rpy", "static", "xyz")
)

BENCHMARKS: Mapping[str, Benchmark] = {
    "sintel": Benchmark(
        title="Sintel",
        open=SintelVideo,
        depth_videos=tuple(sorted(_SINTEL_POSES + _SINTEL_OTHERS)),
        camera_videos=_SINTEL_POSES,
        depth=DepthProtocol(max_depth=70.0),
    ),
    "tum-dynamics": Benchmark(title="TUM-dynamics", open=TumVideo, camera_videos=_TUM_VIDEOS),
    "procedural": Benchmark(
        title="Procedural",
        open=lambda folder, name: ProceduralVideo(folder / f"{name}.safetensors"),
        names=_scenes_in,
    ),
}
"""Name on the command line -> benchmark."""

SHOWN_ALIGNMENTS: tuple[Alignment, ...] = ("absolute-scale-shift", "scale-shift", "absolute-scale")
"""Depth is told with scale and shift, as published; with those that make relative errors least,
for which what is near counts as much as what is far; and with scale alone."""


def depth_title(benchmark: Benchmark, alignment: Alignment) -> str:
    """Return the title of a depth table."""
    return f"{benchmark.title}: depth, {alignment} per video"


def camera_title(benchmark: Benchmark) -> str:
    """Return the title of the camera table."""
    return f"{benchmark.title}: cameras"


def confidence_title(benchmark: Benchmark) -> str:
    """Return the title of the table of errors by confidence."""
    return f"{benchmark.title}: error by confidence"


def evaluate_benchmark(
    benchmark: Benchmark,
    truth: Path,
    scenes: Path,
    *,
    make: Make | None = None,
    progress: Progress | None = None,
) -> list[EvaluationReport]:
    """Compare `scenes/NAME.safetensors` with each video of a benchmark below `truth`.

    A scene that is not there is made by `make`, where it is given, and counts as failed otherwise.
    A video that fails in one table may be in order in the other.

    Raises:
        EvaluationError: the folder of the truth holds no video.
    """
    depth_names, camera_names = benchmark.videos(truth)
    names = tuple(dict.fromkeys((*depth_names, *camera_names)))
    if not names:
        raise EvaluationError(f"{truth} holds no video of {benchmark.title}.")
    depth_rows: dict[Alignment, list[SampleRow]] = {name: [] for name in SHOWN_ALIGNMENTS}
    camera_rows, confidence_rows = [], []
    for done, name in enumerate(names):
        opened = _Opened(benchmark, truth, scenes / f"{name}.safetensors", name, make)
        if name in depth_names:
            for alignment, rows in depth_rows.items():
                protocol = replace(benchmark.depth, alignment=alignment)
                rows.append(_row(name, lambda o=opened, p=protocol: _depth_values(o.depths(p))))
            confidence_rows.append(_row(name, lambda o=opened: _confidence_values(o)))
        if name in camera_names:
            camera_rows.append(_row(name, lambda o=opened: _camera_values(*o.cameras())))
        if progress is not None:
            progress(done + 1, len(names))
    reports = [
        _report(depth_title(benchmark, alignment), _DEPTH_COLUMNS, rows)
        for alignment, rows in depth_rows.items()
        if rows
    ]
    if camera_rows:
        reports.append(_report(camera_title(benchmark), _CAMERA_COLUMNS, camera_rows))
    if any(row.values for row in confidence_rows):
        title = confidence_title(benchmark)
        reports.append(_report(title, CONFIDENCE_COLUMNS, confidence_rows, _CONFIDENCE_NOTE))
    return reports


def _report(
    title: str, columns: tuple[Column, ...], rows: Sequence[SampleRow], *notes: str
) -> EvaluationReport:
    return EvaluationReport(title=title, columns=columns, rows=tuple(rows), notes=notes)


class _Opened:
    """One video with its prediction; each is read when first asked for."""

    def __init__(
        self, benchmark: Benchmark, truth: Path, scene: Path, name: str, make: Make | None
    ) -> None:
        self._benchmark, self._truth, self._scene = benchmark, truth, scene
        self._name, self._make = name, make
        self._true: TrueVideo | None = None
        self._failed: Exception | None = None
        self._read: tuple[VideoDepth, VideoDepth] | None = None

    def depths(self, protocol: DepthProtocol) -> VideoDepthErrors:
        """Compare depth."""
        if self._read is None:
            true = self._video().depth()
            if true is None:
                raise EvaluationError(f"{self._benchmark.title} tells no depth.")
            self._read = depth_of_scene(self._predicted()), true
            self._warn_of_another_shape(*self._read)
        return video_depth_errors(*self._read, protocol)

    def _warn_of_another_shape(self, predicted: VideoDepth, true: VideoDepth) -> None:
        (height, width), (true_height, true_width) = predicted.depth.shape[1:], true.depth.shape[1:]
        # Whole pictures at the network's size are rounded to it, by a pixel on each side.
        if abs(height - width * true_height / true_width) > _ROUNDED_PX:
            _log.warning(
                "%s: the scene has %d x %d pixels and the truth %d x %d, which is another shape. "
                "It is taken for squashed; where it was cropped its errors are too large: "
                "reconstruct with --fit pad.",
                *(self._name, height, width, true_height, true_width),
            )

    def protocol(self) -> DepthProtocol:
        """Return what the benchmark does with depth."""
        return self._benchmark.depth

    def cameras(self) -> tuple[Float[Tensor, "frame 4 4"], Float[Tensor, "frame 4 4"]]:
        """Return predicted and true camera-to-world."""
        from ..scene_files import load_scene

        true = self._video().camera_to_world()
        if true is None:
            raise EvaluationError(f"{self._benchmark.title} tells no cameras.")
        return load_scene(self._predicted()).cameras.camera_to_world.double(), true.double()

    def _video(self) -> TrueVideo:
        self._true = self._true or self._benchmark.open(self._truth, self._name)
        return self._true

    def _predicted(self) -> Path:
        """The scene file, made if need be; what failed once is not tried again."""
        if self._failed is not None:
            raise self._failed
        if self._scene.is_file():
            return self._scene
        try:
            if self._make is None:
                raise EvaluationError(f"There is no prediction {self._scene}.")
            self._make(self._video(), self._scene)
        except _OF_THE_VIDEO as e:
            self._failed = e
            raise
        return self._scene


def _row(name: str, values: Callable[[], Mapping[str, Value]]) -> SampleRow:
    try:
        return SampleRow(name=name, values=values())
    except _OF_THE_VIDEO as e:
        _log.warning("%s failed: %s", name, e)
        return SampleRow(name=name, values={}, failure=str(e))


def _depth_values(found: VideoDepthErrors) -> dict[str, Value]:
    errors, count = found.errors, float(found.num_pixels)
    values = {
        "AbsRel": errors.abs_rel,
        "SqRel": errors.sq_rel,
        "RMSE": errors.rmse,
        "within 1.25": errors.within[0],
        "within 1.25^2": errors.within[1],
        "within 1.25^3": errors.within[2],
        "constant within 1.25": found.constant_within,
    }
    # Means over videos are weighted with their pixels.
    return {name: Ratio(amount=v * count, reference=count) for name, v in values.items()}


def _confidence_values(opened: _Opened) -> dict[str, Value]:
    found = opened.depths(opened.protocol())
    groups: Sequence[float] = found.by_confidence or ()
    return {
        column.name: Ratio(amount=value * found.num_pixels, reference=float(found.num_pixels))
        for column, value in zip(CONFIDENCE_COLUMNS, groups, strict=False)
    }


def _camera_values(
    predicted: Float[Tensor, "frame 4 4"], true: Float[Tensor, "frame 4 4"]
) -> dict[str, Value]:
    errors = pose_errors(predicted, true)
    line, still = straight_line_ate(true), still_rotation_deg(true)
    return {
        "ATE": errors.ate,
        "RPE translation": errors.rpe_translation,
        "RPE rotation": errors.rpe_rotation_deg,
        "ATE of best line": line,
        "ATE / best line": Ratio(amount=errors.ate, reference=line),
        "RPE rotation of still camera": still,
        "RPE rotation / still": Ratio(amount=errors.rpe_rotation_deg, reference=still),
    }
