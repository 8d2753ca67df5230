"""4D-STraG on held-out samples: errors, directions by word, and what words alone could tell."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from more4d_backend.evaluation import (
    Column,
    EvaluationError,
    EvaluationReport,
    SampleRow,
    compare_scenes,
    object_matches,
)
from more4d_backend.evaluation.comparison import SCENE_COLUMNS, SCENE_NOTES, SceneTruth
from more4d_backend.evaluation.directions import ObjectMatch, WordMotions, accuracy_by_word
from more4d_backend.evaluation.tables import Value
from more4d_backend.motion import MotionNormalization, denormalize_motion, normalize_motion
from more4d_backend.scene import PointTracks, Scene4D
from more4d_backend.strag.pipeline import StragPipeline, StragSettings

from ..data.samples import TrainingSample
from .parts import evaluated, sample_truth

_RIGHT = (
    Column(name="right", unit="%", digits=1, better="higher"),
    Column(name="objects", digits=0),
)

_OPPOSITE_PAIRS = (
    ("moves left", "moves right"),
    ("moves up", "moves down"),
    ("comes closer", "moves away"),
    ("spins clockwise", "spins counterclockwise"),
    ("turns left", "turns right"),
    ("walks left", "walks right"),
    ("crawls left", "crawls right"),
    ("grows", "shrinks"),
)
OPPOSITES: dict[str, str] = dict(_OPPOSITE_PAIRS) | {b: a for a, b in _OPPOSITE_PAIRS}
"""Word -> the word for the opposite motion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StragEvaluation:
    """How 4D-STraG is evaluated."""

    settings: StragSettings = field(default_factory=StragSettings)
    """Of the pipeline; size and frames must be those of the samples."""

    num_samples: int = 4
    """Scenes generated for each caption; the best whole one is told beside their mean."""

    seed: int = 0
    """Of the noise; scene k of every sample takes seed + k."""


@torch.no_grad()
def evaluate_strag(
    pipeline: StragPipeline,
    samples: Iterable[TrainingSample],
    evaluation: StragEvaluation,
    oracle: WordMotions | None = None,
) -> list[EvaluationReport]:
    """Generate from true depth, and compare; beside it what the oracle reaches.

    The oracle knows which pixels belong to which object, and what other objects with the same
    words did (`word_motions`).
    """
    by_word: list[ObjectMatch] = []
    by_family: list[ObjectMatch] = []

    def one(sample: TrainingSample) -> dict[str, dict[str, Value]]:
        truth = sample_truth(sample)
        scenes = [
            generate(pipeline, sample, sample.caption, evaluation, k)
            for k in range(evaluation.num_samples)
        ]
        tables = {"4D-STraG": compare_scenes(scenes, truth)}
        for scene in scenes:
            by_word.extend(object_matches(scene, truth))
            by_family.extend(object_matches(scene, sample_truth(sample, families=True)))
        if oracle is not None and sample.objects:
            tables |= _oracle_tables(pipeline, sample, truth, oracle, evaluation)
        return tables

    tables = evaluated(samples, one)
    reports = [
        EvaluationReport(title=title, columns=SCENE_COLUMNS, rows=tuple(rows), notes=SCENE_NOTES)
        for title, rows in tables.items()
    ]
    failed = reports[0].failures
    for title, matches in (("word", by_word), ("kind of motion", by_family)):
        if matches:
            reports.append(_direction_report(f"Direction by {title}", matches, failed))
    return reports


@torch.no_grad()
def evaluate_swapped_captions(
    pipeline: StragPipeline,
    samples: Iterable[TrainingSample],
    evaluation: StragEvaluation,
    oracle: WordMotions,
    opposites: Mapping[str, str] = OPPOSITES,
) -> EvaluationReport:
    """Same picture, opposite words: does every object that they are of follow the new ones?

    What an object should do then is the mean motion of the new word. Samples of which no word has
    an opposite are passed over.
    """
    matches: list[ObjectMatch] = []
    failed: dict[str, str] = {}
    for sample in samples:
        words = [opposites.get(o.motion, o.motion) for o in sample.objects]
        swapped = {i for i, o in enumerate(sample.objects) if words[i] != o.motion}
        if not swapped:
            continue
        try:
            caption = swapped_caption(sample, words)
            expected = _oracle_scene(sample, pipeline.profile.motion, oracle, words, None)
            truth = _only_objects(sample, expected, words, swapped)
            for k in range(evaluation.num_samples):
                scene = generate(pipeline, sample, caption, evaluation, k)
                matches += object_matches(scene, truth)
        except ValueError as e:
            failed[sample.name] = str(e)
    return _direction_report("Direction after the caption is swapped", matches, failed)


def swapped_caption(sample: TrainingSample, words: Sequence[str]) -> str:
    """Return the caption with other words for the objects, one for each.

    Raises:
        EvaluationError: the caption does not say what an object does.
    """
    caption = sample.caption
    for thing, word in zip(sample.objects, words, strict=True):
        clause = f"{thing.name} {thing.motion}"
        if clause.lower() not in caption.lower():
            raise EvaluationError(f"The caption {caption!r} does not say {clause!r}.")
        start = caption.lower().index(clause.lower()) + len(thing.name) + 1
        caption = caption[:start] + word + caption[start + len(thing.motion) :]
    return caption


def word_motions(
    samples: Iterable[TrainingSample], normalization: MotionNormalization
) -> WordMotions:
    """Learn from samples, not from the evaluated ones, what objects do for each word."""
    oracle = WordMotions()
    for sample in samples:
        truth = sample_truth(sample)
        if truth.object_index is not None:
            positions = sample.positions().flatten(1, 2)
            motion = normalize_motion(positions, sample.cameras, normalization)
            oracle.add(motion, _offsets(sample, normalization), truth.object_index, truth.words)
    return oracle


def generate(
    pipeline: StragPipeline,
    sample: TrainingSample,
    caption: str,
    evaluation: StragEvaluation,
    number: int,
) -> Scene4D:
    """Generate scene `number` of a sample from its picture and true depth."""
    frames, height, width = sample.size_fhw
    return pipeline.generate(
        sample.video[0].float() / 255,
        sample.depth,
        sample.cameras.frames([0]),
        caption,
        settings=replace(
            evaluation.settings, num_frames=frames, size_hw=(height, width), fps=sample.fps
        ),
        generator=torch.Generator().manual_seed(evaluation.seed + number),
    )


def _oracle_tables(
    pipeline: StragPipeline,
    sample: TrainingSample,
    truth: SceneTruth,
    oracle: WordMotions,
    evaluation: StragEvaluation,
) -> dict[str, dict[str, Value]]:
    draw = torch.Generator().manual_seed(evaluation.seed)
    drawn = [
        _oracle_scene(sample, pipeline.profile.motion, oracle, truth.words, draw)
        for _ in range(evaluation.num_samples)
    ]
    mean = _oracle_scene(sample, pipeline.profile.motion, oracle, truth.words, None)
    return {
        "Oracle: true masks, mean motion of the words": compare_scenes([mean], truth),
        "Oracle: true masks, motion drawn from the words' examples": compare_scenes(drawn, truth),
    }


def _oracle_scene(
    sample: TrainingSample,
    normalization: MotionNormalization,
    oracle: WordMotions,
    words: Sequence[str],
    draw: torch.Generator | None,
) -> Scene4D:
    index = sample_truth(sample).object_index
    assert index is not None
    offsets = _offsets(sample, normalization)
    if draw is None:
        motion = oracle.mean(offsets, index, words)
    else:
        motion = oracle.draw(offsets, index, words, draw)
    scene = sample.scene()
    assert isinstance(scene.points, PointTracks)
    positions = denormalize_motion(motion, scene.points.positions[0], sample.cameras, normalization)
    visibility = scene.points.visibility[:1].expand_as(scene.points.visibility)
    tracks = replace(scene.points, positions=positions.float(), visibility=visibility)
    return replace(scene, points=tracks)


def _only_objects(
    sample: TrainingSample, expected: Scene4D, words: Sequence[str], chosen: set[int]
) -> SceneTruth:
    """What is expected, with all but the chosen objects left out."""
    index = sample_truth(sample).object_index
    assert index is not None
    is_chosen = torch.isin(index, torch.tensor(sorted(chosen), device=index.device))
    return SceneTruth(
        scene=expected, object_index=index.masked_fill(~is_chosen, -1), words=tuple(words)
    )


def _offsets(
    sample: TrainingSample, normalization: MotionNormalization
) -> Float[Tensor, "point 3"]:
    """Each point's offset from its object's centre, in the units of normalised motion."""
    start = sample.positions()[0].flatten(0, 1)
    index = sample_truth(sample).object_index
    assert index is not None
    center = start.clone()
    for number in range(len(sample.objects)):
        mask = index == number
        center[mask] = start[mask].mean(0)
    # Offsets are normalised like a motion that takes every point to its offset's end.
    moved = torch.stack([start, start + (start - center)])
    return normalize_motion(moved, sample.cameras, normalization)[1]


def _direction_report(
    title: str, matches: Sequence[ObjectMatch], failed: Mapping[str, str]
) -> EvaluationReport:
    rows = [
        SampleRow(name=word, values={"right": right, "objects": right.reference})
        for word, right in accuracy_by_word(matches).items()
    ]
    rows += [SampleRow(name=name, values={}, failure=reason) for name, reason in failed.items()]
    return EvaluationReport(
        title=title,
        columns=_RIGHT,
        rows=tuple(rows),
        notes=(
            "Right: cosine above 0.7 and size within 0.25x to 4x, of an object's motion over all "
            "its points and frames, for every object of every generated scene.",
        ),
    )
