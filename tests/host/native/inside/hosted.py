"""For the other modules here: loading and sampling by the host's own functions."""

import comfy.sample
import comfy.samplers
import comfy.sd


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


def sampler_custom(model, positive, negative, latent, *, steps, cfg, seed):
    """What the nodes KSamplerSelect, BasicScheduler and SamplerCustom do."""
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    sampling = model.get_model_object("model_sampling")
    sampled = comfy.sample.sample_custom(
        model, comfy.sample.prepare_noise(samples, seed), cfg,
        comfy.samplers.sampler_object("euler"),
        comfy.samplers.calculate_sigmas(sampling, "normal", steps),
        positive, negative, samples, disable_pbar=True, seed=seed,
    )  # fmt: skip
    return {"samples": sampled}


def text(tokens):
    """CONDITIONING of text tokens."""
    return [[tokens, {}]]
