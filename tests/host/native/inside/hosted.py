"""For the other modules here: loading and sampling by the host's own functions."""

import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import torch


class ClipVisionOutput:
    """As the host's CLIP encoder returns it."""

    def __init__(self, tokens):
        self.penultimate_hidden_states = tokens


def load_model(path):
    """What the node Load Diffusion Model does."""
    return comfy.sd.load_diffusion_model(path, model_options={})


def ksampler(model, positive, negative, latent, *, steps, cfg, seed, noise=None, callback=None):
    """What the node KSampler does, with euler and normal; `noise` instead of the seed's."""
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    if noise is None:
        noise = comfy.sample.prepare_noise(samples, seed)
    sampled = comfy.sample.sample(
        model, noise, steps, cfg, "euler", "normal", positive, negative, samples,
        denoise=1.0, disable_pbar=True, seed=seed, callback=callback,
    )  # fmt: skip
    return {"samples": sampled}


def text(tokens):
    """CONDITIONING of text tokens."""
    return [[tokens, {}]]


def shown(tensor):
    return tensor.detach().float().cpu().clone() if isinstance(tensor, torch.Tensor) else tensor
