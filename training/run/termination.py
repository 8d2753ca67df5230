"""SIGTERM, which schedulers of clusters send some time before they end a process."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_TERMINATED = 128 + signal.SIGTERM
"""Status of a process that ended because it was asked to."""


@contextmanager
def on_termination(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` at SIGTERM inside, instead of ending the process.

    Outside it acts as before, also where an error ends the inside: whoever lives on must heed the
    next one.
    """
    old_handler = signal.signal(signal.SIGTERM, lambda _number, _frame: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old_handler)
