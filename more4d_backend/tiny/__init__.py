"""The embedded weights: every network of the project in small, for procedural scenes.

They run on the CPU, through the same code as the released ones. `README.md` beside this file says
what they can do. All files hold bfloat16 under original names:

| file | what it holds |
|---|---|
| wan_vae | RGB video VAE of width 16; its own latent mean and std are folded into conv1 and conv2 |
| motion_vae | adapters of width 32, decoder, conv1 and conv2; the encoder is that of `wan_vae` |
| strag | 4D-STraG of 64 channels with motion perception, without image tokens |
| vism | the Fun-InP layout of 36 channels that 4D-ViSM starts from, without image tokens |
| vism_lora | the 4D-ViSM LoRA on it |
| depth | `depth_network` |
| text_encoder | `text_encoder`, the same for both transformers |
"""

from pathlib import Path

from ..weights.files import WeightsError
from ..weights.kinds import WeightKind

WEIGHTS_FOLDER = Path(__file__).parent / "weights"

EMBEDDED_FILES: dict[str, WeightKind] = {
    "wan_vae": WeightKind.WAN_VAE,
    "motion_vae": WeightKind.MOTION_DECODER,
    "strag": WeightKind.STRAG,
    "vism": WeightKind.FUN_INP,
    "vism_lora": WeightKind.VISM_LORA,
    "depth": WeightKind.TINY_DEPTH,
    "text_encoder": WeightKind.BYTE_TEXT,
}
"""Name of every embedded file, and what it is."""

_CATEGORIES = {
    WeightKind.STRAG: "diffusion_models",
    WeightKind.FUN_INP: "diffusion_models",
    WeightKind.WAN_VAE: "vae",
    WeightKind.MOTION_DECODER: "vae",
    WeightKind.VISM_LORA: "loras",
}
"""Folders that ComfyUI has for such files, so that its lists can show each where it fits."""

FILE_LIMIT_BYTES = 15_000_000
"""No embedded file is larger."""

TOTAL_LIMIT_BYTES = 40_000_000
"""All of them together are no larger."""


def embedded_file(name: str) -> Path:
    """Return where an embedded file lies, by its name in `EMBEDDED_FILES`.

    Raises:
        WeightsError: no such name, or this installation came without it.
    """
    path = WEIGHTS_FOLDER / relative_path(name)
    if not path.is_file():
        raise WeightsError(
            f"The embedded file {path} is missing from this installation. Install the project "
            "whole, or use the released weights: python -m more4d_backend download --help"
        )
    return path


def relative_path(name: str) -> Path:
    """Return where an embedded file lies inside of `WEIGHTS_FOLDER`.

    Raises:
        WeightsError: no such name.
    """
    if name not in EMBEDDED_FILES:
        known = ", ".join(EMBEDDED_FILES)
        raise WeightsError(f"There is no embedded file {name!r}. There are: {known}.")
    folder = _CATEGORIES.get(EMBEDDED_FILES[name], "other")
    return Path(folder) / f"more4d_tiny_{name}.safetensors"


def has_embedded_weights() -> bool:
    """Tell whether this installation holds every embedded file."""
    return all((WEIGHTS_FOLDER / relative_path(name)).is_file() for name in EMBEDDED_FILES)
