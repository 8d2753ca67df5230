"""Depth is a plug: providers behind one protocol, and the lifting of depth to points."""

import difflib

from .depth_anything import DepthAnything as DepthAnything
from .depth_pro import DepthPro as DepthPro
from .file_provider import DepthFile as DepthFile
from .lifting import DepthError as DepthError
from .lifting import camera_from_intrinsics as camera_from_intrinsics
from .lifting import lift_depth as lift_depth
from .lifting import lift_points as lift_points
from .lifting import usable_depth as usable_depth
from .provider import DepthPrediction as DepthPrediction
from .provider import DepthProvider as DepthProvider
from .provider import DepthProviderError as DepthProviderError
from .provider import lift_prediction as lift_prediction
from .tiny_depth import TinyDepth as TinyDepth
from .unidepth import UniDepth as UniDepth

ProviderClass = type[DepthPro] | type[DepthAnything] | type[UniDepth] | type[TinyDepth]

PROVIDERS: dict[str, ProviderClass] = {
    provider.name: provider for provider in (DepthPro, DepthAnything, UniDepth, TinyDepth)
}
"""Networks by name; each has `load(source, device=, dtype=, download=)` and `predict(image)`."""


def provider_class(name: str) -> ProviderClass:
    """Look a network up by name.

    Raises:
        DepthProviderError: unknown; suggests the nearest name.
    """
    if name not in PROVIDERS:
        nearest = difflib.get_close_matches(name, PROVIDERS, n=1, cutoff=0)[0]
        raise DepthProviderError(
            f"There is no depth provider {name!r}; did you mean {nearest!r}? "
            f"Known are {', '.join(PROVIDERS)}, and a depth file."
        )
    return PROVIDERS[name]
