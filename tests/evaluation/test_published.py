"""The published tables: what is printed, and where our cells come from."""

import json

import pytest

from more4d_backend.cli import main
from more4d_backend.evaluation.benchmarks import BENCHMARKS, camera_title, depth_title
from more4d_backend.evaluation.published import (
    NOT_MEASURED,
    PUBLISHED,
    published_text,
    read_results,
)
from more4d_backend.evaluation.tables import Column, EvaluationReport, SampleRow, save_reports
from more4d_backend.files import FileFormatError

SINTEL = BENCHMARKS["sintel"]


def saved(path, title, names, values, failing=()):
    columns = tuple(Column(name=name) for name in values)
    rows = tuple(
        SampleRow(name=n, values=values, failure="lost" if n in failing else None) for n in names
    )
    save_reports(path, [EvaluationReport(title=title, columns=columns, rows=rows)])
    return path


def ours(text: str, table: int) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith("| ours")]
    return [cell.strip() for cell in lines[table].split("|")[2:-1]]


def test_without_result_files_nothing_of_ours_is_measured(capsys):
    assert main(["published"]) == 0
    text = capsys.readouterr().out
    assert "| Geo4D | 0.205 | 73.5 | 0.059 | 97.2 | 0.086 | 93.7 |" in text
    assert "| MonST3R | 0.108 | 0.042 | 0.732 | 0.063 | 0.009 | 1.217 |" in text
    for table in range(2):
        assert ours(text, table) == [NOT_MEASURED] * 6


def test_cells_come_from_result_files_of_all_videos(tmp_path):
    depth = {"AbsRel": 0.1234, "within 1.25": 0.877}
    title = depth_title(SINTEL, "absolute-scale-shift")
    a = saved(tmp_path / "a.json", title, SINTEL.depth_videos, depth)
    cameras = {"ATE": 0.1, "RPE translation": 0.02, "RPE rotation": 0.5}
    b = saved(tmp_path / "b.json", camera_title(SINTEL), SINTEL.camera_videos, cameras)
    text = published_text(read_results([a, b]))
    assert ours(text, 0) == ["0.123", "87.7", *[NOT_MEASURED] * 4]
    assert ours(text, 1) == ["0.100", "0.020", "0.500", *[NOT_MEASURED] * 3]


def test_some_of_the_videos_are_no_measurement_and_a_failed_one_makes_the_cell_nan(tmp_path):
    depth = {"AbsRel": 0.1, "within 1.25": 0.9}
    title = depth_title(SINTEL, "absolute-scale-shift")
    part = saved(tmp_path / "a.json", title, SINTEL.depth_videos[:5], depth)
    text = published_text(read_results([part]))
    assert ours(text, 0)[:2] == ["not measured (5 of 23 videos)"] * 2
    names = SINTEL.depth_videos
    failed = saved(tmp_path / "b.json", title, names, depth, failing=names[:1])
    assert ours(published_text(read_results([failed])), 0)[0] == "NaN (a video failed)"
    with pytest.raises(FileFormatError, match=r"a\.json both hold"):
        read_results([part, failed])


def test_depth_with_scale_alone_is_not_the_published_protocol(tmp_path):
    title = depth_title(SINTEL, "absolute-scale")
    path = saved(tmp_path / "a.json", title, SINTEL.depth_videos, {"AbsRel": 0.1})
    assert ours(published_text(read_results([path])), 0)[0] == NOT_MEASURED


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "x.json"
    for content in (
        {"a": 1},
        [{"title": "x"}],
        [{"title": "x", "mean": {"A": "b"}, "samples": {}}],
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(FileFormatError, match=r"x\.json"):
            read_results([path])


def test_every_table_has_a_number_or_a_dash_in_every_cell():
    for table in PUBLISHED:
        assert len(table.ours) == len(table.columns)
        for cells in table.rows.values():
            assert len(cells) == len(table.columns)
            assert all(cell == "-" or float(cell) > 0 for cell in cells)
