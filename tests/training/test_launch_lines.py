"""Launch lines in the pages and beside the configurations are what accelerate and trainers take."""

import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from training.geo4d.recipes import GEO4D_RECIPES, parse_geo4d_config
from training.recipes import MotionVaeConfig, StragConfig, VismConfig
from training.run.command_line import parse_config

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = sorted((ROOT / "training" / "launch").glob("*.yaml"))
PAGES = [ROOT / "training" / "README.md", ROOT / "docs" / "training.md", *CONFIGURATIONS]
CONFIGS = {"motion_vae": MotionVaeConfig, "strag": StragConfig, "vism": VismConfig}


def _lines() -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8").replace("\\\n", " ") for page in PAGES)
    return sorted(set(re.findall(r"^(?:# +)?accelerate launch (.+)$", text, re.MULTILINE)))


@pytest.mark.parametrize("line", _lines())
def test_a_launch_line_is_understood(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = launch_command_parser().parse_args(shlex.split(line))
    assert arguments.module
    assert arguments.num_processes >= 2
    if arguments.config_file is not None:
        assert Path(arguments.config_file) in [c.relative_to(ROOT) for c in CONFIGURATIONS]
    trainer = arguments.training_script.removeprefix("training.train_")
    if trainer in GEO4D_RECIPES:
        parse_geo4d_config(trainer, arguments.training_script_args)
    else:
        parse_config(trainer, CONFIGS[trainer], arguments.training_script_args)


def test_every_configuration_is_named_in_the_page():
    page = PAGES[0].read_text(encoding="utf-8")
    assert len(_lines()) > len(CONFIGURATIONS) == 6
    for path in CONFIGURATIONS:
        assert f"launch/{path.name}" in page


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda p: p.stem)
def test_a_configuration_is_of_the_engine_that_its_name_says(path):
    config = load_config_from_file(str(path))
    if path.stem.startswith("fsdp"):
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_offload_params"] == path.stem.endswith("offload")
    else:
        assert config.deepspeed_config["zero_stage"] == int(path.stem[4])
        device = config.deepspeed_config["offload_optimizer_device"]
        assert device == ("cpu" if path.stem.endswith("offload") else "none")
