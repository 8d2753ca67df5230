"""Whether kernels in triton can be used on a CUDA device; MORE4D_TRITON=0 keeps from using them."""

import logging
import os
import shutil
from functools import cache
from importlib.util import find_spec

import torch

_log = logging.getLogger(__name__)


@cache
def triton_runs(work: str, device: torch.device, capability: tuple[int, int] = (7, 0)) -> bool:
    """Say whether triton's kernels do some work on a CUDA device; if not, the log says why, once.

    `work` begins the sentence for the log ("Points are drawn"); `capability` is the GPU's that the
    kernels need at least.
    """
    missing = None
    if os.environ.get("MORE4D_TRITON") == "0":
        missing = "MORE4D_TRITON=0 in the environment asks for it"
    elif find_spec("triton") is None:
        missing = "triton is not installed"
    elif not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        missing = "triton needs a C compiler (cc, gcc, clang or CC) and there is none"
    elif torch.cuda.get_device_capability(device) < capability:
        needed = ".".join(map(str, capability))
        missing = f"its kernels need a GPU of compute capability {needed} or later"
    if missing:
        _log.info("%s on %s by plain torch, which is slower: %s.", work, device, missing)
    return missing is None
