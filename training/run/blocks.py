"""How a transformer's blocks run in training: compiled, and keeping what they compute or not."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .settings import RunSettings

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

_log = logging.getLogger(__name__)


def set_blocks_up(transformer: "WanTransformer3DModel", run: RunSettings) -> None:
    """Checkpoint and compile blocks as a run's settings say, before anything wraps them."""
    blocks = list(transformer.blocks)
    if run.gradient_checkpointing:
        # The last blocks are the first that backward is done with, before it computes others anew.
        num_kept = round(run.kept_blocks * len(blocks))
        kept = {id(block) for block in blocks[len(blocks) - num_kept :]}

        def run_block(block: nn.Module, *inputs: Any) -> Any:
            if id(block) in kept:
                return block(*inputs)
            return checkpoint(block.__call__, *inputs, use_reentrant=False)

        transformer.enable_gradient_checkpointing(run_block)
        _log.info("%d of %d blocks compute twice", len(blocks) - num_kept, len(blocks))
    if run.compile_blocks:
        # Not the whole call: what FSDP hooks to it stays outside of compiled code.
        for block in blocks:
            block.forward = torch.compile(block.forward)
