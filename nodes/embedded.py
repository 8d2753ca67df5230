"""The embedded weights, where the host's own loaders find them."""

import folder_paths

from ..more4d_backend.tiny import WEIGHTS_FOLDER

_CATEGORIES = ("diffusion_models", "vae", "loras")
"""Of the host; the folder of weights has one sub-folder for each."""


def register_folders() -> None:
    """Add them to the folders that the host searches, after the user's own."""
    for category in _CATEGORIES:
        folder = WEIGHTS_FOLDER / category
        if folder.is_dir():
            folder_paths.add_model_folder_path(category, str(folder))
