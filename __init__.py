"""More4D as a node pack of ComfyUI. Headless code imports `more4d_backend` and needs no host."""

from importlib.util import find_spec

if find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint as comfy_entrypoint

    WEB_DIRECTORY = "./web"
