"""The wires between nodes of this pack; each carries a value of the backend."""

from comfy_api.latest import io

SceneType = io.Custom("MORE4D_SCENE")
"""`Scene4D`: one frame after lifting, many once it moves."""

CameraPathType = io.Custom("MORE4D_CAMERA_PATH")
"""`Cameras`: one camera per frame."""

RenderType = io.Custom("MORE4D_RENDER")
"""`RenderOutput`: what was seen along a camera path, and what is missing."""

MotionVAEType = io.Custom("MORE4D_MOTION_VAE")
"""`nodes.motion_vae.HostMotionVAE`."""

Geo4DType = io.Custom("MORE4D_GEO4D")
"""`HostNetwork` around `nodes.geo4d.HeldGeo4D`."""
