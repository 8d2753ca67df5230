"""The sizes that 4D-STraG and 4D-ViSM come in."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from more4d_backend.strag.sizes import STRAG_SIZES, VISM_SIZES
from more4d_backend.strag.transformer import StragTransformer


@pytest.mark.parametrize("name", STRAG_SIZES)
def test_every_size_takes_strag_channels_and_fits_the_host(name):
    with torch.device("meta"):
        model = StragTransformer(**STRAG_SIZES[name].config())
    assert model.patch_embedding.weight.shape[1] == 64
    assert model.config["attention_head_dim"] == 128
    assert model.config["freq_dim"] == 256
    assert model.config["text_dim"] == 4096


def num_parameters(model):
    return sum(t.numel() for t in model.state_dict().values())


def test_released_sizes_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        strag = StragTransformer(**STRAG_SIZES["14b"].config())
        vism = WanTransformer3DModel(**VISM_SIZES["14b"].config())
    assert num_parameters(strag) / 1e9 == pytest.approx(17.1, abs=0.05)
    assert num_parameters(vism) / 1e9 == pytest.approx(16.4, abs=0.05)


def test_embedded_sizes_fit_their_share_of_the_40_megabytes():
    strag = StragTransformer(**STRAG_SIZES["tiny"].config())
    vism = WanTransformer3DModel(**VISM_SIZES["tiny"].config())
    bytes_bf16 = 2 * num_parameters(strag), 2 * num_parameters(vism)
    assert bytes_bf16[0] < 18.5e6
    assert bytes_bf16[1] < 8.2e6
