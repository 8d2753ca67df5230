"""A picture of training samples: one row each, under its caption.

Columns: frames 0, a quarter and last; depth of frame 0 (near is bright); motion of the pixels of
frame 0 to the quarter and to the end (hue: direction, and arrows); which of them are hidden at the
end (blue); the last frame of the second path, true, and rendered from the tracks with its holes in
magenta.
"""

import colorsys
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from more4d_backend.files.contact_sheet import contact_sheet
from more4d_backend.geometry import project
from more4d_backend.rendering import RenderSettings, hole_mask, render

from ..data.samples import TrainingSample

if TYPE_CHECKING:
    from PIL.Image import Image

_HIDDEN, _HOLE = (0.2, 0.35, 1.0), (1.0, 0.0, 1.0)
_ARROW_SPACING_PX = 12


def procedural_sheet(samples: Sequence[TrainingSample]) -> "Image":
    """Draw samples; they lie in main memory."""
    rows = {f"{s.name}: {s.caption}": _row(s) for s in samples}
    columns = max(len(row) for row in rows.values())
    return contact_sheet(rows, num_columns=columns)


def _row(sample: TrainingSample) -> Float[Tensor, "frame height width 3"]:
    video = sample.video.float() / 255
    quarter, last = sample.size_fhw[0] // 4, sample.size_fhw[0] - 1
    disparity = sample.depth.amin() / sample.depth
    hidden = torch.lerp(video[0], video.new_tensor(_HIDDEN), 0.75)
    seen = sample.visibility[last][..., None]
    pictures = [
        video[0],
        video[quarter],
        video[last],
        disparity[..., None].expand(-1, -1, 3),
        _motion_picture(sample, quarter),
        _motion_picture(sample, last),
        torch.where(seen, video[0], hidden),
    ]
    return torch.stack(pictures + _novel_pictures(sample, last))


def _novel_pictures(sample: TrainingSample, frame: int) -> list[Tensor]:
    if sample.novel_video is None or sample.novel_cameras is None:
        return []
    cameras = sample.novel_cameras.frames([frame])
    view = render(sample.scene().frames([frame]), cameras, RenderSettings())
    holes = hole_mask(view.alpha)[0, ..., None] > 0.5
    rendered = torch.where(holes, view.rgb.new_tensor(_HOLE), view.rgb[0])
    return [sample.novel_video[frame].float() / 255, rendered]


def _motion_picture(sample: TrainingSample, frame: int) -> Float[Tensor, "height width 3"]:
    """Hue by direction in the first camera's picture, brightness by distance there and in depth."""
    from PIL import Image, ImageDraw

    positions, intrinsics = sample.positions(), sample.cameras.intrinsics[0]
    start, depth = project(positions[0], intrinsics)
    end, _ = project(positions[frame], intrinsics)
    shift = end - start
    turns = torch.atan2(shift[..., 1], shift[..., 0]) / (2 * math.pi) % 1
    wheel = torch.tensor([colorsys.hsv_to_rgb(h / 360, 0.9, 1.0) for h in range(360)])
    # What only comes nearer hardly moves in the picture: depth counts as well.
    relative = sample.motion[frame, ..., 2].float().abs() / depth * sample.video.shape[2] / 4
    strength = (torch.maximum(shift.norm(dim=-1), relative) / 15).clamp(0, 1)[..., None]
    gray = 0.35 * sample.video[0].float().mean(-1, keepdim=True).expand(-1, -1, 3) / 255
    picture = torch.lerp(gray, wheel[(turns * 360).long() % 360], strength)
    image = Image.fromarray((picture * 255).round().byte().numpy())
    draw = ImageDraw.Draw(image)
    middle = _ARROW_SPACING_PX // 2
    for y in range(middle, image.height, _ARROW_SPACING_PX):
        for x in range(middle, image.width, _ARROW_SPACING_PX):
            (x0, y0), (x1, y1) = start[y, x].tolist(), end[y, x].tolist()
            if math.hypot(x1 - x0, y1 - y0) > 1:
                draw.line((x0, y0, x1, y1), fill="white")
                draw.ellipse((x1 - 1, y1 - 1, x1 + 1, y1 + 1), fill="white")
    return torch.from_numpy(np.array(image)).float() / 255
