"""Overlapping windows of a video become one scene (Geo4D, section 3.4)."""

from .align import align_windows as align_windows
from .report import AlignmentReport as AlignmentReport
from .report import AlignmentResult as AlignmentResult
from .report import Losses as Losses
from .report import WindowReport as WindowReport
from .settings import AlignmentError as AlignmentError
from .settings import AlignmentSettings as AlignmentSettings
