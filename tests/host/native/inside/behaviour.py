"""What the nodes do besides computing: batches, previews, interruption, refusals."""

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.utils
import latent_preview
import torch
from chains import load_vae
from comfy.cli_args import LatentPreviewMethod, args
from hosted import ClipVisionOutput, ksampler, load_model, sampler_custom, text
from more4d_pack.more4d_backend.depth.lifting import lift_depth
from more4d_pack.nodes.memory import report_progress
from more4d_pack.nodes.motion_vae import PROFILES, HostMotionVAE
from more4d_pack.nodes.strag import More4DDecodeMotion, More4DStragConditioning
from more4d_pack.nodes.vism import More4DPasteBack, More4DVismConditioning


def conditioning(files, image, depth, intrinsics, prompt, model=None, /, **changes):
    """The STraG conditioning of a picture; `changes` are inputs of the node."""
    inputs = {
        "model": model or load_model(files["strag"]),
        "positive": text(prompt),
        "negative": text(torch.zeros_like(prompt)),
        "vae": load_vae(files["wan-vae"]),
        "motion_vae": HostMotionVAE.load(files["motion-vae"], PROFILES["own"]),
        "image": image[None],
        "scene": lift_depth(image, depth, intrinsics),
        "num_frames": 5,
        "height": 32,
        "width": 48,
        "fit": "crop",
        "motion_perception": True,
    }
    return More4DStragConditioning.execute(**(inputs | changes)).result


def batches(files, image, other_image, depth, intrinsics, prompt):
    """Denoised latents of two pictures' conditions, as one batch and one after the other."""
    model = load_model(files["strag"])
    first, *_, latent, _ = conditioning(files, image, depth, intrinsics, prompt, model)
    second = conditioning(files, other_image, depth, intrinsics, prompt, model)[0]
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(0))
    comfy.model_management.load_models_gpu([model])
    calls = []

    def counted(apply, given):
        calls.append(len(given["input"]))
        return apply(given["input"], given["timestep"], **given["c"])

    options = {"model_function_wrapper": counted, "transformer_options": {}}
    conds = comfy.samplers.process_conds(
        model.model,
        noise,
        {name: comfy.sampler_helpers.convert_cond(c) for name, c in (("a", first), ("b", second))},
        torch.device("cpu"),
    )
    sigma = torch.tensor([0.8])

    def denoised(*which):
        chosen = [conds[name] for name in which]
        return comfy.samplers.calc_cond_batch(model.model, chosen, noise, sigma, options)

    model.pre_run()
    together = denoised("a", "b")
    apart = [denoised("a")[0], denoised("b")[0]]
    return {"together": torch.stack(together), "apart": torch.stack(apart), "calls": calls}


def encodings_of_the_image(files, image, depth, intrinsics, prompt, steps):
    """How often the image is encoded in one sampling, and its network run."""
    model = load_model(files["strag"])
    positive, negative, latent, _ = conditioning(files, image, depth, intrinsics, prompt, model)
    counts = {"image": 0, "network": 0}
    network = model.model.diffusion_model

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    network.omnimae_extractor.register_forward_hook(count("image"))
    network.head.register_forward_hook(count("network"))
    ksampler(model, positive, negative, latent, steps=steps, cfg=3.0, seed=0)
    return counts


def both_samplers(files, image, depth, intrinsics, prompt):
    """Latents of KSampler and SamplerCustom."""
    model = load_model(files["strag"])
    positive, negative, latent, _ = conditioning(files, image, depth, intrinsics, prompt, model)
    how = {"steps": 3, "cfg": 2.0, "seed": 4}
    return {
        "ksampler": ksampler(model, positive, negative, latent, **how)["samples"],
        "custom": sampler_custom(model, positive, negative, latent, **how)["samples"],
    }


def previews(files, image, depth, intrinsics, prompt, steps):
    """The pictures that the host shows while it samples, as its own callback sends them."""
    args.preview_method = LatentPreviewMethod.Auto
    model = load_model(files["strag"])
    positive, negative, latent, _ = conditioning(files, image, depth, intrinsics, prompt, model)
    seen = []

    def hook(value, total, preview, **_):
        if preview is not None:
            seen.append(
                torch.frombuffer(bytearray(preview[1].tobytes()), dtype=torch.uint8).clone()
            )
            sizes.append(preview[1].size)

    sizes = []
    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        callback = latent_preview.prepare_callback(model, steps)
        ksampler(model, positive, negative, latent, steps=steps, cfg=1.0, seed=0, callback=callback)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        args.preview_method = LatentPreviewMethod.NoPreviews
    return {"pictures": seen, "sizes": sizes}


class _AnimatedPreviewer:
    """As packs wrap the host's, to show frame after frame; `asks` for the picture or not."""

    def __init__(self, previewer, asks):
        self.wrapped, self.asks, self.shown = previewer, asks, []

    def decode_latent_to_preview_image(self, _, latent):
        frames = latent.movedim(2, 1).flatten(0, 1)
        if self.asks:
            frames = self.wrapped.latent_rgb_factors_reshape(frames)
        factors = self.wrapped.latent_rgb_factors.to(frames)
        image = torch.nn.functional.linear(frames.movedim(1, -1), factors)
        self.shown.append(list(image.shape))


def animated_previews(files, image, depth, intrinsics, prompt, asks):
    """The sizes of what another pack's animated previews show while 4D-STraG is sampled."""
    args.preview_method = LatentPreviewMethod.Auto
    model = load_model(files["strag"])
    positive, negative, latent, _ = conditioning(files, image, depth, intrinsics, prompt, model)
    base = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    previewer = _AnimatedPreviewer(base, asks)
    usual = latent_preview.get_previewer
    latent_preview.get_previewer = lambda *_: previewer
    try:
        callback = latent_preview.prepare_callback(model, 1)
        ksampler(model, positive, negative, latent, steps=1, cfg=1.0, seed=0, callback=callback)
    finally:
        latent_preview.get_previewer = usual
        args.preview_method = LatentPreviewMethod.NoPreviews
    return {"shown": previewer.shown, "latent": list(latent["samples"].shape)}


def interrupted(files, image, depth, intrinsics, prompt):
    """Whether Cancel stops conditioning, sampling and decoding, and the next run works."""
    model = load_model(files["strag"])
    positive, negative, latent, scene = conditioning(files, image, depth, intrinsics, prompt, model)
    motion_vae = HostMotionVAE.load(files["motion-vae"], PROFILES["own"])

    def stopped(run):
        comfy.model_management.interrupt_current_processing(True)
        try:
            run()
        except comfy.model_management.InterruptProcessingException:
            return True
        finally:
            comfy.model_management.interrupt_current_processing(False)
        return False

    def decode():
        return More4DDecodeMotion.execute(
            samples=latent, motion_vae=motion_vae, scene=scene, fps=8.0, snap_to_edges="off"
        )

    progress = report_progress()
    found = {
        "conditioning": stopped(lambda: conditioning(files, image, depth, intrinsics, prompt)),
        "sampling": stopped(
            lambda: ksampler(
                model, positive, negative, latent, steps=2, cfg=1.0, seed=0,
                callback=lambda *_: (
                    comfy.model_management.throw_exception_if_processing_interrupted()
                ),
            )
        ),
        "decoding": stopped(decode),
        "progress": stopped(lambda: progress(1, 2)),
    }  # fmt: skip
    progress(2, 2)
    return found | {"afterwards": decode().result[0].num_frames}


def without_conditioning(files, prompt):
    """Sample STraG with plain text alone."""
    latent = {"samples": torch.zeros(1, 16, 2, 4, 6)}
    ksampler(load_model(files["strag"]), text(prompt), text(prompt), latent,
             steps=1, cfg=1.0, seed=0)  # fmt: skip


def with_other_latent(files, image, depth, intrinsics, prompt):
    """Sample STraG from a latent of another length than the conditioning's."""
    model = load_model(files["strag"])
    positive, negative, *_ = conditioning(files, image, depth, intrinsics, prompt, model)
    latent = {"samples": torch.zeros(1, 16, 3, 4, 6)}
    ksampler(model, positive, negative, latent, steps=1, cfg=1.0, seed=0)


def conditioning_with(files, image, depth, intrinsics, prompt, wrong):
    """The STraG conditioning with one wrong input."""
    scene = lift_depth(image, depth, intrinsics)
    changes = {
        "nothing": {},
        "frames": {"num_frames": 6},
        "height": {"height": 40},
        "pictures": {"image": image[None].repeat(3, 1, 1, 1)},
        "pixels": {"image": torch.full_like(image[None], torch.nan)},
        "picture of another size": {"image": image[None, 2:]},
        "frames of the scene": {"scene": scene.frames([0, 0])},
        "CLIP": {"clip_vision": ClipVisionOutput(torch.zeros(1, 257, 1024))},
    }
    if wrong == "model":
        changes[wrong] = {"model": load_model(files["fun-inp"])}
    if wrong == "VAE":
        weights = {"taesd_decoder.1.weight": torch.zeros(64, 4, 3, 3)}
        changes[wrong] = {"vae": comfy.sd.VAE(sd=weights)}
    result = conditioning(files, image, depth, intrinsics, prompt, **changes[wrong])
    return {"entries": sorted(result[0][0][1])}


def load_motion_vae(path):
    """Load any file as motion VAE."""
    return {"profile": HostMotionVAE.load(path).profile.name}


def vism_conditioning_with(files, rendered, holes, prompt, wrong):
    """The ViSM conditioning with one wrong input."""
    model = load_model(files["strag" if wrong == "model" else "fun-inp"])
    if wrong == "frames":
        rendered, holes = rendered[:4], holes[:4]
    if wrong == "mask":
        holes = holes[:, 1:]
    More4DVismConditioning.execute(
        model=model, positive=text(prompt), negative=text(prompt),
        vae=load_vae(files["wan-vae"]), rendered=rendered, holes=holes,
    )  # fmt: skip


def decode_with(files, image, depth, intrinsics, latent):
    """Decode any latent."""
    More4DDecodeMotion.execute(
        samples={"samples": latent},
        motion_vae=HostMotionVAE.load(files["motion-vae"], PROFILES["own"]),
        scene=lift_depth(image, depth, intrinsics),
        fps=8.0,
        snap_to_edges="auto",
    )


def motion_round_trip(files, motion):
    """Motion through the host's motion VAE."""
    vae = HostMotionVAE.load(files["motion-vae"], PROFILES["released"])
    latent = vae.encode(motion)
    return {"latent": latent, "motion": vae.decode(latent)}


def sentences_on_the_vism_node(files, rendered, holes, prompt):
    """What the node shows on itself."""
    from types import SimpleNamespace

    from server import PromptServer

    said = []

    class Running(More4DVismConditioning):
        hidden = SimpleNamespace(unique_id="7")

    PromptServer.instance = SimpleNamespace(
        send_progress_text=lambda text, node: said.append((text, node))
    )
    try:
        Running.execute(
            model=load_model(files["fun-inp"]), positive=text(prompt), negative=text(prompt),
            vae=load_vae(files["wan-vae"]), rendered=rendered, holes=holes,
        )  # fmt: skip
    finally:
        del PromptServer.instance
    return {"said": said}


def pasted(known, filled, holes):
    return {"video": More4DPasteBack.execute(filled, known, holes, 0).result[0]}


def text_of_the_wrong_size(files, image, depth, intrinsics, prompt, tiny_text, tiny_model):
    """The STraG conditioning with text that another encoder made."""
    import more4d_pack.nodes.wan_inputs as wan_inputs

    model = load_model(files["strag"])
    if tiny_model:
        model.model.diffusion_model.dim = wan_inputs.STRAG_SIZES["tiny"].wan.dim
    positive = [[prompt, {wan_inputs.TINY_TEXT: True} if tiny_text else {}]]
    conditioning(
        files, image, depth, intrinsics, prompt, model, positive=positive, negative=positive
    )


def vae_of_another_size(files, image, depth, intrinsics, prompt, tiny_model, which):
    """The STraG conditioning with a tiny model or VAE, and the other of full size."""
    import more4d_pack.nodes.wan_inputs as wan_inputs

    model, vae = load_model(files["strag"]), load_vae(files["wan-vae"])
    motion_vae = HostMotionVAE.load(files["motion-vae"], PROFILES["own"])
    if tiny_model:
        model.model.diffusion_model.dim = wan_inputs.STRAG_SIZES["tiny"].wan.dim
    network = (vae if which == "vae" else motion_vae.vae).first_stage_model
    network.dim = 96 if tiny_model else 16
    positive = [[prompt, {wan_inputs.TINY_TEXT: tiny_model}]]
    conditioning(
        files, image, depth, intrinsics, prompt, model,
        positive=positive, negative=positive, vae=vae, motion_vae=motion_vae,
    )  # fmt: skip


def registered_again():
    """What the host knows of us after the pack is loaded a second time."""
    import comfy.supported_models
    import folder_paths
    from more4d_pack.more4d_backend.tiny import WEIGHTS_FOLDER
    from more4d_pack.nodes.wan_model import register_models

    register_models()
    names = [config.__name__ for config in comfy.supported_models.models]
    folders = {
        category: [
            str(WEIGHTS_FOLDER / category) == f for f in folder_paths.get_folder_paths(category)
        ]
        for category in ("diffusion_models", "vae", "loras")
        if (WEIGHTS_FOLDER / category).is_dir()
    }
    return {"first": names[0], "count": names.count("STraG"), "folders": folders}
