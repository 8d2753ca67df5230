"""One picture of many frames: rows of videos, columns of time, a label beside each row."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..shapes import check_shapes

if TYPE_CHECKING:
    from PIL.Image import Image

_MARGIN_PX = 6
_LABEL_PX = 18


def contact_sheet(
    videos: Mapping[str, Float[Tensor, "frame height width channel"]],
    *,
    num_columns: int = 5,
    max_frame_width_px: int = 320,
) -> "Image":
    """Lay out evenly spaced frames of several videos, one labelled row each.

    `videos` maps a label to sRGB frames in [0, 1] with 3 channels, or masks with 1. Videos may
    differ in size and length; each is scaled to at most `max_frame_width_px` wide.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = [
        (label, _thumbnails(label, frames, num_columns, max_frame_width_px))
        for label, frames in videos.items()
    ]
    width = max(sum(t.width + _MARGIN_PX for t in thumbnails) for _, thumbnails in rows)
    height = sum(thumbnails[0].height + _LABEL_PX + _MARGIN_PX for _, thumbnails in rows)
    sheet = Image.new("RGB", (width + _MARGIN_PX, height + _MARGIN_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    top = _MARGIN_PX
    for label, thumbnails in rows:
        draw.text((_MARGIN_PX, top), label, fill="black", font=font)
        top += _LABEL_PX
        left = _MARGIN_PX
        for thumbnail in thumbnails:
            sheet.paste(thumbnail, (left, top))
            left += thumbnail.width + _MARGIN_PX
        top += thumbnails[0].height + _MARGIN_PX
    return sheet


def _thumbnails(
    label: str, frames: Float[Tensor, "frame height width channel"], count: int, max_width: int
) -> "list[Image]":
    from PIL import Image

    check_shapes(**{label: (frames, "frame height width channel")})
    index = torch.linspace(0, frames.shape[0] - 1, min(count, frames.shape[0])).round().long()
    chosen = (frames[index.to(frames.device)].clamp(0, 1) * 255).round().byte().cpu()
    images = [Image.fromarray(f.expand(-1, -1, 3).contiguous().numpy()) for f in chosen]
    scale = min(1.0, max_width / images[0].width)
    size = (max(1, round(images[0].width * scale)), max(1, round(images[0].height * scale)))
    return [image.resize(size, Image.Resampling.LANCZOS) for image in images]
