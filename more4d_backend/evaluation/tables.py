"""Results of an evaluation: one row per sample, a mean that no failure can improve, JSON."""

import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

from ..files import replacing

MEAN = "mean"
"""Name of the last row of a table."""


class EvaluationError(ValueError):
    """A prediction that cannot be compared with its truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One sum over another. Ratios of several samples are pooled by adding both sums."""

    amount: float
    """What is counted: an error, or what is right."""

    reference: float
    """What it is relative to: the motion, or all that was judged."""

    @property
    def value(self) -> float | None:
        """The ratio; None where there is nothing to be relative to."""
        if self.reference > 0 or math.isnan(self.reference):
            return self.amount / self.reference
        return None

    def __add__(self, other: "Ratio") -> "Ratio":
        return Ratio(amount=self.amount + other.amount, reference=self.reference + other.reference)


NO_RATIO = Ratio(amount=0.0, reference=0.0)
"""The sum of no ratios."""

Value = float | Ratio | None
"""A result: a number, a ratio to be pooled, or None where a metric does not apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One metric."""

    name: str
    """Also its key in the JSON."""

    unit: str = ""
    """`%` shows shares times 100."""

    digits: int = 3
    """Decimals shown."""

    better: Literal["higher", "lower", ""] = ""
    """Which direction is good; empty for what is only to be known."""

    summary: Literal["mean", "median"] = "mean"
    """What the last row of the table holds. Of an even count, the lower one is the median."""

    @property
    def heading(self) -> str:
        """Name, unit and good direction, in one line."""
        arrow = {"higher": " +", "lower": " -", "": ""}[self.better]
        return f"{self.name}{f' [{self.unit}]' if self.unit else ''}{arrow}"

    def show(self, value: float | None) -> str:
        """Write a number as text."""
        if value is None:
            return "-"
        if math.isnan(value):
            return "NaN"
        return f"{100 * value if self.unit == '%' else value:.{self.digits}f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """The results of one sample, or why there are none."""

    name: str
    """Of the sample."""

    values: Mapping[str, Value]
    """By column name; a column that is not there does not apply."""

    failure: str | None = None
    """Why the sample could not be evaluated. It then counts as NaN in every column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """A table of results."""

    title: str
    """What was evaluated."""

    columns: tuple[Column, ...]
    """Metrics, in the order of the table."""

    rows: tuple[SampleRow, ...]
    """One per sample."""

    notes: tuple[str, ...] = ()
    """What a reader has to know about the numbers."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise EvaluationError(f"{self.title}: there is no sample; expected at least one.")

    @property
    def failures(self) -> dict[str, str]:
        """Failed samples by name, with their reasons."""
        return {row.name: row.failure for row in self.rows if row.failure is not None}

    def mean(self, name: str) -> float | None:
        """Mean (or what the column says) over the samples that a metric applies to.

        NaN when any sample failed. Ratios are pooled: the sum of their amounts over the sum of
        their references.
        """
        column = next(column for column in self.columns if column.name == name)
        if self.failures:
            return math.nan
        values = [value for row in self.rows if (value := row.values.get(name)) is not None]
        ratios = [value for value in values if isinstance(value, Ratio)]
        if ratios:
            return sum(ratios, NO_RATIO).value
        numbers = [value for value in values if not isinstance(value, Ratio)]
        if numbers and column.summary == "median" and not any(map(math.isnan, numbers)):
            return median_low(numbers)
        return sum(numbers) / len(numbers) if numbers else None

    def means(self) -> dict[str, float | None]:
        """The mean of every column."""
        return {column.name: self.mean(column.name) for column in self.columns}

    def header(self) -> list[str]:
        """First line of the table."""
        return ["sample", *(column.heading for column in self.columns)]

    def table(self) -> list[list[str]]:
        """Every sample, and the mean last, as text."""
        lines = [
            [row.name, *(column.show(_number(row, column.name)) for column in self.columns)]
            for row in self.rows
        ]
        return [*lines, [MEAN, *(c.show(self.mean(c.name)) for c in self.columns)]]

    def text(self) -> str:
        """Draw the table, its notes, and what failed.

        Raises:
            ImportError: rich is not installed.
        """
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError as e:
            raise ImportError("Tables need rich: pip install rich") from e
        table = Table(title=self.title, title_justify="left")
        for index, name in enumerate(self.header()):
            table.add_column(name, justify="right" if index else "left")
        lines = self.table()
        for line in lines[:-1]:
            table.add_row(*line)
        table.add_section()
        table.add_row(*lines[-1])
        stream = io.StringIO()
        width = 40 + 24 * len(self.columns)
        console = Console(file=stream, width=width, highlight=False, markup=False)
        console.print(table)
        for name, reason in self.failures.items():
            console.print(f"FAILED {name}: {reason}", soft_wrap=True)
        for note in self.notes:
            console.print(note, soft_wrap=True)
        return stream.getvalue()

    def to_json(self) -> dict[str, object]:
        """Everything, for JSON. NaN becomes null; a metric that does not apply is left out."""
        return {
            "title": self.title,
            MEAN: _finite(self.means()),
            "failed": self.failures,
            "samples": {
                row.name: _finite({c.name: _number(row, c.name) for c in self.columns})
                for row in self.rows
            },
            "columns": {
                c.name: {"unit": c.unit, "better": c.better, "summary": c.summary}
                for c in self.columns
            },
            "notes": list(self.notes),
        }


def save_reports(path: str | os.PathLike[str], reports: list[EvaluationReport]) -> None:
    """Write reports as one JSON file.

    Raises:
        OutputError: the place cannot be written.
    """
    text = json.dumps([report.to_json() for report in reports], indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _number(row: SampleRow, column: str) -> float | None:
    if row.failure is not None:
        return math.nan
    value = row.values.get(column)
    return value.value if isinstance(value, Ratio) else value


def _finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {
        name: value if math.isfinite(value) else None
        for name, value in values.items()
        if value is not None
    }
