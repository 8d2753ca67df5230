"""Render a scene along a camera path: `render(scene, cameras)` gives rgb, depth and alpha."""

from .holes import fill_pinholes as fill_pinholes
from .holes import hole_mask as hole_mask
from .reference import bytes_per_frame as bytes_per_frame
from .reference import check_renderable as check_renderable
from .reference import render as render
from .settings import RenderError as RenderError
from .settings import RenderMode as RenderMode
from .settings import RenderOutput as RenderOutput
from .settings import RenderSettings as RenderSettings
