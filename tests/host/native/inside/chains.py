"""Whole chains of nodes: from loaders over the host's sampler to scene and video."""

import comfy.sd
import comfy.utils
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from hosted import ClipVisionOutput, ksampler, load_model, text
from more4d_pack.more4d_backend.depth.lifting import lift_depth
from more4d_pack.nodes.motion_vae import PROFILES, HostMotionVAE
from more4d_pack.nodes.strag import More4DDecodeMotion, More4DStragConditioning
from more4d_pack.nodes.vism import More4DPasteBack, More4DVismConditioning


def load_vae(path):
    """What the node Load VAE does."""
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(path))


def strag(
    files, profile, image, depth, intrinsics, prompt, negative, clip, size_hw, fit, num_frames,
    steps, cfg, seed, fps=8.0, motion_perception=True,
):  # fmt: skip
    """Picture and depth to a scene; the tracks of its points."""
    model = load_model(files["strag"])
    motion_vae = HostMotionVAE.load(files["motion-vae"], PROFILES[profile])
    positive, negative, latent, fitted = More4DStragConditioning.execute(
        model=model,
        positive=text(prompt),
        negative=text(negative),
        vae=load_vae(files["wan-vae"]),
        motion_vae=motion_vae,
        image=image[None],
        scene=lift_depth(image, depth, intrinsics),
        num_frames=num_frames,
        height=size_hw[0],
        width=size_hw[1],
        fit=fit,
        motion_perception=motion_perception,
        clip_vision=None if clip is None else ClipVisionOutput(clip),
    ).result
    sampled = ksampler(model, positive, negative, latent, steps=steps, cfg=cfg, seed=seed)
    (scene,) = More4DDecodeMotion.execute(
        samples=sampled, motion_vae=motion_vae, scene=fitted, fps=fps, snap_to_edges="auto"
    ).result
    points = scene.points
    return {
        "positions": points.positions,
        "colors": points.colors,
        "visibility": points.visibility,
        "grid_hw": points.grid_hw,
        "intrinsics": scene.cameras.intrinsics,
        "fps": scene.fps,
    }


def vism(
    files, rendered, holes, prompt, negative, clip, steps, cfg, seed, lora_strength, feather_px=None
):
    """A rendered video and its holes to a filled video; the released shift by ModelSamplingSD3."""
    model = load_model(files["fun-inp"])
    weights = comfy.utils.load_torch_file(files["vism-lora"])
    model, _ = comfy.sd.load_lora_for_models(model, None, weights, lora_strength, 0.0)
    (model,) = ModelSamplingSD3().patch(model, 5.0)
    vae = load_vae(files["wan-vae"])
    positive, negative, latent = More4DVismConditioning.execute(
        model=model,
        positive=text(prompt),
        negative=text(negative),
        vae=vae,
        rendered=rendered,
        holes=holes,
        clip_vision_output=None if clip is None else ClipVisionOutput(clip),
    ).result
    sampled = ksampler(model, positive, negative, latent, steps=steps, cfg=cfg, seed=seed)
    video = vae.decode(sampled["samples"])[0]
    if feather_px is not None:
        (video,) = More4DPasteBack.execute(
            known=rendered, filled=video, holes=holes, feather_px=feather_px
        ).result
    return {"video": video}
