"""The networks themselves, as the host loads them."""

from types import SimpleNamespace

import comfy.lora
import comfy.memory_management
import comfy.model_detection
import comfy.model_management
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from hosted import load_model
from more4d_pack.nodes.wan_model import STraG


def about(path):
    """How the host knows a file."""
    model = load_model(path)
    network = model.model.diffusion_model
    return {
        "config": type(model.model.model_config).__name__,
        "network": type(network).__name__,
        "dtypes": {name: str(p.dtype) for name, p in network.named_parameters()},
        "patched_by_lora": sorted(comfy.lora.model_lora_keys_unet(model.model, {}).values()),
    }


def velocity(
    path, x, timestep, context, clip=None, reference=None, image=None, unguided_frame=-1,
    lora=None, strength=1.0, dtype=None, little_memory=False, registered=True, compiled=False,
):  # fmt: skip
    """One call of the network, with guidance where an image is given."""
    if not registered:
        comfy.supported_models.models.remove(STraG)
    try:
        options = {} if dtype is None else {"dtype": getattr(torch, dtype)}
        model = comfy.sd.load_diffusion_model(path, model_options=options)
    finally:
        if not registered:
            comfy.supported_models.models.insert(0, STraG)
    if lora is not None:
        weights = comfy.utils.load_torch_file(lora)
        model, _ = comfy.sd.load_lora_for_models(model, None, weights, strength, 0.0)
    if little_memory:
        model.load(torch.device("cpu"), lowvram_model_memory=1)
    else:
        comfy.model_management.load_models_gpu([model])
    if compiled:
        for block in model.model.diffusion_model.blocks:
            block.forward = torch.compile(block.forward, backend="eager")
    result = _call(model, x, timestep, context, clip, reference, image, unguided_frame)
    kind = type(model.model.model_config).__name__
    if little_memory:
        model.detach()
    comfy.model_management.unload_all_models()
    return {"velocity": result, "config": kind}


def _call(model, x, timestep, context, clip, reference, image, unguided_frame):
    network, dtype = model.model.diffusion_model, model.model.get_dtype_inference()
    more = {}
    if reference is not None:
        more["reference_latent"] = reference.to(dtype)
    if image is not None:
        features = network.encode_image(image, tuple(x.shape[-2:])).to(dtype)
        more |= {"guidance_features": features, "unguided_frame": unguided_frame}
    clip = None if clip is None else clip.to(dtype)
    out = network(
        x.to(dtype), timestep, context.to(dtype), clip_fea=clip, transformer_options={}, **more
    )
    return out.float()


def lora_twice(path, lora, **inputs):
    """The same loaded model with, without, and again with a LoRA."""
    base = load_model(path)
    weights = comfy.utils.load_torch_file(lora)
    patched, _ = comfy.sd.load_lora_for_models(base, None, weights, 1.0, 0.0)
    found = {}
    for name, model in (("with", patched), ("without", base), ("again", patched)):
        comfy.model_management.load_models_gpu([model])
        found[name] = _call(model, **inputs)
    comfy.model_management.unload_all_models()
    return found


def sigmas(path, scheduler, steps, shift=None):
    """The sigmas that KSampler uses; `shift` by the node ModelSamplingSD3."""
    model = load_model(path)
    if shift is not None:
        (model,) = ModelSamplingSD3().patch(model, shift)
    sampling = model.get_model_object("model_sampling")
    return {"sigmas": comfy.samplers.calculate_sigmas(sampling, scheduler, steps)}


def released_layout(shapes):
    """Names and shapes that the host's model has for a file of these, without values."""
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = comfy.model_detection.model_config_from_unet(weights, "")
    config.set_inference_dtype(torch.bfloat16, None)
    with torch.device("meta"):
        model = config.get_model(weights, "", device="meta")
    network = model.diffusion_model
    return {
        "config": type(config).__name__,
        "shapes": {name: tuple(t.shape) for name, t in network.state_dict().items()},
        "kept": sorted(config.process_unet_state_dict(weights)),
        "lora_names": sorted(comfy.lora.model_lora_keys_unet(model, {})),
    }


def velocity_of_lazy_weights(path, x, timestep, context, clip, reference, image, unguided_frame):
    """One call of a network built as for Dynamic VRAM: no weights until the file gives its own.

    On a GPU the host then brings them to each layer's input; here they are where the input is.
    """
    weights, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    comfy.memory_management.aimdo_enabled = True
    try:
        config = comfy.model_detection.model_config_from_unet(weights, "", metadata=metadata)
        config.set_inference_dtype(torch.bfloat16, torch.float32)
        model = config.get_model(weights, "")
        model.load_model_weights(weights, "", assign=True)
        for module in model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
        patcher = SimpleNamespace(model=model)
        result = _call(patcher, x, timestep, context, clip, reference, image, unguided_frame)
    finally:
        comfy.memory_management.aimdo_enabled = False
    dtypes = {str(p.dtype) for p in model.diffusion_model.parameters()}
    return {"velocity": result, "dtypes": sorted(dtypes)}
