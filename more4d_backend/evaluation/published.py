"""The published tables, with our own rows beside them: from result files of `evaluate`, or nothing.

Numbers are those of Geo4D (arXiv 2504.07961), tables 1 and 2. A cell of ours is filled from a file
that `evaluate --benchmark NAME --output FILE` wrote, and only if all videos of the benchmark are in
it; otherwise it says what is missing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import FileFormatError
from ..files.strict_json import as_list, as_object, parse_json, read_text
from .benchmarks import BENCHMARKS, Benchmark, camera_title, depth_title

NOT_MEASURED = "not measured"
OURS = "ours"

_LIMIT_BYTES = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTable:
    """One table of the paper."""

    title: str
    """What it is."""

    columns: tuple[str, ...]
    """Headings, after that of the method."""

    rows: Mapping[str, tuple[str, ...]]
    """Method -> numbers as they are printed; "-" where there are none."""

    ours: tuple[tuple[str, str, str], ...]
    """For each column of ours: benchmark, kind of table ("depth", "cameras"), metric; an empty
    benchmark is one that there is no reader for."""


_NO_READER = ("", "", "")


def _depth(benchmark: str) -> tuple[tuple[str, str, str], ...]:
    return ((benchmark, "depth", "AbsRel"), (benchmark, "depth", "within 1.25"))


def _cameras(benchmark: str) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (benchmark, "cameras", metric) for metric in ("ATE", "RPE translation", "RPE rotation")
    )


PUBLISHED = (
    PublishedTable(
        title="Video depth, scale and shift per video (Geo4D, table 1)",
        columns=(
            *("Sintel AbsRel", "Sintel <1.25 [%]", "Bonn AbsRel", "Bonn <1.25 [%]"),
            *("KITTI AbsRel", "KITTI <1.25 [%]"),
        ),
        rows={
            "Marigold": ("0.532", "51.5", "0.091", "93.1", "0.149", "79.6"),
            "Depth-Anything-V2": ("0.367", "55.4", "0.106", "92.1", "0.140", "80.4"),
            "NVDS": ("0.408", "48.3", "0.167", "76.6", "0.253", "58.8"),
            "ChronoDepth": ("0.687", "48.6", "0.100", "91.1", "0.167", "75.9"),
            "DepthCrafter": ("0.270", "69.7", "0.071", "97.2", "0.104", "89.6"),
            "Robust-CVD": ("0.703", "47.8", "-", "-", "-", "-"),
            "CasualSAM": ("0.387", "54.7", "0.169", "73.7", "-", "-"),
            "MonST3R": ("0.335", "58.5", "0.063", "96.4", "0.104", "89.5"),
            "Geo4D": ("0.205", "73.5", "0.059", "97.2", "0.086", "93.7"),
        },
        ours=(*_depth("sintel"), _NO_READER, _NO_READER, _NO_READER, _NO_READER),
    ),
    PublishedTable(
        title="Cameras (Geo4D, table 2)",
        columns=(
            *("Sintel ATE", "Sintel RPE trans", "Sintel RPE rot [deg]"),
            *("TUM-dynamics ATE", "TUM-dynamics RPE trans", "TUM-dynamics RPE rot [deg]"),
        ),
        rows={
            "Robust-CVD": ("0.360", "0.154", "3.443", "0.153", "0.026", "3.528"),
            "CasualSAM": ("0.141", "0.035", "0.615", "0.071", "0.010", "1.712"),
            "MonST3R": ("0.108", "0.042", "0.732", "0.063", "0.009", "1.217"),
            "Geo4D": ("0.185", "0.063", "0.547", "0.073", "0.020", "0.635"),
        },
        ours=(*_cameras("sintel"), *_cameras("tum-dynamics")),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One table of a result file."""

    path: Path
    """The file."""

    means: Mapping[str, float | None]
    """Metric -> mean; None: NaN, because a video failed."""

    videos: frozenset[str]
    """That were evaluated."""


def read_results(paths: Sequence[Path]) -> dict[str, Result]:
    """Read result files of `evaluate`; title of a table -> its result.

    Raises:
        FileFormatError: not such a file, or two of them hold the same table.
    """
    results: dict[str, Result] = {}
    for path in paths:
        text = read_text(path, _LIMIT_BYTES, "a result file of evaluate")
        for index, item in enumerate(
            as_list(parse_json(text, str(path)), str(path), max_items=100)
        ):
            where = f"{path}[{index}]"
            report = as_object(item, where)
            try:
                title, means, samples = report["title"], report["mean"], report["samples"]
            except KeyError as e:
                raise FileFormatError(f"{where} lacks {e}; expected what evaluate wrote.") from e
            if str(title) in results:
                raise FileFormatError(
                    f"{path} and {results[str(title)].path} both hold {title!r}; expected one."
                )
            results[str(title)] = Result(
                path=path,
                means={k: _number(v, where) for k, v in as_object(means, where).items()},
                videos=frozenset(as_object(samples, where)),
            )
    return results


def published_text(results: Mapping[str, Result]) -> str:
    """Return all tables as Markdown; the last row of each is ours."""
    return "\n".join(_markdown(table, results) for table in PUBLISHED)


def _markdown(table: PublishedTable, results: Mapping[str, Result]) -> str:
    ours = tuple(_cell(results, *source) for source in table.ours)
    lines = [
        ("method", *table.columns),
        ("---",) * (1 + len(table.columns)),
        *((name, *cells) for name, cells in table.rows.items()),
        (OURS, *ours),
    ]
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{table.title}\n\n{rows}"


def _cell(results: Mapping[str, Result], name: str, kind: str, metric: str) -> str:
    if not name:
        return NOT_MEASURED
    benchmark = BENCHMARKS[name]
    result = results.get(_title(benchmark, kind))
    if result is None:
        return NOT_MEASURED
    wanted = benchmark.depth_videos if kind == "depth" else benchmark.camera_videos
    missing = len(set(wanted) - result.videos)
    if missing or metric not in result.means:
        return f"{NOT_MEASURED} ({len(wanted) - missing} of {len(wanted)} videos)"
    value = result.means[metric]
    if value is None:
        return "NaN (a video failed)"
    return f"{100 * value:.1f}" if metric.startswith("within") else f"{value:.3f}"


def _title(benchmark: Benchmark, kind: str) -> str:
    if kind == "cameras":
        return camera_title(benchmark)
    return depth_title(benchmark, benchmark.depth.alignment)


def _number(value: object, where: str) -> float | None:
    if value is None or isinstance(value, int | float):
        return value
    raise FileFormatError(f"{where} holds the mean {json.dumps(value)}; expected a number.")
