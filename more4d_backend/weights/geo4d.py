"""Our Geo4D file: UNet, VAE with both decoders and the folded context, under one set of names.

`weights convert` makes it from the released pair of checkpoints (weights/geo4d_checkpoint.py), and
trainers write it. How the networks are built, in how many steps they denoise, how far the cameras
of their ray maps are trusted and whether windows are seen mirrored, too, stands in its header;
where that was lost, sizes are read from shapes and the rest is as released.
"""

import json
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict

import torch
from safetensors.torch import save_file

from ..files import replacing
from ..geo4d.model import Geo4DNetworks
from ..geo4d.sampling import NUM_TRAIN_TIMESTEPS
from ..geo4d.sizes import LARGEST_CAMERA_WEIGHT, RELEASED_CAMERA_WEIGHT, RELEASED_NUM_STEPS
from . import load_into
from .conversion import open_model
from .files import WeightFile, WeightsError
from .geo4d_sizes import (
    CAMERA_WEIGHT_KEY,
    MIRRORED_WINDOWS_KEY,
    NUM_STEPS_KEY,
    SIZE_KEY,
    size_from_shapes,
    stored_size,
)
from .kinds import WeightKind, expect, recognize

_log = logging.getLogger(__name__)

_YES, _NO = "yes", "no"


def load_geo4d(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Geo4DNetworks:
    """Load a converted or trained Geo4D file. `dtype` None: as stored.

    Raises:
        WeightsError: not a whole Geo4D file, or its header is damaged; for a released checkpoint
            the message says how to convert it.
    """
    file = open_model(path)
    if recognize(file).kind in (WeightKind.GEO4D_CHECKPOINT, WeightKind.GEO4D_VAE):
        raise WeightsError(
            f"{path} is {recognize(file).kind.label}, whose prompt and picture encoders have not "
            "been folded into a context yet. Put model.ckpt and vae.ckpt into one folder and run "
            "once: python -m more4d_backend weights convert FOLDER geo4d.safetensors"
        )
    found = expect(file, WeightKind.GEO4D)
    tensors = found.stripped(file.tensors)
    try:
        size = stored_size(file) or size_from_shapes(tensors)
        with torch.device("meta"):
            networks = Geo4DNetworks(size)
    except KeyError as e:
        raise WeightsError(f"{path} lacks the tensor {e}, which Geo4D cannot be without.") from e
    networks.num_steps = _stored_num_steps(file)
    networks.camera_weight = _stored_camera_weight(file)
    networks.mirrored_windows = _stored_mirrored_windows(file)
    load_into(networks, tensors, source=str(path), dtype=dtype, device=device)
    return networks.eval().to_channels_last()


def save_geo4d(
    networks: Geo4DNetworks,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write networks as one safetensors file.

    Its header has `metadata`, the sizes, and what they are made for: denoising steps, the weight of
    ray cameras, and whether windows are seen mirrored, too.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {
        name: value.detach().to("cpu", dtype, copy=True).contiguous()
        for name, value in networks.state_dict().items()
    }
    header = dict(metadata or {}) | geo4d_header(networks)
    header |= {"format": "pt", "more4d_kind": WeightKind.GEO4D.value}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def geo4d_header(networks: Geo4DNetworks) -> dict[str, str]:
    """Return what only the header of a file tells of networks."""
    return {
        SIZE_KEY: json.dumps(asdict(networks.size)),
        NUM_STEPS_KEY: str(networks.num_steps),
        CAMERA_WEIGHT_KEY: f"{networks.camera_weight:g}",
        MIRRORED_WINDOWS_KEY: _YES if networks.mirrored_windows else _NO,
    }


def _stored_num_steps(file: WeightFile) -> int:
    """Read the denoising steps in the header; those of the released networks where it has none."""
    text = file.metadata.get(NUM_STEPS_KEY)
    if text is None:
        _log.info(
            "%s does not say in how many steps it denoises: %d, as released.",
            file.path,
            RELEASED_NUM_STEPS,
        )
        return RELEASED_NUM_STEPS
    if not re.fullmatch("[1-9][0-9]{0,3}", text) or int(text) > NUM_TRAIN_TIMESTEPS:
        raise WeightsError(
            f"{file.path} says in its header that it denoises in {text[:20]!r} steps; expected 1 "
            f"to {NUM_TRAIN_TIMESTEPS}. It may be damaged, or written by a newer version."
        )
    return int(text)


def _stored_camera_weight(file: WeightFile) -> float:
    """Read the weight of ray cameras in the header; the paper's where it has none."""
    text = file.metadata.get(CAMERA_WEIGHT_KEY)
    if text is None:
        return RELEASED_CAMERA_WEIGHT
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= LARGEST_CAMERA_WEIGHT:
        raise WeightsError(
            f"{file.path} says in its header that ray cameras weigh {text[:20]!r}; expected 0 to "
            f"{LARGEST_CAMERA_WEIGHT:g}. It may be damaged, or written by a newer version."
        )
    return weight


def _stored_mirrored_windows(file: WeightFile) -> bool:
    """Read whether windows are seen mirrored, too; as released, they are not."""
    text = file.metadata.get(MIRRORED_WINDOWS_KEY, _NO)
    if text not in (_YES, _NO):
        raise WeightsError(
            f"{file.path} says {text[:20]!r} in its header where it tells whether it sees windows "
            f"mirrored; expected {_YES} or {_NO}. It may be damaged, or written by a newer version."
        )
    return text == _YES
