"""The command line of every trainer: a recipe's name, then any of its settings."""

import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from ..recipes import RECIPES

_log = logging.getLogger(__name__)

Config = TypeVar("Config")


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its status; what its user can mend is told in a sentence.

    `--debug` anywhere on the command line shows how the code came there. Whatever else ends a
    training (NotFiniteError, SIGTERM) keeps its own status.
    """
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        status = command()
    except (ValueError, OSError, ImportError, MemoryError) as e:
        if debug:
            raise
        _log.error("%s", e)
        place = traceback.extract_tb(e.__traceback__)[-1]  # after days, a bug shall be found, too
        _log.info("Said at %s:%d; --debug shows more.", place.filename, place.lineno)
        status = 2
    raise SystemExit(status)


def train_and_exit(parse: Callable[[], Config], train: Callable[[Config], Path]) -> NoReturn:
    """Train what the command line says, and print the path of the weights; see `exit_with`."""

    def command() -> int:
        print(train(parse()))
        return 0

    exit_with(command)


def parse_config(
    trainer: str,
    kind: type[Config],
    args: Sequence[str] | None = None,
    *,
    prog: str | None = None,
) -> Config:
    """Read a config from the command line; prepare the log. `prog` is how help calls the command.

    The data is looked for in `data/train` and `data/validation` and the output goes to
    `runs/<trainer>`, unless said otherwise.
    """
    try:
        import tyro
    except ImportError as e:
        raise ImportError(f"Training needs tyro: pip install tyro ({e}).") from e
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    choices = {
        name: ((recipe.__doc__ or "").strip(), recipe(Path("data"), Path("runs") / trainer))
        for name, recipe in RECIPES[trainer].items()
    }
    config = tyro.extras.overridable_config_cli(
        choices, prog=prog or f"python -m training.train_{trainer}", args=args
    )
    assert isinstance(config, kind)
    return config
