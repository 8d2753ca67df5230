"""Every command by name."""

from typing import Annotated

from tyro.conf import subcommand

from .path_commands import Paths
from .render_commands import Render
from .scene_commands import Convert, Info, Lift, Synthetic

COMMANDS = (
    Annotated[Lift, subcommand("lift")]
    | Annotated[Render, subcommand("render")]
    | Annotated[Paths, subcommand("paths")]
    | Annotated[Convert, subcommand("convert")]
    | Annotated[Info, subcommand("info")]
    | Annotated[Synthetic, subcommand("synthetic")]
)
