"""Optional compilation of the networks."""

import logging

from .model import Geo4DNetworks

_log = logging.getLogger(__name__)


def compile_networks(networks: Geo4DNetworks, *, backend: str = "inductor") -> None:
    """Let torch compile UNet, encoder and decoders when they are first called, in place.

    The first call of each takes minutes at full size, and a new picture size or number of windows
    some more. Results differ by rounding. `backend` is one of `torch.compiler.list_backends()`.
    """
    vae = networks.vae
    for module in (networks.unet, vae.encoder, vae.image_decoder, vae.point_decoder):
        module.compile(backend=backend, fullgraph=True)
    _log.info("Networks will be compiled by %s at their first call.", backend)
