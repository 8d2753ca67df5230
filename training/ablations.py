"""What does each part of 4D-STraG do? The same training with and without it, and one table.

    python -m training.ablations tiny --data.train procedural --data.validation procedural
    accelerate launch --num_processes 8 -m training.ablations tiny --run.num-steps 5000

Trains the whole network, then one without depth-guided normalisation, one without motion
perception and one without depth latents, each from the same seed, on the same data, for the same
number of updates, into its own folder of `--run.output`. Every one is validated by its loss and by
sampling. Prints a table and writes `ablations.json`. The same command goes on where it was
stopped; what is finished is not trained again.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from more4d_backend.evaluation import Column
from more4d_backend.files import replacing

from .recipes import Ablation, StragConfig
from .run.checkpoints import check_same_recipe, plain
from .run.command_line import exit_with, parse_config
from .run.settings import SettingsError
from .train_strag import train

_log = logging.getLogger(__name__)

VARIANTS = {
    "full": Ablation(),
    "without-depth-normalization": Ablation(depth_normalization=False),
    "without-motion-perception": Ablation(motion_perception=False),
    "without-depth-latent": Ablation(depth_latent=False),
}
"""Name (of the folder, too) -> what is left out."""

COLUMNS = (
    Column(name="loss", digits=4, better="lower"),
    Column(name="end_point_error", unit="world", digits=4, better="lower"),
    Column(name="end_point_error_relative", unit="%", digits=1, better="lower"),
    Column(name="moving_error_relative", unit="%", digits=1, better="lower"),
    Column(name="within_thresholds", unit="%", digits=1, better="higher"),
)
"""Of the validation after the last update."""

NOTES = (
    "Means over the validation samples after the last update, generated from the same noise. "
    "Relative errors: sum of end-point errors over the true motion of what moves; a still scene "
    "has 100 %.",
    "Without depth-guided normalisation the network is taught other numbers, so its loss is not "
    "comparable with the others'; the errors are.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """What one training came to."""

    name: str
    """Of the variant."""

    num_steps: int
    """Updates it was given."""

    metrics: Mapping[str, float]
    """Of its last validation, by name."""


def ablate(config: StragConfig) -> list[VariantResult]:
    """Train and validate every variant of a training that leaves nothing out.

    Raises:
        SettingsError: the training leaves something out already, or nothing can be validated.
        CheckpointError: the output folder holds variants of another recipe.
    """
    config = _checked(config)
    results = []
    for name, ablation in VARIANTS.items():
        variant = replace(
            config, ablation=ablation, run=replace(config.run, output=config.run.output / name)
        )
        result = finished(name, variant)
        if result is None:
            _log.info("Training %s", name)
            train(variant)
            result = finished(name, variant)
            assert result is not None  # the last update is validated
        else:
            _log.info("%s is finished already", variant.run.output)
        results.append(result)
    return results


def finished(name: str, config: StragConfig) -> VariantResult | None:
    """Return the result of a training if it was done to its end; None if it was not.

    Raises:
        CheckpointError: the folder holds a training of another recipe.
    """
    output = config.run.output
    about, metrics = output / "config.json", output / "metrics.jsonl"
    if not (about.is_file() and metrics.is_file() and (output / "strag.safetensors").is_file()):
        return None
    recipe = json.loads(about.read_text(encoding="utf-8"))
    check_same_recipe(recipe, plain(config), output)
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    last = [line for line in lines if line["step"] == config.run.num_steps]
    values = {
        key.removeprefix("validation/"): value
        for line in last
        for key, value in line.items()
        if key.startswith("validation/")
    }
    if not values:
        return None
    return VariantResult(name=name, num_steps=config.run.num_steps, metrics=values)


def table(results: list[VariantResult]) -> str:
    """Draw one row for each variant.

    Raises:
        ImportError: rich is not installed.
    """
    import io

    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError as e:
        raise ImportError("Tables need rich: pip install rich") from e
    drawn = Table(title=f"4D-STraG after {results[0].num_steps} updates", title_justify="left")
    for index, heading in enumerate(["variant", *(column.heading for column in COLUMNS)]):
        drawn.add_column(heading, justify="right" if index else "left")
    for result in results:
        drawn.add_row(result.name, *(c.show(result.metrics[c.name]) for c in COLUMNS))
    stream = io.StringIO()
    console = Console(file=stream, width=40 + 30 * len(COLUMNS), highlight=False, markup=False)
    console.print(drawn)
    for note in NOTES:
        console.print(note, soft_wrap=True)
    return stream.getvalue()


def save(path: Path, results: list[VariantResult]) -> None:
    """Write the table as JSON; NaN becomes null.

    Raises:
        OutputError: the place cannot be written.
    """
    variants = {
        result.name: {k: v if math.isfinite(v) else None for k, v in result.metrics.items()}
        for result in results
    }
    units = {column.name: {"unit": column.unit, "better": column.better} for column in COLUMNS}
    content = {
        "num_steps": results[0].num_steps,
        "variants": variants,
        "columns": units,
        "notes": list(NOTES),
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")


def _checked(config: StragConfig) -> StragConfig:
    if config.ablation.left_out:
        raise SettingsError(
            f"The training leaves {', '.join(config.ablation.left_out)} out already. Leave "
            "ablation.* as it is: every part is left out in turn."
        )
    if config.data.validation is None:
        raise SettingsError(
            "data.validation is None; expected a folder of shards or `procedural`, because the "
            "variants are compared on it."
        )
    run = config.run
    every = run.validate_every
    if every == 0 or run.num_steps % every:
        _log.info("Validation is after the last update alone, not every %d", every)
        every = run.num_steps
    return replace(config, run=replace(run, validate_every=every))


def main() -> int:
    """Run the command line."""
    from accelerate import PartialState

    config = parse_config("strag", StragConfig, prog="python -m training.ablations")
    if config.run.output == Path("runs") / "strag":
        config = replace(config, run=replace(config.run, output=Path("runs") / "ablations"))
    results = ablate(config)
    if PartialState().is_main_process:
        save(config.run.output / "ablations.json", results)
        print(table(results))
    return 0


if __name__ == "__main__":
    exit_with(main)
