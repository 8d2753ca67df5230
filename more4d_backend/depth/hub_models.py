"""Weights of depth networks: found offline unless a download is allowed, and loaded strictly."""

import os
from pathlib import Path
from typing import Any

import torch

from .provider import DepthProviderError


def weights_folder(source: str | os.PathLike[str], *, download: bool) -> Path:
    """Folder of a model: `source` itself, or a repository's copy in the Hugging Face cache.

    Raises:
        DepthProviderError: not there, and downloading not allowed or not possible.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        import huggingface_hub
    except ImportError as e:
        raise DepthProviderError(
            f"Depth networks need huggingface_hub: pip install huggingface_hub ({e})."
        ) from e
    try:
        folder = huggingface_hub.snapshot_download(
            str(source),
            local_files_only=not download,
            allow_patterns=["config.json", "*.safetensors", "*.safetensors.index.json"],
        )
    except (OSError, ValueError) as e:  # not in the cache, no connection; no such repository name
        raise DepthProviderError(
            f"{source} is no folder, and not in the local Hugging Face cache either. Fetch it "
            f"once (hf download {source}), or allow the download (--allow-download on the command "
            f"line). The library says: {e}"
        ) from e
    return Path(folder)


def load_depth_model(
    class_name: str,
    source: str | os.PathLike[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    download: bool,
) -> Any:
    """Load a transformers model for evaluation; every weight must come from the files.

    Raises:
        DepthProviderError: transformers or the weights are missing, or the weights are foreign.
    """
    folder = weights_folder(source, download=download)
    try:
        import transformers
    except ImportError as e:
        raise DepthProviderError(
            f"Depth networks need transformers: pip install transformers ({e})."
        ) from e
    kind = getattr(transformers, class_name)
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except OSError as e:
        raise DepthProviderError(
            f"{folder} does not hold a {class_name} (config.json and .safetensors): {e}"
        ) from e
    faults = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if faults:
        raise DepthProviderError(
            f"The weights in {folder} are not those of a {class_name}: {len(faults)} parameters "
            "are missing, left over or of another shape, such as "
            f"{', '.join(map(str, faults[:5]))}."
        )
    torch.nn.Module.to(model, device, dtype)
    return model.eval()
