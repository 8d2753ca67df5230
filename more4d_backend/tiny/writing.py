"""From trained networks to embedded files: statistics folded in, original names, bfloat16.

Nothing here is needed to run the networks.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..files import replacing
from ..wan.latents import latent_statistics
from ..weights.conversion import to_original
from ..weights.files import WeightsError, open_weights, stored
from ..weights.kinds import WeightKind, expect
from . import EMBEDDED_FILES, FILE_LIMIT_BYTES, WEIGHTS_FOLDER, relative_path

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

_log = logging.getLogger(__name__)

LAYOUT = "tiny-1"
"""Written into every file; a later layout gets another name."""

_SHARED = {"motion_vae": "vae.encoder."}
"""Beginning of the names that a file leaves to another file: see `weights.kinds`."""


@torch.no_grad()
def measured_statistics(
    latents: Iterable[Float[Tensor, "batch channel *axis"]],
) -> tuple[Float[Tensor, "channel"], Float[Tensor, "channel"]]:
    """Return mean and std of every channel over all latents, in float64.

    Raises:
        ValueError: there are no latents.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for latent in latents:
        rows = latent.transpose(0, 1).flatten(1).double().cpu()
        count += rows.shape[1]
        total, squares = total + rows.sum(1), squares + rows.square().sum(1)
    if count == 0:
        raise ValueError("There are no latents to measure; expected at least one.")
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0).sqrt()


@torch.no_grad()
def fold_statistics(
    vae: "AutoencoderKLWan", mean: Float[Tensor, "channel"], std: Float[Tensor, "channel"]
) -> None:
    """Change a VAE's outermost convolutions so that its latents have mean 0 and std 1.

    `mean` and `std` are those of the latents that `encode_video` (or, for the VAE inside a motion
    VAE, `MotionVAE.encode`) gives before. What is decoded from an encoded video stays the same: the
    change is a scale and a shift of each channel, undone before the decoder. So the published
    statistics, which every Wan host applies, fit a VAE that was trained without them.

    Raises:
        ValueError: a std is not positive.
    """
    if not bool((std > 0).all()):
        raise ValueError(f"std is {std.tolist()}; expected positive numbers: a channel is unused.")
    wan_mean, wan_std = (s.double().flatten() for s in latent_statistics(vae, vae.device))
    mean, std = mean.to(wan_mean), std.to(wan_mean)
    channels = len(mean)
    # own -> (own - offset) / std + wan_mean
    offset = wan_mean + mean * wan_std
    encode, decode = vae.quant_conv, vae.post_quant_conv
    assert encode is not None
    assert decode is not None
    assert encode.bias is not None
    assert decode.bias is not None
    weight, bias = encode.weight.double(), encode.bias.double()
    weight[:channels] /= std.view(-1, 1, 1, 1, 1)
    bias[:channels] = (bias[:channels] - offset) / std + wan_mean
    bias[channels:] -= 2 * std.log()  # the second half is the logarithm of the variance
    inner = decode.weight.double()
    decode.bias += torch.einsum("oi...,i->o", inner, offset - wan_mean * std).to(decode.bias)
    decode.weight.copy_(inner * std.view(1, -1, 1, 1, 1))
    encode.weight.copy_(weight)
    encode.bias.copy_(bias)


def write_embedded(
    name: str, network: nn.Module, *, folder: Path = WEIGHTS_FOLDER, recipe: str = ""
) -> Path:
    """Write a trained network as the embedded file of a name; see `EMBEDDED_FILES`.

    `network` is the `AutoencoderKLWan`, `MotionVAE`, `StragTransformer`, `WanTransformer3DModel`
    (for `vism_lora` with the LoRA attached, not merged), `DepthNetwork` or `ByteTextModel`.
    `recipe` is written into the file: the command and the seed that made it.

    Raises:
        WeightsError: no such name, a value is not finite, or the file would be too large.
        OutputError: the place cannot be written.
    """
    return _write(name, _tensors(name, network), folder, recipe)


def copy_embedded(
    name: str, source: Path, *, folder: Path = WEIGHTS_FOLDER, recipe: str = ""
) -> Path:
    """Write what a trainer wrote as the embedded file of a name; see `write_embedded`.

    Raises:
        WeightsError: `source` is something else, or see there.
        OutputError: the place cannot be written.
    """
    relative_path(name)  # refuses other names
    file = open_weights(source)
    expect(file, EMBEDDED_FILES[name])
    return _write(name, {n: t.read() for n, t in file.tensors.items()}, folder, recipe)


def _write(name: str, tensors: Mapping[str, Tensor], folder: Path, recipe: str) -> Path:
    from safetensors.torch import save_file

    values = _rounded(name, tensors)
    size = sum(value.nbytes for value in values.values())
    if size > FILE_LIMIT_BYTES:
        raise WeightsError(
            f"{name} would have {size / 1e6:.1f} MB; an embedded file has at most "
            f"{FILE_LIMIT_BYTES / 1e6:g}. Make the network smaller."
        )
    metadata = {
        "format": "pt",
        "more4d_kind": EMBEDDED_FILES[name].value,
        "more4d_layout": LAYOUT,
        "more4d_profile": "own",
        "more4d_recipe": recipe,
    }
    path = folder / relative_path(name)
    with replacing(path) as temporary:
        save_file(values, temporary, metadata=metadata)
    _log.info("Wrote %s: %d tensors, %.2f MB", path, len(values), path.stat().st_size / 1e6)
    return path


def _tensors(name: str, network: nn.Module) -> Mapping[str, Tensor]:
    relative_path(name)  # refuses other names
    kind = EMBEDDED_FILES[name]
    if kind is WeightKind.VISM_LORA:
        from ..vism.lora import released_tensors

        return released_tensors(network)
    state = network.state_dict()
    shared = _SHARED.get(name)
    kept = {n: t for n, t in state.items() if shared is None or not n.startswith(shared)}
    return {n: t.read() for n, t in to_original(kind, stored(kept)).items()}


def _rounded(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    values = {}
    for tensor_name, tensor in tensors.items():
        value = tensor.detach().to("cpu", torch.bfloat16).contiguous().clone()
        if not value.isfinite().all():
            raise WeightsError(f"{name}: {tensor_name} is not finite; the training went wrong.")
        values[tensor_name] = value
    return values
