"""Tables: no failure is averaged away."""

import json
import math

import pytest

from more4d_backend.evaluation.tables import (
    Column,
    EvaluationError,
    EvaluationReport,
    Ratio,
    SampleRow,
    save_reports,
)

COLUMNS = (
    Column(name="error", unit="%", digits=1, better="lower"),
    Column(name="right"),
    Column(name="angle", summary="median"),
)


def report(*rows):
    return EvaluationReport(title="Scenes", columns=COLUMNS, rows=rows, notes=("A note.",))


def row(name, error=None, right=None, angle=None):
    return SampleRow(name=name, values={"error": error, "right": right, "angle": angle})


FAILED = SampleRow(name="lost", values={}, failure="the file is not there")


def test_numbers_are_averaged_and_ratios_pooled():
    one = row("a", 0.1, Ratio(amount=1, reference=2), 1.0)
    two = row("b", 0.3, Ratio(amount=6, reference=6), 5.0)
    three = row("c", 0.2, Ratio(amount=0, reference=0), 2.0)
    means = report(one, two, three).means()
    assert means == {"error": pytest.approx(0.2), "right": 7 / 8, "angle": 2.0}


def test_a_failed_sample_is_named_and_makes_every_mean_nan():
    result = report(row("a", 0.1, Ratio(amount=1, reference=2), 1.0), FAILED)
    assert all(math.isnan(mean) for mean in result.means().values())
    assert result.failures == {"lost": "the file is not there"}
    assert result.table()[1] == ["lost", "NaN", "NaN", "NaN"]
    assert result.table()[-1] == ["mean", "NaN", "NaN", "NaN"]
    assert "FAILED lost: the file is not there" in result.text()


def test_nan_among_the_values_makes_the_mean_nan():
    result = report(
        row("a", math.nan, Ratio(amount=math.nan, reference=1), math.nan), row("b", 0.1)
    )
    assert all(math.isnan(mean) for mean in result.means().values())


def test_a_metric_that_does_not_apply_is_left_out_of_mean_and_json():
    result = report(row("a", 0.1), row("b"))
    assert result.means() == {"error": 0.1, "right": None, "angle": None}
    assert result.to_json()["samples"] == {"a": {"error": 0.1}, "b": {}}
    assert result.table()[1] == ["b", "-", "-", "-"]


def test_a_ratio_of_nothing_is_none_and_of_nan_is_nan():
    assert Ratio(amount=0, reference=0).value is None
    assert math.isnan(Ratio(amount=0, reference=math.nan).value)


def test_the_text_has_units_directions_and_notes():
    text = report(row("a", 0.123)).text()
    assert "error [%] -" in text
    assert "12.3" in text
    assert "A note." in text


def test_the_json_is_strict_and_tells_unknown_from_not_applicable(tmp_path):
    save_reports(tmp_path / "result.json", [report(row("a", 0.5), FAILED)])

    def refuse(name):
        raise AssertionError(name)

    (data,) = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert data["samples"]["a"] == {"error": 0.5}
    assert data["samples"]["lost"] == {"error": None, "right": None, "angle": None}
    assert data["failed"] == {"lost": "the file is not there"}
    assert data["mean"]["error"] is None


def test_a_table_without_samples_is_refused():
    with pytest.raises(EvaluationError, match="no sample"):
        report()
