"""Embedded files of the true layout with random values: tests must not depend on training."""

from pathlib import Path

import pytest
import torch

from more4d_backend.strag.profile import OWN
from more4d_backend.strag.sizes import STRAG_SIZES, VISM_SIZES
from more4d_backend.tiny.depth_network import DepthNetwork
from more4d_backend.tiny.text_encoder import ByteTextModel
from more4d_backend.tiny.writing import write_embedded


@pytest.fixture(scope="session")
def random_embedded(tmp_path_factory) -> Path:
    """Folder of all embedded files, random."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE
    from more4d_backend.strag.transformer import StragTransformer
    from more4d_backend.vism.lora import add_lora

    folder = tmp_path_factory.mktemp("embedded")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLWan(base_dim=16)
        vism = WanTransformer3DModel(**VISM_SIZES["tiny"].config())
        networks = {
            "wan_vae": vae,
            "motion_vae": MotionVAE(vae, EncoderAdapter(32), DecoderAdapter(32), OWN.latents),
            "strag": StragTransformer(**STRAG_SIZES["tiny"].config()),
            "vism": vism,
            "depth": DepthNetwork(),
            "text_encoder": ByteTextModel(),
        }
        for name, network in networks.items():
            write_embedded(name, network, folder=folder)
        add_lora(vism, rank=16, alpha=16.0)
        write_embedded("vism_lora", vism, folder=folder)
    return folder
