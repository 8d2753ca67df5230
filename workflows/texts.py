"""What the workflows say to people, in a note each."""

_MODELS = """**Files** (the page offers to download most of them; big)

- `models/diffusion_models`: 4D-STraG and Wan2.1-Fun-V1.1-14B-InP. Both are called \
`diffusion_pytorch_model.safetensors` where they come from: give them the names in the nodes.
- `models/loras`: the 4D-ViSM LoRA (there `lora_diffusion_pytorch_model.safetensors`).
- `models/vae`: `wan_2.1_vae.safetensors`, and the motion VAE, which is released in three parts. \
Make one file of them, outside ComfyUI:

```
python -m more4d_backend download motion-vae --folder weights
python -m more4d_backend weights convert weights/VAE more4d_motion_vae.safetensors
```
"""

NOTES = {
    "tiny": """**Image to 4D to video, with the models that come with the pack.** Press Run: \
nothing is downloaded, a CPU is enough (minutes).

The tiny models know procedural pictures only. To play: another picture, another text ("... moves \
right"), another camera preset. The scene is saved too: the workflows *one-scene-many-cameras* and \
*scene-export* go on from there.
""",
    "full": """**Image to 4D to video.** Load a photo, say what moves and in which direction, \
choose a camera.

49 frames of 368 x 512 at 8 per second, as the weights were trained.

"""
    + _MODELS,
    "geometry": """**A photo, ComfyUI's own MoGe, a camera.** The scene stands still; what the \
camera uncovers is filled by 4D-ViSM. Depth Anything 3 works likewise: Lift Depth Anything 3.

**Files**: as in *image-to-4d-video*, without 4D-STraG and the motion VAE.
""",
    "video": """**A video, re-shot by another camera.** Geo4D turns the first 49 frames into a \
moving scene with cameras (which is saved, too); a new camera path goes through it; 4D-ViSM fills \
what the video never showed. 4D-ViSM takes 4k + 1 frames: keep 49, or 81 and so on.

**Files**: `models/geometry_estimation/geo4d.safetensors`, made outside ComfyUI of the released \
`model.ckpt` and `vae.ckpt`:

```
python -m more4d_backend weights convert FOLDER_WITH_BOTH geo4d.safetensors
```

The rest as in *image-to-4d-video*, without 4D-STraG and the motion VAE. The embedded Geo4D knows \
drawn scenes only.
""",
    "drawn": """**Draw a camera path by hand.** Press Run once: the picture appears as points in \
the editor. Look around, press *Add* where a keyframe is to be, drag its mark to another time, \
play. Run again for the video. Nothing is downloaded.

For a photo of yours: Load Image and ComfyUI's own MoGe with Lift MoGe Geometry instead. A moving \
scene works the same: connect Load 4D Scene.
""",
    "cameras": """**One scene, many cameras.** Choose a scene that Save 4D Scene wrote (or one in \
the input folder; R reloads the list). Holes stay black here: white in the mask output is what \
4D-ViSM would fill.
""",
    "export": """**A scene for other programs.** The files are written to the output folder. \
USD needs `pip install usd-core`.
""",
}

KEYFRAMES = """{
  "format": "more4d-camera-keyframes",
  "version": 1,
  "scene_scale": 1,
  "keyframes": [
    {"time": 0, "position": [0, 0, 0], "quaternion_wxyz": [1, 0, 0, 0], \
"zoom": 1, "ease": "in-out"},
    {"time": 0.5, "position": [-0.3, -0.1, 0.05], "quaternion_wxyz": [0.9890, 0, 0.1478, 0], \
"zoom": 1, "ease": "in-out"},
    {"time": 1, "position": [0.05, 0, 0.3], "quaternion_wxyz": [1, 0, 0, 0], "zoom": 1.2, \
"ease": "linear"}
  ]
}
"""
"""To the left and up, looking back; then near."""
