"""What the commands share in talking to a person: log lines and progress bars, both by rich."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[int, int], None]


def set_up_logging(debug: bool) -> None:
    """Send the package's log lines to standard error, coloured where that is a terminal."""
    from rich.logging import RichHandler

    logger = logging.getLogger(__name__.split(".")[0])
    for handler in [h for h in logger.handlers if isinstance(h, RichHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(RichHandler(console=_console(), show_path=False, show_time=False))
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


def _console() -> "Console":
    from rich.console import Console

    console = Console(stderr=True)
    # Lines in a log file are not to be broken at the width of a terminal that is not there.
    return console if console.is_terminal else Console(stderr=True, width=10_000)


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Give a callback `(done, total)` that draws one bar on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=_console(), transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table to standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
