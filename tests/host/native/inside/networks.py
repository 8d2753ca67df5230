"""The networks themselves, as the host loads them."""

import comfy.model_sampling
import comfy.samplers
import comfy.sd
import comfy.supported_models
import torch
from hosted import load_model
from more4d_pack.nodes.wan_model import StragModel, STraG


def about(path):
    """How the host knows a file."""
    model = load_model(path)
    network = model.model.diffusion_model
    parameters = dict(network.named_parameters())
    return {
        "config": type(model.model.model_config).__name__,
        "model": type(model.model).__name__,
        "network": type(network).__name__,
        "names": sorted(parameters),
        "dtypes": {name: str(p.dtype) for name, p in parameters.items()},
        "shift": float(model.get_model_object("model_sampling").shift),
    }


def velocity(path, x, timestep, context, clip=None, reference=None, image=None, unguided_frame=-1):
    """One call of the network, with guidance where an image is given."""
    network = load_model(path).model.diffusion_model
    more = {}
    if reference is not None:
        more["reference_latent"] = reference
    if image is not None:
        features = network.encode_image(image, tuple(x.shape[-2:]))
        more |= {"guidance_features": features, "unguided_frame": unguided_frame}
    out = network(x, timestep, context, clip_fea=clip, transformer_options={}, **more)
    return {"velocity": out.float()}


def sigmas(path, scheduler, steps, shift=None):
    """The sigmas that KSampler uses; `shift` by the node ModelSamplingSD3."""
    model = load_model(path)
    if shift is not None:
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        (model,) = ModelSamplingSD3().patch(model, shift)
    sampling = model.get_model_object("model_sampling")
    return {"sigmas": comfy.samplers.calculate_sigmas(sampling, scheduler, steps)}
