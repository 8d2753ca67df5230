"""A picture to start from, for graphs that need nothing else."""

from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

_PICTURES = Path(__file__).parent / "pictures"


class More4DExamplePicture(io.ComfyNode):
    """Name to picture and text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DExamplePicture",
            display_name="Example Picture (More4D)",
            category="More4D/tiny",
            description="A procedural picture of the kind that the embedded tiny models know, and "
            "what moves in it. They were not trained on these. For full-size models, load a photo.",
            search_aliases=["demo image", "sample picture", "procedural scene", "test image"],
            inputs=[
                io.Combo.Input(
                    "picture",
                    options=sorted(path.stem for path in _PICTURES.glob("*.png")),
                    default="box-moves-left",
                    tooltip="128 x 176 pixels, named after something that moves in it.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.String.Output(
                    display_name="text", tooltip="What is seen and what moves: the prompt."
                ),
            ],
        )

    @classmethod
    def execute(cls, picture: str) -> io.NodeOutput:
        with Image.open(_PICTURES / f"{picture}.png") as file:
            image = torch.from_numpy(np.array(file.convert("RGB"))) / 255
            return io.NodeOutput(image[None], file.info["Description"])


NODES: list[type[io.ComfyNode]] = [More4DExamplePicture]
