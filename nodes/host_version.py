"""Which hosts the nodes run in."""

import re

_OLDEST = (0, 25)
"""As `requires-comfyui` in pyproject.toml, which binds only those who install from the registry."""


class HostVersionError(ImportError):
    """A host that lacks what the nodes are made of."""


def check_host() -> None:
    """Refuse a host that is too old, before what it lacks is met one by one.

    Raises:
        HostVersionError: says which it is, and what is needed.
    """
    from comfyui_version import __version__

    numbers = re.findall(r"\d+", __version__)[: len(_OLDEST)]
    if tuple(map(int, numbers)) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise HostVersionError(
            f"More4D needs ComfyUI {oldest} or newer, and this is {__version__}. Update ComfyUI."
        )
