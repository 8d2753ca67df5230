"""The memory layout in which convolutions of videos are quickest, found by trying.

Which one it is depends on the GPU, its library and the widths of the layers: matrix units want
channels last, and narrow layers may not be worth the way there.
"""

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

_TRIED, _TIMED = 2, 4
"""Runs before the clock starts (the library tries its own ways then), and after."""


def use_fastest_layout(model: nn.Module, loss: Callable[[], Tensor]) -> bool:
    """Give a model's convolutions the layout in which a loss and its gradient take least time.

    Numbers stay as they are, but for rounding; no gradient is left behind. Returns whether channels
    are last.
    """
    torch.backends.cudnn.benchmark = True  # sizes do not change while one trains
    times = {}
    for channels_last in (True, False):
        set_layout(model, channels_last=channels_last)
        times[channels_last] = _seconds(model, loss)
    _log.info("Loss and gradient: %.4f s channels last, %.4f s not", times[True], times[False])
    fastest = times[True] < times[False]
    set_layout(model, channels_last=fastest)
    return fastest


def set_layout(model: nn.Module, *, channels_last: bool) -> None:
    """Lay the weights of convolutions out; what they compute follows."""
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Conv3d):
            continue
        last = torch.channels_last_3d if isinstance(module, nn.Conv3d) else torch.channels_last
        layout = last if channels_last else torch.contiguous_format
        module.weight.data = module.weight.data.contiguous(memory_format=layout)


def _seconds(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    start = 0.0
    for number in range(_TRIED + _TIMED):
        if number == _TRIED:
            start = _now(model)
        # Autocast keeps the weights that it has cast, in the layout that they had then.
        torch.clear_autocast_cache()
        loss().backward()
        model.zero_grad(set_to_none=True)
    return (_now(model) - start) / _TIMED


def _now(model: nn.Module) -> float:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
