"""The embedded files through the host's own loaders, and through the pack's where it has none."""

from contextlib import contextmanager
from pathlib import Path

import comfy.sd
import comfy.utils
from more4d_pack.more4d_backend import tiny
from more4d_pack.more4d_backend.depth import TinyDepth
from more4d_pack.nodes.motion_vae import HostMotionVAE
from more4d_pack.nodes.strag import More4DTinyTextEncode


@contextmanager
def _embedded_in(folder):
    usual = tiny.WEIGHTS_FOLDER
    tiny.WEIGHTS_FOLDER = Path(folder)
    try:
        yield
    finally:
        tiny.WEIGHTS_FOLDER = usual


def video_round_trip(folder, video):
    """What Load VAE, VAE Encode and VAE Decode make of a video (frame, height, width, 3)."""
    with _embedded_in(folder):
        path = tiny.embedded_file("wan_vae")
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))
    latent = vae.encode(video)
    return {"latent": latent.float(), "video": vae.decode(latent)[0].float()}


def motion_round_trip(folder, motion):
    """Normalised motion (frame, height, width, 3) to a latent and back."""
    with _embedded_in(folder):
        vae = HostMotionVAE.load(tiny.embedded_file("motion_vae"))
    latent = vae.encode(motion)
    return {"latent": latent, "motion": vae.decode(latent), "profile": vae.profile.name}


def text_tokens(folder, text):
    """What the node for the embedded text encoder makes."""
    with _embedded_in(folder):
        (conditioning,) = More4DTinyTextEncode.execute(text=text).result
    return {"tokens": conditioning[0][0].float()}


def depth(folder, image):
    """Depth and intrinsics of a picture."""
    with _embedded_in(folder):
        prediction = TinyDepth.load().predict(image)
    return {"depth": prediction.depth, "intrinsics": prediction.intrinsics}
