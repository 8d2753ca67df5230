"""What the host shows while 4D-STraG is sampled: motion as trails over the image.

The host makes its previews from a table in the model's latent format, and lets that format reshape
a latent first. That is where the picture is drawn, so the host's own settings for previews hold,
every sampler shows it, and no node is needed.
"""

import comfy.latent_formats
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..more4d_backend.strag.motion_preview import MotionPreview
from ..more4d_backend.wan.latents import LATENT_CHANNELS


class MotionLatentFormat(comfy.latent_formats.Wan21):
    """Wan's latents, which the host does not know how to show where they are motion."""

    # The picture is ready: its first channels are red, green and blue, and the others nothing. They
    # are there for packs that animate previews (VideoHelperSuite's, among others): those multiply
    # frames of the latent by this table, some without asking for the picture, and sampling would
    # end where the sizes differ.
    latent_rgb_factors = [  # noqa: RUF012
        [float(channel == color) for color in range(3)] for channel in range(LATENT_CHANNELS)
    ]
    latent_rgb_factors_bias = None

    def __init__(self) -> None:
        super().__init__()
        self.taesd_decoder_name = None  # it would show the latent as a picture
        self._preview: MotionPreview | None = None

    def begin(self, preview: MotionPreview | None) -> None:
        """Set what the next sampling is of."""
        self._preview = preview

    def latent_rgb_factors_reshape(self, latent: Tensor) -> Tensor:
        """Return the picture of a latent (1, 16, ...), in the host's range -1 to 1.

        Single frames (frame, 16, height, width) stay what they are: nobody can tell their motion.
        """
        if latent.ndim != 5:
            return latent
        if self._preview is None:
            return torch.zeros(1, LATENT_CHANNELS, *latent.shape[-2:])
        picture = self._preview.picture(latent[0]).movedim(-1, 0)[None]
        return pad(2 * picture - 1, (0, 0, 0, 0, 0, LATENT_CHANNELS - 3))
