"""What the commands share in talking to a person: log lines and progress bars, both by rich."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
_HANDLER = "more4d-console"


def set_up_logging(debug: bool) -> None:
    """Send the package's log lines to standard error, coloured where that is a terminal."""
    logger = logging.getLogger(__name__.split(".")[0])
    for handler in [h for h in logger.handlers if h.name == _HANDLER]:
        logger.removeHandler(handler)
    handler = _handler()
    handler.name = _HANDLER
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


def _handler() -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=True)
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, show_time=False)
    handler = logging.StreamHandler()  # rich would break lines at a width that is not there
    handler.setFormatter(logging.Formatter("%(levelname)-7s %(message)s"))
    return handler


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Give a callback `(done, total)` that draws one bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # Where there is no terminal to draw on, a bar would only leave empty lines.
    with RichProgress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
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
