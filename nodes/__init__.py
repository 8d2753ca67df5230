"""The nodes of the pack: thin shells around `more4d_backend`, one module per family."""

from .host_version import check_host

check_host()  # first: the imports below fail one by one in a host that is too old

from comfy_api.latest import ComfyExtension, io  # noqa: E402

from . import (  # noqa: E402
    camera,
    camera_editor,
    camera_files,
    depth,
    examples,
    geo4d,
    render,
    scene,
    strag,
    viewer,
    vism,
)
from .wan_model import register_models  # noqa: E402

_FAMILIES = (
    examples, depth, strag, geo4d, camera, camera_editor, camera_files, render, vism, scene, viewer,
)  # fmt: skip


class More4DExtension(ComfyExtension):
    """What the host asks for when it has loaded the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node, and make the host know our models."""
        register_models()
        return [node for family in _FAMILIES for node in family.NODES]


def comfy_entrypoint() -> More4DExtension:
    """Return the extension; the host calls this."""
    return More4DExtension()
