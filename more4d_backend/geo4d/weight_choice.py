"""Which Geo4D weights a reconstruction uses: those that are named, else the embedded ones."""

from dataclasses import dataclass
from pathlib import Path

from ..tiny import WEIGHTS_FOLDER
from ..weights.files import WeightsError

EMBEDDED_GEO4D = WEIGHTS_FOLDER / "other" / "more4d_tiny_geo4d.safetensors"
"""The small network that comes along, for procedural videos."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightChoice:
    """A file, and why it was taken."""

    path: Path
    """Our joined Geo4D file."""

    reason: str
    """One line for the log."""

    embedded: bool
    """Whether it is the small one that comes along."""


def choose_weights(named: Path | None) -> WeightChoice:
    """Choose.

    Raises:
        WeightsError: none were named, and this installation came without the embedded ones.
    """
    if named is not None:
        return WeightChoice(path=named, reason=f"Geo4D weights: {named}.", embedded=False)
    if not EMBEDDED_GEO4D.is_file():
        raise WeightsError(
            "No Geo4D weights were named, and this installation came without the embedded ones. "
            "Name a file (--weights geo4d.safetensors), made from the released checkpoints by: "
            "python -m more4d_backend weights convert FOLDER geo4d.safetensors"
        )
    reason = (
        "No Geo4D weights were named: the EMBEDDED tiny network is used. It knows procedural "
        "videos only; on real footage expect rough shapes. For the released quality name converted "
        "weights (--weights geo4d.safetensors; see docs/geo4d.md)."
    )
    return WeightChoice(path=EMBEDDED_GEO4D, reason=reason, embedded=True)
