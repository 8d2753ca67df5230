"""Every command by name."""

from typing import Annotated

from tyro.conf import subcommand

from .evaluate_command import Evaluate, Published
from .generate_commands import Generate
from .path_commands import Paths
from .reconstruct_command import Reconstruct
from .render_commands import Render
from .scene_commands import Convert, Info, Lift, Synthetic
from .view_command import View
from .weight_commands import Download, ReconstructMotion, Weights

COMMANDS = (
    Annotated[Generate, subcommand("generate")]
    | Annotated[Lift, subcommand("lift")]
    | Annotated[Reconstruct, subcommand("reconstruct")]
    | Annotated[Render, subcommand("render")]
    | Annotated[View, subcommand("view")]
    | Annotated[Paths, subcommand("paths")]
    | Annotated[Convert, subcommand("convert")]
    | Annotated[Info, subcommand("info")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Published, subcommand("published")]
    | Annotated[Download, subcommand("download")]
    | Annotated[Weights, subcommand("weights")]
    | Annotated[ReconstructMotion, subcommand("reconstruct-motion")]
    | Annotated[Synthetic, subcommand("synthetic")]
)
