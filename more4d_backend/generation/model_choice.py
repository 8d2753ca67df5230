"""Which weights a generation uses: named ones, downloaded ones, or the embedded ones.

And what follows from that choice where the user does not say otherwise: sizes, steps, guidance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..strag.profile import OWN, RELEASED, StragWeightsProfile
from ..tiny import embedded_file, has_embedded_weights
from ..vism.lora import RELEASED_WEIGHT
from ..weights.files import WeightsError
from .models import STRAG_WEIGHTS, VISM_WEIGHTS, find_files

ModelName = Literal["released", "embedded"]

EMBEDDED_SLOTS = {
    "strag": "strag",
    "motion-vae": "motion_vae",
    "wan-vae": "wan_vae",
    "text-encoder": "text_encoder",
    "fun-inp": "vism",
    "vism-lora": "vism_lora",
}
"""Name of a weight, as `FileModels` knows it -> name of the embedded file."""

WEIGHT_NAMES = tuple(dict.fromkeys((*STRAG_WEIGHTS, *VISM_WEIGHTS, *EMBEDDED_SLOTS)))
"""Every name that a user can give a weight file by."""

LIMITS = (
    "The embedded weights are small and know procedural scenes only: textured rooms and "
    "landscapes with simple bodies. On photographs expect little. The released weights, tens of "
    "gigabytes: python -m more4d_backend download image-to-4d new-views"
)
"""What must be said wherever the embedded weights are used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What the weights were made for."""

    profile: StragWeightsProfile
    """How the STraG weights were trained."""

    size_hw: tuple[int, int]
    """Height and width at which the networks work."""

    num_steps: int
    """Denoising steps of each network."""

    guidance_scale: float
    """1 is none."""

    lora_weight: float
    """How strongly the ViSM LoRA acts."""


DEFAULTS: dict[ModelName, GenerationDefaults] = {
    "released": GenerationDefaults(
        profile=RELEASED,
        size_hw=(368, 512),
        num_steps=50,
        guidance_scale=6.0,
        lora_weight=RELEASED_WEIGHT,
    ),
    "embedded": GenerationDefaults(
        profile=OWN, size_hw=(128, 176), num_steps=20, guidance_scale=1.5, lora_weight=1.0
    ),
}
"""Where the user does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """Weights, and why these."""

    name: ModelName
    """Whose weights; named ones count as released."""

    files: dict[str, Path]
    """See `FileModels.files`."""

    reason: str
    """Full sentences, for the log and for run.json."""

    @property
    def defaults(self) -> GenerationDefaults:
        """What the weights were made for."""
        return DEFAULTS[self.name]


def choose_models(
    given: Mapping[str, Path],
    *,
    folder: Path | None = None,
    model: ModelName | None = None,
    complete: bool = True,
) -> ModelChoice:
    """Choose weights; opens no connection.

    Without `model`: what was named (`given`, or downloads in `folder`), else the downloaded weights
    if they are all there, else the embedded ones. With `embedded`, named files replace single ones
    of them. `complete`: whether holes will be filled.

    Raises:
        WeightsError: names everything that is missing, and how to get it.
    """
    needed = tuple(dict.fromkeys((*STRAG_WEIGHTS, *(VISM_WEIGHTS if complete else ()))))
    if model == "embedded":
        return _embedded(given, complete, "They were asked for.")
    if model is None and not given and folder is None and has_embedded_weights():
        missing = _not_downloaded(needed)
        if missing:
            why = f"No weights were named, and these are not downloaded: {', '.join(missing)}."
            return _embedded(given, complete, why)
    if "text-encoder" in given:
        raise WeightsError(
            "The weight text-encoder was named; only the embedded networks read it. Add --model "
            "embedded, or name umt5 and umt5-tokenizer instead."
        )
    files = find_files(dict(given), folder, needed)
    where = "named" if given else "downloaded"
    return ModelChoice(name="released", files=files, reason=f"The weights are those {where}.")


def _not_downloaded(needed: Sequence[str]) -> list[str]:
    from ..weights.downloads import find_downloaded

    return [name for name in needed if find_downloaded(name, None) is None]


def _embedded(given: Mapping[str, Path], complete: bool, why: str) -> ModelChoice:
    if strangers := [name for name in given if name not in EMBEDDED_SLOTS]:
        raise WeightsError(
            f"The embedded networks have no use for {', '.join(strangers)}. With them you can "
            f"name: {', '.join(EMBEDDED_SLOTS)}."
        )
    if absent := [str(path) for path in given.values() if not path.exists()]:
        raise WeightsError(f"These weight files are not there: {', '.join(absent)}.")
    slots = {
        n: e for n, e in EMBEDDED_SLOTS.items() if complete or n not in ("fun-inp", "vism-lora")
    }
    files = {n: given[n] if n in given else embedded_file(e) for n, e in slots.items()}
    replaced = f" Replaced by named files: {', '.join(given)}." if given else ""
    return ModelChoice(
        name="embedded", files=files, reason=f"Using the embedded weights. {why}{replaced} {LIMITS}"
    )
