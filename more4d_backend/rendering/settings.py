"""What to render and what comes out."""

import difflib
import logging
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

log = logging.getLogger(__name__)

RenderMode = Literal["nearest", "splat", "gaussian"]
GaussianBackend = Literal["auto", "gsplat", "torch"]


class RenderError(ValueError):
    """A request that cannot be rendered: the message says why and what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSettings:
    """How a scene is drawn."""

    mode: RenderMode = "splat"
    """`nearest`: one pixel a point. `splat`: each point covers its part of the surface.
    `gaussian`: each point is a small Gaussian, blended front to back."""

    draw_unseen: bool = False
    """Draw tracks also in the frames where their visibility is False. They are hidden there by
    something nearer or outside the source view, and their positions are guesses."""

    max_footprint_px: float = 16.0
    """The longest side of a point in `splat` and `gaussian`, in pixels of the rendered view."""

    gaussian_sigma: float = 0.5
    """Standard deviation of a Gaussian, in spacings between neighbouring points."""

    gaussian_backend: GaussianBackend = "auto"
    """`auto` takes gsplat where it is installed and the device is CUDA, otherwise plain torch."""

    device: torch.device | str | None = None
    """Where to render and where the output lies. None: where the scene lies."""

    chunk_frames: int | None = None
    """Frames rendered at once. None: as many as fit into free memory. Changes no result."""

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, get_args(RenderMode))
        _check_choice("gaussian_backend", self.gaussian_backend, get_args(GaussianBackend))
        for name in ("max_footprint_px", "gaussian_sigma"):
            if not 0 < getattr(self, name) < float("inf"):
                raise RenderError(f"{name} is {getattr(self, name)}; expected a positive number.")
        if self.max_footprint_px < 1:
            raise RenderError(
                f"max_footprint_px is {self.max_footprint_px}; expected at least 1, because every "
                "point covers at least the pixel that it falls on."
            )
        if self.chunk_frames is not None and self.chunk_frames < 1:
            raise RenderError(f"chunk_frames is {self.chunk_frames}; expected at least 1, or None.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOutput:
    """What is seen from a camera path, and where nothing is seen."""

    rgb: Float[Tensor, "frame height width 3"]
    """sRGB in [0, 1], not multiplied by alpha; 0 where nothing is seen."""

    depth: Float[Tensor, "frame height width"]
    """Camera z; 0 where nothing is seen."""

    alpha: Float[Tensor, "frame height width"]
    """Coverage in [0, 1]. Holes are found from it, never from colour."""

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.rgb.shape[0]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value in choices:
        return
    # Not an if on the ratio: a message that always names one is a message that always helps.
    nearest = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.0)[0]
    raise RenderError(
        f"{name} is {value!r}; expected one of {', '.join(choices)}. Did you mean {nearest!r}?"
    )
