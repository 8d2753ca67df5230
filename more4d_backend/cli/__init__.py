"""The command line: one dataclass per command, its fields are the options, `run` does the work."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

LOGGER = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 some items failed, 2 refused."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        import tyro

        from .console import set_up_logging

        set_up_logging("--debug" in arguments)
    except ImportError as e:
        folder = Path(__file__).parents[2]
        sys.stderr.write(f'The command line needs more: pip install "{folder}[headless]" ({e}).\n')
        return 2
    from .commands import COMMANDS

    command = tyro.cli(
        COMMANDS,
        prog="python -m more4d_backend",
        description="4D scenes from one image or one video. Each command has its own --help. "
        "Add --debug to any command for details and, after an error, the place in the code.",
        args=[argument for argument in arguments if argument != "--debug"],
    )
    try:
        return command.run()
    except (ValueError, OSError, ImportError, MemoryError) as e:
        if "--debug" in arguments:
            raise
        LOGGER.error("%s", _in_words(e))
        return 2
    except RuntimeError as e:
        from ..devices import is_out_of_memory

        if "--debug" in arguments or not is_out_of_memory(e):
            raise
        LOGGER.error(
            "Memory ran out. Use fewer frames or a smaller size (see the command's --help), or "
            "close other programs. The library says: %s", str(e).splitlines()[0]
        )  # fmt: skip
        return 2
    except KeyboardInterrupt:
        LOGGER.error("Interrupted. Outputs that were finished before are whole.")
        return 130


def _in_words(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"There is no file {error.filename}."
    if isinstance(error, IsADirectoryError) and error.filename is not None:
        return f"{error.filename} is a folder; expected a file."
    return str(error) or type(error).__name__
