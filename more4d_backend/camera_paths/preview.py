"""A camera path as a picture: seen from above and from the side, with words.

`path_preview` measures (pure tensors, for any viewer), `draw_path` draws with Pillow. Everything
is in the axes of the path's first camera: +x right, +y down, +z away.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import invert_rigid, transform_points
from ..scene import Cameras, PointTracks, Scene4D

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

_MAX_POINTS = 40_000
_OVERSAMPLING = 2
_BACKGROUND, _PANEL, _TEXT, _FAINT = (244, 244, 241), (255, 255, 255), (40, 42, 46), (150, 152, 156)
_START, _END = (0, 140, 90), (214, 72, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPreview:
    """What a picture of a path needs, in the axes of its first camera and in world units."""

    positions: Float[Tensor, "frame 3"]
    """Where the camera is."""

    shown_frames: tuple[int, ...]
    """Frames whose view is outlined; the first and the last are among them."""

    frusta: Float[Tensor, "shown 5 3"]
    """For each shown frame its position and the four corners of its view, clockwise."""

    points: Float[Tensor, "point 3"]
    """What the input view sees in frame 0, thinned out; empty without a scene."""

    colors: Float[Tensor, "point 3"]
    """Of the points; sRGB in [0, 1]."""

    low: Float[Tensor, "3"]
    """Corner of the box to show: path, views and the bulk of the points."""

    high: Float[Tensor, "3"]
    """The opposite corner."""

    length: float
    """Distance travelled, in world units."""

    turn_deg: float
    """Largest angle between the first view and any other."""

    focal_px: tuple[float, float]
    """Horizontal focal length of the first and of the last frame."""


def path_preview(
    cameras: Cameras, scene: Scene4D | None = None, *, num_shown: int = 7
) -> PathPreview:
    """Measure a path for a picture of it; with a scene, also what it moves through."""
    first = cameras.world_to_camera[0].cpu().double()
    poses = first @ invert_rigid(cameras.world_to_camera.cpu().double())
    positions = poses[:, :3, 3]
    points, colors = _scene_points(scene, first)
    low, high = _box(positions, points)
    last = cameras.num_frames - 1
    shown = sorted({round(i * last / max(num_shown - 1, 1)) for i in range(num_shown)} | {0, last})
    frusta = _frusta(cameras, poses, shown, 0.13 * float((high - low).max()))
    cosine = ((poses[:, :3, :3] * poses[0, :3, :3]).sum((-1, -2)) - 1) / 2
    return PathPreview(
        positions=positions,
        shown_frames=tuple(shown),
        frusta=frusta,
        points=points,
        colors=colors,
        low=torch.minimum(low, frusta.flatten(0, 1).amin(0)),
        high=torch.maximum(high, frusta.flatten(0, 1).amax(0)),
        length=float(positions.diff(dim=0).norm(dim=-1).sum()),
        turn_deg=math.degrees(float(cosine.clamp(-1, 1).acos().max())),
        focal_px=(float(cameras.intrinsics[0, 0, 0]), float(cameras.intrinsics[-1, 0, 0])),
    )


def draw_path(
    cameras: Cameras,
    scene: Scene4D | None = None,
    *,
    title: str = "Camera path",
    width: int = 1280,
) -> "Image":
    """Draw a path from above and from the side, at one scale; RGB, `width` pixels wide.

    Green is the start, orange the end, and between them the colour shows the time.
    """
    from PIL import Image

    preview = path_preview(cameras, scene)
    s = _OVERSAMPLING
    size = (width * s, round(width * 0.56) * s)
    image = Image.new("RGB", size, _BACKGROUND)
    margin, top = round(0.015 * size[0]), round(0.095 * size[0])
    panel_width = (size[0] - 3 * margin) // 2
    panels = [
        (margin + i * (panel_width + margin), top, panel_width, size[1] - top - margin)
        for i in range(2)
    ]
    scale = min(
        _fitting_scale(preview, view, panel) for view, panel in zip(_VIEWS, panels, strict=True)
    )
    for view, panel in zip(_VIEWS, panels, strict=True):
        image.paste(_panel(preview, view, panel[2:], scale), panel[:2])
    _write_summary(image, preview, cameras, title, margin)
    return image.resize((width, size[1] // s), Image.Resampling.LANCZOS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A direction to look from: which axes point right and up in the picture."""

    title: str
    right: tuple[int, float]
    """Axis (0 x, 1 y, 2 z) and sign."""

    up: tuple[int, float]
    right_word: str
    up_word: str

    def flat(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 2"]:
        """Right and up coordinates."""
        (right, right_sign), (up, up_sign) = self.right, self.up
        return torch.stack([right_sign * points[..., right], up_sign * points[..., up]], dim=-1)


_VIEWS = (
    _View(title="From above", right=(0, 1), up=(2, 1), right_word="right", up_word="away"),
    _View(title="From the right", right=(2, 1), up=(1, -1), right_word="away", up_word="up"),
)


def _scene_points(
    scene: Scene4D | None, world_to_first: Float[Tensor, "4 4"]
) -> tuple[Float[Tensor, "point 3"], Float[Tensor, "point 3"]]:
    if scene is None:
        return torch.zeros(0, 3).double(), torch.zeros(0, 3)
    points = scene.points
    if isinstance(points, PointTracks):
        seen, colors = points.visibility[0], points.colors
    else:
        seen, colors = points.valid[0], points.colors[0]
    positions, colors = points.positions[0][seen].cpu().double(), colors[seen].cpu().float()
    thinning = max(1, len(positions) // _MAX_POINTS)
    positions, colors = positions[::thinning], colors[::thinning]
    return transform_points(positions, world_to_first), colors


def _box(
    positions: Float[Tensor, "frame 3"], points: Float[Tensor, "point 3"]
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Box around the path and the bulk of the points: a far sky would shrink all else to a dot."""
    low, high = positions.amin(0), positions.amax(0)
    if len(points):
        quantiles = torch.tensor([0.04, 0.96], dtype=points.dtype)
        spread = torch.quantile(points, quantiles, dim=0)
        reach = 3 * float(points[:, 2].median().abs())
        low = torch.minimum(low, spread[0].clamp_min(-reach))
        high = torch.maximum(high, spread[1].clamp_max(reach))
    if float((high - low).max()) < 1e-6:  # a camera that stands still, and no scene
        low, high = low - 0.5, high + 0.5
    return low, high


def _frusta(
    cameras: Cameras, poses: Float[Tensor, "frame 4 4"], shown: list[int], depth: float
) -> Float[Tensor, "shown 5 3"]:
    w, h = cameras.width, cameras.height
    corners = torch.tensor([[0, 0, 1], [w, 0, 1], [w, h, 1], [0, h, 1]], dtype=torch.float64)
    rays = torch.linalg.inv(cameras.intrinsics[shown].cpu().double())[:, None] @ corners[..., None]
    apex = torch.zeros(len(shown), 1, 3, dtype=torch.float64)
    return transform_points(torch.cat([apex, depth * rays[..., 0]], dim=1), poses[shown][:, None])


def _fitting_scale(preview: PathPreview, view: _View, panel: tuple[int, int, int, int]) -> float:
    """Pixels per world unit at which the box just fits."""
    extent = (view.flat(preview.high) - view.flat(preview.low)).abs().clamp_min(1e-9)
    return min(0.84 * panel[2] / float(extent[0]), 0.76 * panel[3] / float(extent[1]))


def _panel(preview: PathPreview, view: _View, size: tuple[int, int], scale: float) -> "Image":
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, _PANEL)
    middle = view.flat((preview.low + preview.high) / 2)

    def pixels(points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 2"]:
        flat = (view.flat(points) - middle) * scale
        return flat * flat.new_tensor([1, -1]) + flat.new_tensor([size[0] / 2, size[1] / 2])

    _dots(image, pixels(preview.points), preview.colors)
    draw = ImageDraw.Draw(image, "RGBA")
    last = max(len(preview.positions) - 1, 1)
    path = [tuple(xy) for xy in pixels(preview.positions).tolist()]
    for i in range(len(path) - 1):
        draw.line([path[i], path[i + 1]], fill=_time_color(i / last), width=size[0] // 160)
    frusta = pixels(preview.frusta).tolist()
    for frame, corners in reversed(list(zip(preview.shown_frames, frusta, strict=True))):
        strong = frame in (preview.shown_frames[0], preview.shown_frames[-1])
        _frustum(draw, corners, _time_color(frame / last), strong, size[0] // 320)
    _end_labels(draw, path, pixels(preview.frusta).flatten(0, 1), size)
    _frame_and_scale(draw, view, size, scale)
    return image


def _dots(image: "Image", xy: Float[Tensor, "point 2"], colors: Float[Tensor, "point 3"]) -> None:
    """Points as pale squares, so that the path stands out."""
    import numpy as np
    from PIL import Image

    pixels = torch.from_numpy(np.array(image))
    side = max(2, image.width // 300)
    inside = ((xy >= 0) & (xy < xy.new_tensor(image.size) - side)).all(-1)
    column, row = xy[inside].long().unbind(-1)
    pale = (255 * (0.25 + 0.75 * colors[inside].clamp(0, 1))).byte()
    for dy in range(side):
        for dx in range(side):
            pixels[row + dy, column + dx] = pale
    image.paste(Image.fromarray(pixels.numpy()))


def _frustum(
    draw: "ImageDraw",
    corners: list[list[float]],
    color: tuple[int, int, int],
    strong: bool,
    line_width: int,
) -> None:
    apex, *rim = [tuple(corner) for corner in corners]
    for i, corner in enumerate(rim):
        following = rim[(i + 1) % 4]
        if strong:
            draw.polygon([apex, corner, following], fill=(*color, 36))
        for line in ([apex, corner], [corner, following]):
            draw.line(line, fill=(*color, 255 if strong else 150), width=line_width)
    r = (2.5 if strong else 1.6) * line_width
    draw.ellipse([apex[0] - r, apex[1] - r, apex[0] + r, apex[1] + r], fill=color)


def _end_labels(
    draw: "ImageDraw",
    path: list[tuple[float, ...]],
    drawn: Float[Tensor, "corner 2"],
    size: tuple[int, int],
) -> None:
    """Write `start` and `end` beside the two cameras, where the least is drawn already."""
    font = _font(size[1] / 26)
    taken = torch.cat([drawn, drawn.new_tensor(path)])
    words = [("start", path[0], _START), ("end", path[-1], _END)]
    if math.dist(path[0], path[-1]) < 1:
        words = [("start = end", path[0], _START)]
    low = drawn.new_tensor([size[0] / 9, size[1] / 8])
    high = drawn.new_tensor([size[0] * 8 / 9, size[1] * 5 / 6])
    turn = torch.arange(16) * (math.pi / 8)
    ring = torch.stack([turn.cos() * size[0] / 11, turn.sin() * size[1] / 17], dim=-1)
    for text, at, color in words:
        places = torch.maximum(torch.minimum(ring + drawn.new_tensor(at), high), low)
        flattened = places.new_tensor([0.5, 1.0])  # words are wider than high
        place = places[torch.cdist(places * flattened, taken * flattened).amin(1).argmax()]
        taken = torch.cat([taken, place[None]])
        x, y = place.tolist()
        draw.text(
            (x, y), text, fill=color, font=font, anchor="mm", stroke_width=4, stroke_fill=_PANEL
        )


def _frame_and_scale(draw: "ImageDraw", view: _View, size: tuple[int, int], scale: float) -> None:
    """Title, what right and up mean, and a bar of a round length."""
    width, height = size
    pad, font = width // 40, _font(height / 27)
    draw.text((pad, pad), view.title, fill=_TEXT, font=font)
    units = _round_below(0.28 * width / scale)
    y = height - 1.6 * pad
    draw.line([(pad, y), (pad + units * scale, y)], fill=_TEXT, width=max(2, width // 250))
    for x in (pad, pad + units * scale):
        draw.line([(x, y - pad / 3), (x, y + pad / 3)], fill=_TEXT, width=max(2, width // 250))
    unit = "unit" if units == 1 else "units"
    draw.text((pad, y - 0.6 * pad), f"{units:g} {unit}", fill=_TEXT, font=font, anchor="ld")
    corner_x, corner_y, arm = width - 7.5 * pad, height - 1.6 * pad, 2.2 * pad
    for tip, word, anchor in (
        ((corner_x + arm, corner_y), view.right_word, "lm"),
        ((corner_x, corner_y - arm), view.up_word, "md"),
    ):
        draw.line([(corner_x, corner_y), tip], fill=_FAINT, width=max(2, width // 300))
        gap = pad / 3
        at = (tip[0] + gap, tip[1]) if anchor == "lm" else (tip[0], tip[1] - gap)
        draw.text(at, word, fill=_FAINT, font=font, anchor=anchor)


def _write_summary(
    image: "Image", preview: PathPreview, cameras: Cameras, title: str, margin: int
) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    draw.text((margin, margin), title, fill=_TEXT, font=_font(image.height / 19))
    first, last = preview.focal_px
    focal = f"focal {first:.0f} px"
    if abs(last / first - 1) > 1e-3:
        focal += f" to {last:.0f} px"
    words = (
        f"{cameras.num_frames} frames of {cameras.width}x{cameras.height}   |   travels "
        f"{preview.length:.3g} units   |   turns up to {preview.turn_deg:.3g} degrees   |   {focal}"
    )
    at = (margin, margin + image.height / 14)
    draw.text(at, words, fill=_TEXT, font=_font(image.height / 34))


def _time_color(time: float) -> tuple[int, int, int]:
    """From green through violet to orange: the middle differs from both ends."""
    middle = (88, 80, 190)
    a, b, t = (_START, middle, 2 * time) if time < 0.5 else (middle, _END, 2 * time - 1)
    red, green, blue = (round(x + (y - x) * t) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _round_below(value: float) -> float:
    """Largest of 1, 2 and 5 times a power of ten that is not above a value."""
    power = 10 ** math.floor(math.log10(value))
    return max(step * power for step in (1, 2, 5) if step * power <= value)


def _font(size_px: float) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size=round(size_px))
