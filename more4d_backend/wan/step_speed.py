"""Choices that make steps faster: compiled blocks, and blocks left out where little changes.

Both change a transformer in place, once, after it is loaded.
"""

import logging
from typing import TYPE_CHECKING

import torch
from torch.torch_version import TorchVersion

from ..devices import DevicePlanError

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

_log = logging.getLogger(__name__)
_COMPILES_FROM = "2.9"


def compile_blocks(denoiser: "WanTransformer3DModel") -> None:
    """Compile every block's forward (regional compilation): one graph, which all blocks share.

    Call it before hooks are put on the blocks (`apply_plan`, `cache_steps`): hooks move weights and
    leave blocks out, which no graph can hold. diffusers' own `compile_repeated_blocks` would
    compile them too.

    Raises:
        DevicePlanError: this torch cannot compile them (`check_compilation`).
    """
    check_compilation()
    for block in denoiser.blocks:
        block.forward = torch.compile(block.forward, fullgraph=True)
    _log.info("The transformer's blocks are compiled at the first step, which takes a minute.")


def cache_steps(denoiser: "WanTransformer3DModel", threshold: float) -> None:
    """Leave out all blocks but the first in steps where the first says nearly the same as before.

    diffusers' first-block cache: the blocks run when what the first one adds has changed by more
    than `threshold` (relative mean difference) since they last did; otherwise what they added then
    is added again. benchmarks/step_cache.py measures seconds saved and the error.

    Raises:
        DevicePlanError: the threshold is not between 0 and 1, or there are too few blocks.
    """
    from diffusers.hooks import FirstBlockCacheConfig

    check_step_cache(threshold)
    if len(denoiser.blocks) < 2:
        raise DevicePlanError("Step caching needs a transformer of at least 2 blocks.")
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    _log.info("Steps that change the first block by less than %g reuse the others.", threshold)


def check_compilation() -> None:
    """Refuse releases of torch whose compiler gives up on the blocks.

    Raises:
        DevicePlanError: torch before 2.9. Seen: 2.5.1, 2.7.1 and 2.8.0 fail, 2.9.1 compiles.
    """
    if TorchVersion(torch.__version__) < _COMPILES_FROM:
        raise DevicePlanError(
            f"Compiled blocks need torch {_COMPILES_FROM} or newer; this is {torch.__version__}. "
            "Leave out compile_blocks (--compile-blocks), or install a newer torch."
        )


def check_step_cache(threshold: float) -> None:
    """Refuse thresholds that mean nothing.

    Raises:
        DevicePlanError: not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise DevicePlanError(
            f"The threshold of step caching is {threshold}; expected more than 0 and less than 1, "
            "such as 0.05."
        )
