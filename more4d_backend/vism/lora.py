"""The 4D-ViSM LoRA on diffusers' Wan transformer, from and to its released (kohya) names.

A released name is `lora_unet__` and the original module path with `_` for `.`, then
`.lora_down.weight` (rank, in), `.lora_up.weight` (out, rank) or `.alpha`. The LoRA adds
`lora_weight * alpha / rank * up @ down` to the weight of every Linear of the transformer.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..files import replacing
from ..weights.files import WeightFile, WeightsError, first_five, open_weights
from ..weights.keys import WAN_TRANSFORMER, renamer
from ..weights.kinds import WeightKind, expect, recognize

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

_log = logging.getLogger(__name__)

PREFIX = "lora_unet__"
"""The second underscore ends the name of the root module, which is empty."""

RELEASED_WEIGHT = 0.55
RELEASED_RANK = 128
RELEASED_ALPHA = 64.0

_DOWN, _UP, _ALPHA = "lora_down.weight", "lora_up.weight", "alpha"

_OTHER_MODELS = (
    ("lora_unet_down_blocks", "a Stable Diffusion UNet"),
    ("lora_unet_input_blocks", "a Stable Diffusion UNet"),
    ("lora_unet_double_blocks", "FLUX"),
    ("lora_unet_blocks", "Wan, in the names of another trainer"),
    ("lora_te", "a text encoder"),
    ("diffusion_model.blocks", "Wan, in the names of another trainer"),
    ("transformer.blocks", "Wan, in diffusers' names"),
    ("blocks", "Wan, in diffusers' or original names"),
    ("transformer.", "another transformer"),
    ("unet.", "a Stable Diffusion UNet"),
)


def released_names(transformer: nn.Module) -> dict[str, str]:
    """Map the released name of every Linear that the LoRA acts on to its name in `transformer`."""
    original_name = renamer(WAN_TRANSFORMER, inverse=True)
    names = {}
    for module_name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) or hasattr(module, "lora_A"):
            original = original_name(module_name)
            if original is not None and "lora_" not in original and "base_layer" not in original:
                names[PREFIX + original.replace(".", "_")] = module_name
    return names


def load_lora(
    transformer: "WanTransformer3DModel",
    path: str | os.PathLike[str],
    *,
    lora_weight: float = RELEASED_WEIGHT,
    name: str = "vism",
) -> None:
    """Attach a LoRA file to the transformer as the peft adapter `name`.

    Attach before offloading or compiling. The transformer is unchanged when this raises.

    Raises:
        WeightsError: not a safetensors file, a LoRA for another model, or tensors without use.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} is not a safetensors file. Convert the LoRA to one first.")
    file = open_weights(path)
    if recognize(file).kind not in (WeightKind.OTHER_LORA, WeightKind.UNKNOWN):
        expect(file, WeightKind.VISM_LORA)  # a whole network is named for what it is
    modules = _checked_modules(transformer, file)
    tensors, alphas = {}, {}
    for released, module_name in modules.items():
        device = next(transformer.get_submodule(module_name).parameters()).device
        down, up = (file.tensors[f"{released}.{part}"].read() for part in (_DOWN, _UP))
        tensors[f"transformer.{module_name}.lora_A.weight"] = down.to(device, transformer.dtype)
        tensors[f"transformer.{module_name}.lora_B.weight"] = up.to(device, transformer.dtype)
        alpha = file.tensors.get(f"{released}.{_ALPHA}")
        value = float(down.shape[0]) if alpha is None else float(alpha.read())
        alphas[f"transformer.{module_name}.alpha"] = value
    transformer.load_lora_adapter(
        tensors, network_alphas=alphas, adapter_name=name, low_cpu_mem_usage=True
    )
    set_lora_weight(transformer, lora_weight, name)
    _log.info("LoRA %s acts on %d modules with weight %g.", path, len(modules), lora_weight)


def add_lora(
    transformer: "WanTransformer3DModel",
    *,
    rank: int = RELEASED_RANK,
    alpha: float = RELEASED_ALPHA,
    name: str = "vism",
) -> None:
    """Attach a new LoRA for training to every Linear; at its start it changes nothing."""
    from peft import LoraConfig

    targets = list(released_names(transformer).values())
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": targets}
    transformer.add_adapter(LoraConfig(**settings), name)


def set_lora_weight(transformer: nn.Module, lora_weight: float, name: str = "vism") -> None:
    """Set how strongly the LoRA acts; 0 is not at all. Unmerge it first.

    Raises:
        WeightsError: there is no such LoRA, or it is merged.
    """
    for layer in _lora_layers(transformer, name):
        if name in layer.merged_adapters:
            raise WeightsError(f"The LoRA {name!r} is merged; unmerge it before you change it.")
        layer.set_scale(name, lora_weight)


def merge_lora(transformer: nn.Module, name: str = "vism") -> None:
    """Add the LoRA, at its weight, to the transformer's own weights: no cost per step then."""
    for layer in _lora_layers(transformer, name):
        layer.merge(adapter_names=[name])


def unmerge_lora(transformer: nn.Module, name: str = "vism") -> None:
    """Take merged LoRAs out again. In bfloat16 the weights come back to within rounding."""
    for layer in _lora_layers(transformer, name):
        layer.unmerge()


def released_tensors(transformer: nn.Module, name: str = "vism") -> dict[str, Tensor]:
    """Return the LoRA under its released names. Inverse of `load_lora`."""
    module_names = {module_name: key for key, module_name in released_names(transformer).items()}
    tensors = {}
    for layer, module_name in _named_lora_layers(transformer, name):
        released = module_names[module_name]
        tensors[f"{released}.{_DOWN}"] = layer.lora_A[name].weight.detach().contiguous()
        tensors[f"{released}.{_UP}"] = layer.lora_B[name].weight.detach().contiguous()
        tensors[f"{released}.{_ALPHA}"] = torch.tensor(float(layer.lora_alpha[name]))
    return tensors


def save_lora(
    transformer: nn.Module,
    path: str | os.PathLike[str],
    *,
    name: str = "vism",
    metadata: dict[str, str] | None = None,
) -> None:
    """Write the LoRA under its released names.

    Raises:
        OutputError: the place cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {key: tensor.cpu() for key, tensor in released_tensors(transformer, name).items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata or {})


def _checked_modules(transformer: nn.Module, file: WeightFile) -> dict[str, str]:
    """Pair every module of the file with one of the transformer, and check each tensor's shape."""
    foreign = [key for key in file.tensors if not key.startswith(PREFIX)]
    if foreign:
        raise WeightsError(
            f"{file.path} is {_described(foreign)} (its tensors: {first_five(foreign)}). Needed "
            f"here: the 4D-ViSM LoRA, all names of which start with {PREFIX}."
        )
    known = released_names(transformer)
    parts = defaultdict(set)
    for key in file.tensors:
        released, _, part = key.partition(".")
        parts[released].add(part)
    unknown = [
        key
        for key in file.tensors
        if key.partition(".")[0] not in known or key.partition(".")[2] not in (_DOWN, _UP, _ALPHA)
    ]
    incomplete = [released for released, has in parts.items() if not {_DOWN, _UP} <= has]
    if unknown or incomplete or not parts:
        raise WeightsError(
            f"{file.path} is a LoRA for another model: {len(unknown)} of its {len(file.tensors)} "
            f"tensors have no place in this transformer ({first_five(unknown) or 'none'}), and "
            f"{len(incomplete)} modules lack a half ({first_five(incomplete) or 'none'})."
        )
    for released in parts:
        _check_shapes(file, released, transformer.get_submodule(known[released]))
    return {released: known[released] for released in parts}


def _check_shapes(file: WeightFile, released: str, module: nn.Module) -> None:
    linear: Any = getattr(module, "base_layer", module)
    down, up = (file.tensors[f"{released}.{part}"].shape for part in (_DOWN, _UP))
    fits = len(down) == len(up) == 2 and down[0] == up[1]
    if not fits or (down[1], up[0]) != (linear.in_features, linear.out_features):
        raise WeightsError(
            f"{file.path} is a LoRA for a model of another size: {released} has down {down} and "
            f"up {up}; this transformer needs (rank, {linear.in_features}) and "
            f"({linear.out_features}, rank). Use the base model that the LoRA was trained on."
        )


def _described(names: list[str]) -> str:
    for start, model in _OTHER_MODELS:
        if any(name.startswith(start) for name in names):
            return f"a LoRA for {model}"
    return "not a LoRA" if not any("lora" in name for name in names) else "a LoRA of unknown kind"


def _named_lora_layers(transformer: nn.Module, name: str) -> Iterator[tuple[Any, str]]:
    from peft.tuners.lora import LoraLayer

    found = False
    for module_name, module in transformer.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            found = True
            yield module, module_name
    if not found:
        raise WeightsError(f"The transformer has no LoRA {name!r}. Load one first.")


def _lora_layers(transformer: nn.Module, name: str) -> Iterator[Any]:
    return (layer for layer, _ in _named_lora_layers(transformer, name))
