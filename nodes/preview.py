"""What the host shows while 4D-STraG is sampled: motion as trails over the image.

The host makes its previews from a table in the model's latent format, and lets that format reshape
a latent first. That is where the picture is drawn, so the host's own settings for previews hold,
every sampler shows it, and no node is needed.
"""

import comfy.latent_formats
import torch
from torch import Tensor

from ..more4d_backend.strag.motion_preview import MotionPreview


class MotionLatentFormat(comfy.latent_formats.Wan21):
    """Wan's latents, which the host does not know how to show where they are motion."""

    # The picture is ready: its channels are red, green and blue.
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]  # noqa: RUF012
    latent_rgb_factors_bias = None

    def __init__(self) -> None:
        super().__init__()
        self.taesd_decoder_name = None  # it would show the latent as a picture
        self._preview: MotionPreview | None = None

    def begin(self, preview: MotionPreview | None) -> None:
        """Set what the next sampling is of."""
        self._preview = preview

    def latent_rgb_factors_reshape(self, latent: Tensor) -> Tensor:
        """Return the picture of a latent (1, 16, ...), in the host's range -1 to 1."""
        if self._preview is None:
            return torch.zeros(1, 3, *latent.shape[-2:])
        picture = self._preview.picture(latent[0])
        return (2 * picture - 1).movedim(-1, 0)[None]
