"""Files of predictions beside files of truth: what `python -m more4d_backend evaluate` runs.

A manifest is JSON: any of the keys `scenes`, `videos` and `depths`, each a list of objects with a
`name`, the paths `predicted` and `truth` (relative to the manifest), and

    scenes   predicted may be a list: several samples for one picture, the best is told too.
             objects: label picture of frame 0, 0 = none; words: what object 1, 2, ... does
    videos   holes: mask video, white = was filled; without it, all counts as filled
    depths   predicted_fov_deg, fov_deg: horizontal fields of view
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..files import FileFormatError
from ..files.strict_json import as_list, as_number, as_object, parse_json, read_text, shown
from ..scene import PointMaps
from .comparison import (
    DEPTH_COLUMNS,
    SCENE_COLUMNS,
    SCENE_NOTES,
    VIDEO_COLUMNS,
    VIDEO_NOTES,
    SceneTruth,
    compare_depth,
    compare_point_maps,
    compare_scenes,
    compare_videos,
)
from .depth import Alignment
from .tables import EvaluationError, EvaluationReport, SampleRow, Value

_log = logging.getLogger(__name__)

SCENE_SUFFIXES = (".safetensors", ".npz")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
DEPTH_SUFFIXES = (".png", ".exr", ".npy")

_MAX_ITEMS = 100_000
_MANIFEST_BYTES = 2**26
_HOLES_SUFFIX = ".holes.mkv"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenePair:
    """Scene files: tracks, or point maps."""

    name: str
    """For the table."""

    predicted: tuple[Path, ...]
    """Samples for one picture and caption; point maps have exactly one."""

    truth: Path
    """The true scene."""

    objects: Path | None = None
    """8-bit or 16-bit picture of the size of the track grid; value i is object i, 0 is none."""

    words: tuple[str, ...] = ()
    """What object 1, 2, ... does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPair:
    """Videos of one length and size."""

    name: str
    """For the table."""

    predicted: Path
    """Completed video."""

    truth: Path
    """True video from the same cameras."""

    holes: Path | None = None
    """Mask video: white was filled. None: everything was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthPair:
    """Depth maps of one size; formats are those of `depth_files`."""

    name: str
    """For the table."""

    predicted: Path
    """Predicted depth."""

    truth: Path
    """True depth; 0 where there is none."""

    predicted_fov_deg: float | None = None
    """Predicted horizontal field of view."""

    fov_deg: float | None = None
    """The true one."""


Pair = ScenePair | VideoPair | DepthPair


def evaluate(
    pairs: Sequence[Pair],
    *,
    depth_alignment: Alignment = "scale",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[EvaluationReport]:
    """Compare every prediction with its truth; one report for each kind of file among `pairs`.

    A pair whose files cannot be read or compared is named in the report with the reason, and
    makes the means NaN; the others are still evaluated. Columns that apply to no pair are left
    out.

    Raises:
        EvaluationError: there are no pairs, or two of one kind share a name.
    """
    if not pairs:
        raise EvaluationError("There is nothing to evaluate; expected at least one pair of files.")
    kinds = (
        (ScenePair, "Scenes", SCENE_COLUMNS, SCENE_NOTES, DEPTH_COLUMNS),
        (VideoPair, "Videos", VIDEO_COLUMNS, VIDEO_NOTES, ()),
        (DepthPair, "Depth", DEPTH_COLUMNS, (f"Alignment: {depth_alignment}.",), ()),
    )
    reports = []
    done = 0
    for kind, title, columns, notes, more_columns in kinds:
        chosen = [pair for pair in pairs if isinstance(pair, kind)]
        _check_names(chosen)
        rows = []
        for pair in chosen:
            rows.append(_row(pair, depth_alignment, device))
            done += 1
            if progress is not None:
                progress(done, len(pairs))
        if rows:
            used = {n for row in rows for n, value in row.values.items() if value is not None}
            wanted = tuple(c for c in (*columns, *more_columns) if c.name in used) or columns
            reports.append(
                EvaluationReport(title=title, columns=wanted, rows=tuple(rows), notes=notes)
            )
    return reports


def pairs_of_folders(predicted: Path, truth: Path) -> list[Pair]:
    """Pair files by name: every file of `truth` with the one of the same stem in `predicted`.

    The hole mask of `truth/NAME.mp4` is `truth/NAME.holes.mkv`. A prediction that is not there
    fails when it is evaluated.

    Raises:
        EvaluationError: a folder is not there, or `truth` holds nothing of a known kind.
    """
    for folder in (predicted, truth):
        if not folder.is_dir():
            raise EvaluationError(f"{folder} is not a folder; expected one with files to compare.")
    pairs: list[Pair] = []
    for path in sorted(truth.iterdir()):
        if path.name.endswith(_HOLES_SUFFIX) or path.name.startswith("."):
            continue
        suffix = path.suffix.lower()
        if suffix in SCENE_SUFFIXES:
            ours = _same_stem(predicted, path, SCENE_SUFFIXES)
            pairs.append(ScenePair(name=path.stem, predicted=(ours,), truth=path))
        elif suffix in VIDEO_SUFFIXES:
            holes = path.with_name(path.stem + _HOLES_SUFFIX)
            ours = _same_stem(predicted, path, VIDEO_SUFFIXES)
            pairs.append(
                VideoPair(
                    name=path.stem,
                    predicted=ours,
                    truth=path,
                    holes=holes if holes.exists() else None,
                )
            )
        elif suffix in DEPTH_SUFFIXES:
            ours = _same_stem(predicted, path, DEPTH_SUFFIXES)
            pairs.append(DepthPair(name=path.stem, predicted=ours, truth=path))
        else:
            _log.info("%s is neither scene, video nor depth, and is passed over.", path)
    if not pairs:
        known = ", ".join((*SCENE_SUFFIXES, *VIDEO_SUFFIXES, *DEPTH_SUFFIXES))
        raise EvaluationError(f"{truth} holds nothing to compare with; expected {known}.")
    return pairs


def read_manifest(path: Path) -> list[Pair]:
    """Read a manifest (see the top of this file).

    Raises:
        FileFormatError: says which entry is wrong, and how.
    """
    top = as_object(
        parse_json(read_text(path, _MANIFEST_BYTES, "a manifest"), str(path)), str(path)
    )
    makers = {"scenes": _scene_pair, "videos": _video_pair, "depths": _depth_pair}
    unknown = sorted(top.keys() - makers.keys())
    if unknown:
        raise FileFormatError(
            f"{path} has the key {unknown[0]!r}; expected only {', '.join(makers)}."
        )
    pairs: list[Pair] = []
    for key, make in makers.items():
        for index, item in enumerate(as_list(top.get(key, []), key, max_items=_MAX_ITEMS)):
            where = f"{path}: {key}[{index}]"
            pairs.append(make(_Entry(fields=as_object(item, where), where=where, base=path.parent)))
    return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One object of a manifest, whose fields are taken one by one."""

    fields: dict[str, object]
    where: str
    base: Path

    def text(self, name: str) -> str:
        value = self.fields.pop(name, None)
        if not isinstance(value, str) or not value:
            raise FileFormatError(f"{self.where}.{name} is {shown(value)}; expected a text.")
        return value

    def path(self, name: str) -> Path:
        return self.base / self.text(name)

    def optional_path(self, name: str) -> Path | None:
        return self.path(name) if name in self.fields else None

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.fields.pop(name, [])
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) and item for item in items):
            raise FileFormatError(f"{self.where}.{name} is {shown(value)}; expected texts.")
        return tuple(str(item) for item in items)

    def optional_number(self, name: str) -> float | None:
        if name not in self.fields:
            return None
        return as_number(self.fields.pop(name), f"{self.where}.{name}", low=0.1, high=179.9)

    def refuse_rest(self) -> None:
        if self.fields:
            raise FileFormatError(
                f"{self.where} has the unknown field {next(iter(self.fields))!r}."
            )


def _scene_pair(entry: _Entry) -> ScenePair:
    pair = ScenePair(
        name=entry.text("name"),
        predicted=tuple(entry.base / item for item in entry.texts("predicted")),
        truth=entry.path("truth"),
        objects=entry.optional_path("objects"),
        words=entry.texts("words"),
    )
    entry.refuse_rest()
    if bool(pair.objects) != bool(pair.words):
        raise FileFormatError(f"{entry.where} has one of objects and words; expected both or none.")
    return pair


def _video_pair(entry: _Entry) -> VideoPair:
    pair = VideoPair(
        name=entry.text("name"),
        predicted=entry.path("predicted"),
        truth=entry.path("truth"),
        holes=entry.optional_path("holes"),
    )
    entry.refuse_rest()
    return pair


def _depth_pair(entry: _Entry) -> DepthPair:
    pair = DepthPair(
        name=entry.text("name"),
        predicted=entry.path("predicted"),
        truth=entry.path("truth"),
        predicted_fov_deg=entry.optional_number("predicted_fov_deg"),
        fov_deg=entry.optional_number("fov_deg"),
    )
    entry.refuse_rest()
    return pair


def _row(pair: Pair, alignment: Alignment, device: torch.device | str) -> SampleRow:
    try:
        if isinstance(pair, ScenePair):
            values = _scene_values(pair, alignment, device)
        elif isinstance(pair, VideoPair):
            values = _video_values(pair, device)
        else:
            values = _depth_values(pair, alignment, device)
    except (ValueError, OSError) as e:  # of the files; errors of the program pass
        _log.warning("%s failed: %s", pair.name, e)
        return SampleRow(name=pair.name, values={}, failure=str(e))
    return SampleRow(name=pair.name, values=values)


def _scene_values(
    pair: ScenePair, alignment: Alignment, device: torch.device | str
) -> dict[str, Value]:
    from ..scene_files.formats import import_scene

    truth = import_scene(pair.truth).to(device)
    predictions = [import_scene(path).to(device) for path in pair.predicted]
    if isinstance(truth.points, PointMaps):
        if len(predictions) != 1:
            raise EvaluationError(f"{len(predictions)} predictions of point maps; expected one.")
        return compare_point_maps(predictions[0], truth, alignment)
    index = None
    if pair.objects is not None:
        index = _object_index(pair.objects, truth.points.grid_hw).to(device)
    return compare_scenes(
        predictions, SceneTruth(scene=truth, object_index=index, words=pair.words)
    )


def _object_index(path: Path, grid_hw: tuple[int, int] | None) -> Int[Tensor, "point"]:
    from ..files.images import open_picture

    picture = open_picture(path)
    if picture.mode not in ("L", "P", "I", "I;16"):
        raise FileFormatError(
            f"{path} has the mode {picture.mode}; expected a picture of one channel of labels."
        )
    labels = torch.from_numpy(np.array(picture).astype(np.int64))
    if tuple(labels.shape) != grid_hw:
        raise FileFormatError(
            f"{path} is {tuple(labels.shape)}; expected the grid {grid_hw} of the true scene."
        )
    return labels.flatten() - 1


def _video_values(pair: VideoPair, device: torch.device | str) -> dict[str, Value]:
    from ..files.videos import load_mask_video, load_video

    predicted, truth = (load_video(path)[0].to(device) for path in (pair.predicted, pair.truth))
    if pair.holes is None:
        holes = torch.ones(truth.shape[:3], dtype=torch.bool, device=device)
    else:
        holes = load_mask_video(pair.holes)[0].to(device) > 0.5
    return compare_videos(predicted, truth, holes)


def _depth_values(
    pair: DepthPair, alignment: Alignment, device: torch.device | str
) -> dict[str, Value]:
    from ..files.depth_maps import load_depth

    predicted, truth = (load_depth(path).to(device) for path in (pair.predicted, pair.truth))
    values = compare_depth(predicted, truth, truth.isfinite() & (truth > 0), alignment)
    if pair.predicted_fov_deg is not None and pair.fov_deg is not None:
        values["fov error"] = abs(pair.predicted_fov_deg - pair.fov_deg)
    return values


def _same_stem(folder: Path, path: Path, suffixes: tuple[str, ...]) -> Path:
    found = [folder / (path.stem + suffix) for suffix in (path.suffix, *suffixes)]
    return next((candidate for candidate in found if candidate.exists()), found[0])


def _check_names(pairs: Sequence[Pair]) -> None:
    names = [pair.name for pair in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EvaluationError(f"Two pairs are named {twice}; expected a name of its own for each.")
