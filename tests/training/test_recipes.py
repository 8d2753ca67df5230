from pathlib import Path

import pytest

from training.recipes import RECIPES, Dropouts, StragConfig, VismConfig
from training.run.checkpoints import plain
from training.run.command_line import parse_config
from training.run.settings import SettingsError, TrainerSettings

ALL = [(trainer, name) for trainer, recipes in RECIPES.items() for name in recipes]


@pytest.mark.parametrize(("trainer", "name"), ALL)
def test_every_recipe_makes_a_config_that_survives_json(trainer, name):
    config = RECIPES[trainer][name](Path("data"), Path("run"))
    assert isinstance(config, TrainerSettings)
    assert config.data.train == Path("data/train")
    assert config.run.output == Path("run")
    assert plain(config) == plain(RECIPES[trainer][name](Path("data"), Path("run")))


@pytest.mark.parametrize("trainer", RECIPES)
def test_every_trainer_has_the_three_recipes(trainer):
    assert {"released", "own", "tiny"} <= RECIPES[trainer].keys()


def test_recipes_of_our_own_use_visibility_and_the_published_ones_do_not():
    for trainer in ("motion_vae", "strag"):
        recipes = RECIPES[trainer]
        weights = {name: make(Path(), Path()).hidden_weight for name, make in recipes.items()}
        assert weights["released"] == 1.0
        assert weights["own"] < 1.0
        assert weights["tiny"] < 1.0


def test_only_the_published_recipe_is_limited_to_the_original_viewpoint():
    released, own = (RECIPES["vism"][name](Path(), Path()).holes for name in ("released", "own"))
    assert (released.original, released.round_trip, released.novel) == (1.0, 0.0, 0.0)
    assert min(own.original, own.round_trip, own.novel) > 0


def test_the_command_line_names_a_recipe_and_changes_single_settings():
    args = ["tiny", "--run.num-steps", "3", "--data.size.height", "64", "--run.ema-decay", "None"]
    config = parse_config("strag", StragConfig, args)
    assert config.run.num_steps == 3
    assert config.data.size.height == 64
    assert config.run.ema_decay is None
    assert config.run.output == Path("runs/strag")
    assert config.size == "tiny"


def test_the_command_line_takes_nested_settings():
    args = ["own", "--mode", "full", "--holes.paths", "spiral", "up", "--weights.base", "x.st"]
    config = parse_config("vism", VismConfig, args)
    assert config.mode == "full"
    assert config.holes.paths == ("spiral", "up")
    assert config.weights.base == Path("x.st")


@pytest.mark.parametrize("args", [["huge"], ["tiny", "--run.steps", "3"], []])
def test_what_the_command_line_does_not_know_is_refused(args, capsys):
    with pytest.raises(SystemExit) as exit_code:
        parse_config("strag", StragConfig, args)
    assert exit_code.value.code == 2


def test_a_dropout_of_one_is_refused():
    with pytest.raises(SettingsError, match=r"dropouts\.text is 1\.0"):
        Dropouts(text=1.0)
