"""The pack imported as a ComfyUI host imports it, in the host's own Python and without a server.

`COMFYUI_PATH` is the host's folder, or several joined as in PATH, of which the first is taken.
"""

# pyright: reportMissingImports=false
# The host's modules are not in this environment.
import asyncio
import importlib.util
import os
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]


def load_pack(*, cpu: bool = True) -> list[type]:
    """Import host and pack, the latter as `more4d_pack`, and return its nodes."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"].split(os.pathsep)[0])
    from comfy.cli_args import args

    args.cpu = cpu  # before the host looks for devices
    spec = importlib.util.spec_from_file_location(
        "more4d_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    assert spec.loader is not None
    pack = sys.modules["more4d_pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    return asyncio.run(pack.comfy_entrypoint().get_node_list())
