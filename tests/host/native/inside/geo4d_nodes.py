"""The Geo4D nodes in a host, with weights where the host looks for them."""

import comfy.model_management
import folder_paths
import torch
from more4d_pack.nodes import geo4d

NODE = {
    "stride": 0, "fit": "crop", "resolution": "auto", "num_steps": 1, "modalities": "all",
    "seed": 3,
}  # fmt: skip


def _loaded(folder, name):
    folder_paths.add_model_folder_path("geometry_estimation", folder)
    return geo4d.More4DLoadGeo4D.execute(weights_name=name).result[0]


def reconstructed(folder, name, image, **changed):
    """What both nodes make of a video."""
    torch.set_num_threads(1)  # as the test
    network = _loaded(folder, name)
    options = {"fps": 12.0} | NODE | changed
    scene, report = geo4d.More4DReconstruct.execute(geo4d=network, image=image, **options).result
    return {
        "positions": scene.points.positions,
        "valid": scene.points.valid,
        "colors": scene.points.colors,
        "world_to_camera": scene.cameras.world_to_camera,
        "intrinsics": scene.cameras.intrinsics,
        "fps": scene.fps,
        "report": report,
    }


def schemas():
    """Ids, and whether every input has a tooltip."""
    told = {}
    for node in geo4d.NODES:
        schema = node.define_schema()
        told[schema.node_id] = all(item.tooltip for item in schema.inputs)
    return told


def interrupted(folder, name, image):
    """What happens when the user presses Cancel."""
    network = _loaded(folder, name)
    comfy.model_management.interrupt_current_processing()
    try:
        geo4d.More4DReconstruct.execute(geo4d=network, image=image, fps=12.0, **NODE)
    except comfy.model_management.InterruptProcessingException:
        return {"interrupted": True}
    finally:
        comfy.model_management.interrupt_current_processing(False)
    return {"interrupted": False}
