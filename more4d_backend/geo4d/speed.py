"""Optional compilation of the networks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .model import Geo4DNetworks
from .network import ResBlock
from .transformers import SpatialTransformer, TemporalTransformer
from .vae import VAE_BLOCKS

_log = logging.getLogger(__name__)

_BLOCKS = (ResBlock, SpatialTransformer, TemporalTransformer, *VAE_BLOCKS)
_MOST_GRAPHS = 64
"""Of one kind of block: full-size networks have 15 sizes of it, for each number of windows."""


class CompilationError(ValueError):
    """torch could not compile the networks."""


@contextmanager
def compilation_told() -> Iterator[None]:
    """Say in one sentence what is wrong where compiling fails; torch takes a thousand lines.

    Raises:
        CompilationError: from torch's own error.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

    try:
        yield
    except TorchDynamoException as e:
        said = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise CompilationError(
            f"The networks cannot be compiled here ({said.strip()}). Go on without compiling, or "
            "install what torch needs for it: a C++ compiler and, for GPUs, triton."
        ) from e


def compile_networks(networks: Geo4DNetworks, *, backend: str = "inductor") -> None:
    """Let torch compile the blocks of UNet and VAE when they are first called, in place.

    Blocks of one kind and size share a graph, so that this takes a minute or two at full size
    where whole networks would take several; a new picture size or number of windows takes it again.
    Results differ by rounding. `backend` is one of `torch.compiler.list_backends()`.
    """
    config = torch._dynamo.config
    # torch gives up after 8 graphs of one piece of code; it was named cache_size_limit before 2.6.
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, max(getattr(config, limit), _MOST_GRAPHS))
    for module in networks.modules():
        if isinstance(module, _BLOCKS):
            module.compile(backend=backend, fullgraph=True, dynamic=False)
    _log.info("Blocks of the networks will be compiled by %s at their first call.", backend)
