"""How good the depth of a whole video is: one fit for all of its frames, pixels weigh alike."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .depth import Alignment, DepthErrors, align, errors_of_aligned
from .tables import EvaluationError

CONFIDENCE_GROUPS = 5
"""Quantiles in which errors are looked at by confidence."""

_BEST_CONSTANT_CANDIDATES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthProtocol:
    """What a benchmark does with depth."""

    alignment: Alignment = "absolute-scale-shift"
    """What is fitted, once for a video, where both depths are known."""

    max_depth: float | None = None
    """Truth from here on does not count, and predictions beyond are cut to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoDepth:
    """Depth (camera z) of a video, and where it is known."""

    depth: Float[Tensor, "frame height width"]
    """Any value where not valid."""

    valid: Bool[Tensor, "frame height width"]
    """False for sky, and where nothing is known."""

    confidence: Float[Tensor, "frame height width"] | None = None
    """Higher is better; None: not known."""

    def resized(self, size_hw: tuple[int, int]) -> "VideoDepth":
        """Bring to another size: depth bicubic, what is valid as the nearest pixel is."""
        if self.depth.shape[1:] == size_hw:
            return self
        known = self.depth.where(self.valid, torch.nan)
        # What is not known takes the frame's median, so that it does no harm across its edges.
        middle = known.flatten(1).nanmedian(1).values.nan_to_num(1.0)
        filled = self.depth.where(self.valid, middle[:, None, None])
        depth = F.interpolate(filled[:, None], size_hw, mode="bicubic", align_corners=False)[:, 0]
        valid = F.interpolate(self.valid[:, None].float(), size_hw, mode="nearest-exact")[:, 0]
        confidence = self.confidence
        if confidence is not None:
            confidence = F.interpolate(confidence[:, None], size_hw, mode="nearest-exact")[:, 0]
        return VideoDepth(depth=depth, valid=valid > 0.5, confidence=confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoDepthErrors:
    """Errors of one video."""

    errors: DepthErrors
    """Over all pixels whose true depth counts."""

    num_pixels: int
    """How many these are."""

    constant_within: float
    """Share within 1.25 of the best constant depth."""

    by_confidence: tuple[float, ...] | None
    """Mean relative error of the fifth with the highest confidence, and so on to the lowest; None
    where no confidence is told."""


def video_depth_errors(
    predicted: VideoDepth, true: VideoDepth, protocol: DepthProtocol
) -> VideoDepthErrors:
    """Compare the depth of a video.

    Where the truth is known and the prediction says that there is nothing (sky), it is taken as
    the protocol's largest depth, or else the largest that was predicted.

    Raises:
        EvaluationError: other frames than the truth's, nothing to compare, or NaN.
    """
    if len(predicted.depth) != len(true.depth):
        raise EvaluationError(
            f"The prediction has {len(predicted.depth)} frames and the truth {len(true.depth)}; "
            "expected the same frames."
        )
    predicted = predicted.resized((true.depth.shape[1], true.depth.shape[2]))
    counts = true.valid & true.depth.isfinite() & (true.depth > 0)
    if protocol.max_depth is not None:
        counts &= true.depth < protocol.max_depth
    if not (counts & predicted.valid).any():
        raise EvaluationError("There is no pixel at which both depths are known.")
    ours, theirs = predicted.depth[counts].double(), true.depth[counts].double()
    known = predicted.valid[counts]
    if not ours[known].isfinite().all():
        raise EvaluationError("The predicted depth is NaN or infinite at pixels said to be valid.")
    scale, shift = align(ours[known], theirs[known], protocol.alignment)
    aligned = scale * ours + shift
    farthest = protocol.max_depth or float(aligned[known].max())
    aligned = aligned.where(known, farthest).clamp(max=farthest)
    confidence = None if predicted.confidence is None else predicted.confidence[counts]
    return VideoDepthErrors(
        errors=errors_of_aligned(aligned, theirs, scale=scale, shift=shift),
        num_pixels=len(theirs),
        constant_within=constant_within(theirs),
        by_confidence=None
        if confidence is None
        else errors_by_confidence(
            ((aligned - theirs).abs() / theirs)[known], confidence[known].double()
        ),
    )


def constant_within(true: Float[Tensor, "pixel"], factor: float = 1.25) -> float:
    """Return the largest share of pixels that one depth has within `factor`, either way."""
    ordered = true.double().log().sort().values
    # An interval of the logarithm that holds most; it may as well begin at a pixel.
    low = ordered[:: max(1, len(ordered) // (50 * _BEST_CONSTANT_CANDIDATES))].contiguous()
    ends = torch.searchsorted(ordered, low + 2 * math.log(factor))
    begins = torch.searchsorted(ordered, low)
    return float((ends - begins).max() / len(ordered))


def errors_by_confidence(
    error: Float[Tensor, "pixel"],
    confidence: Float[Tensor, "pixel"],
    groups: int = CONFIDENCE_GROUPS,
) -> tuple[float, ...] | None:
    """Return the mean error in equal groups, from the highest confidence to the lowest.

    None where there are fewer pixels than groups.
    """
    if len(error) < groups:
        return None
    order = confidence.sort(descending=True, stable=True).indices
    return tuple(float(part.mean()) for part in error[order].tensor_split(groups))
