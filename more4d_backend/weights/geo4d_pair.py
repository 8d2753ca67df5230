"""The two released checkpoints of Geo4D, opened as one file; see weights/geo4d_checkpoint.py."""

from collections.abc import Mapping
from pathlib import Path

from .files import StoredTensor, WeightFile, open_weights
from .kinds import WeightKind, recognize

POINT_VAE = "point_vae."
"""What the names of `vae.ckpt` start with in the joined file."""

_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".part")
"""`.part`: the download tool that the authors use may leave files so."""


def geo4d_pair(path: Path) -> WeightFile | None:
    """Open the released pair as one file: from its folder, or from `model.ckpt` beside `vae.ckpt`.

    None where there is no such pair.
    """
    folder = path if path.is_dir() else path.parent
    files = [folder / "model.ckpt", folder / "vae.ckpt"]
    if path.is_file():
        files[0] = path
        if path.suffix != ".ckpt" or path.name == "vae.ckpt":
            return None
    if not all(file.is_file() for file in files):
        if not path.is_dir() or any(path.glob("*.index.json")):  # parts of one sharded file
            return None
        files = [p for p in sorted(path.iterdir()) if p.is_file() and p.suffix in _SUFFIXES]
    if len(files) != 2:
        return None
    opened = {recognize(file).kind: file for file in map(open_weights, files)}
    if opened.keys() != {WeightKind.GEO4D_CHECKPOINT, WeightKind.GEO4D_VAE}:
        return None
    checkpoint, vae = opened[WeightKind.GEO4D_CHECKPOINT], opened[WeightKind.GEO4D_VAE]
    tensors = recognize(checkpoint).stripped(checkpoint.tensors)
    points = recognize(vae).stripped(vae.tensors)
    joined = tensors | {POINT_VAE + name: tensor for name, tensor in points.items()}
    return WeightFile(path=path, tensors=joined)


def current_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give one part of old checkpoints the name that it has now."""
    old, new = "model.diffusion_model.framestride_embed.", "model.diffusion_model.fps_embedding."
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}
