"""benchmarks/sharded_trainer.py: what it draws in the place of data, for every size."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks.sharded_trainer import DrawnBatches, parse, strag_config, vism_config
from more4d_backend.strag.sizes import IMAGE_TOKENS, STRAG_SIZES, VISM_SIZES
from more4d_backend.wan.text import TEXT_TOKENS

CPU = torch.device("cpu")


def first_batch(folder, trainer, size, *, rank=0, num_ranks=1, batch_size=2):
    arguments = ["--trainer", trainer, "--size", size, "--batch-size", str(batch_size)]
    arguments += ["--num-frames", "5", "--size-hw", "32", "48", "--output", str(folder)]
    options = parse(arguments)
    config = strag_config(options) if trainer == "strag" else vism_config(options)
    wan = STRAG_SIZES[size].wan if trainer == "strag" else VISM_SIZES[size]

    def generator(**_):
        return torch.Generator().manual_seed(1)

    run = SimpleNamespace(rank=rank, num_ranks=num_ranks, device=CPU, generator=generator)
    return next(iter(DrawnBatches(cast(Any, run), config, wan))), wan


@pytest.mark.parametrize("trainer", ["strag", "vism"])
@pytest.mark.parametrize("size", sorted(STRAG_SIZES))
def test_drawn_inputs_have_the_shapes_that_a_network_of_that_size_takes(tmp_path, trainer, size):
    batch, wan = first_batch(tmp_path, trainer, size)
    assert batch.inputs.latent.shape == (2, 16, 2, 4, 6)
    assert batch.inputs.text.shape == (2, TEXT_TOKENS, wan.text_dim)
    if wan.image_dim is None:
        assert batch.inputs.image_tokens is None
    else:
        assert batch.inputs.image_tokens.shape == (2, IMAGE_TOKENS, wan.image_dim)


def test_the_shares_of_two_ranks_are_the_batch_of_one(tmp_path):
    whole, _ = first_batch(tmp_path, "strag", "14b")
    shares = [
        first_batch(tmp_path, "strag", "14b", rank=r, num_ranks=2, batch_size=1)[0] for r in (0, 1)
    ]
    for name in ("latent", "text", "image_tokens"):
        together = torch.cat([getattr(s.inputs, name) for s in shares])
        torch.testing.assert_close(together, getattr(whole.inputs, name), rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([s.noise for s in shares]), whole.noise, rtol=0, atol=0)
    assert [name for share in shares for name in share.names] == whole.names
