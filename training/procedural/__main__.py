"""`python -m training.procedural`: write shards of samples, or draw a picture of some."""

import logging

from ..run.command_line import exit_with
from .dataset import sheet, write

if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = {"write": write, "sheet": sheet}
    exit_with(lambda: tyro.extras.subcommand_cli_from_dict(commands))
