"""Measure whether a CPU computes the VAEs' convolutions faster in bfloat16 than in float32.

CPUs with AVX512-BF16 or AMX are several times faster in bfloat16; others emulate it and are slower.
Which is which cannot be told portably, so it is timed.
"""

import torch
from torch.nn.functional import conv3d

from .attention_speed import seconds_of

_MARGIN = 1.5
"""So many times faster bfloat16 must be: its coarser numbers are not worth less."""
_CHANNELS = 32
_FRAMES, _HEIGHT, _WIDTH = 4, 64, 88


def convolution_dtype(device: torch.device, dtype: torch.dtype) -> tuple[torch.dtype, str]:
    """Return in which dtype the VAEs should run on a device whose best dtype is `dtype`, and why.

    Only for a CPU in float32 is there anything to choose; it takes a tenth of a second.
    """
    name = str(dtype).removeprefix("torch.")
    if device.type != "cpu" or dtype != torch.float32:
        return dtype, f"The VAEs compute in {name}, like the other networks."
    seconds = {d: _convolution_seconds(d) for d in (torch.float32, torch.bfloat16)}
    chosen = choose_dtype(seconds[torch.float32], seconds[torch.bfloat16])
    told = ", ".join(
        f"{1000 * s:.1f} ms in {str(d).removeprefix('torch.')}" for d, s in seconds.items()
    )
    chosen_name = str(chosen).removeprefix("torch.")
    return chosen, f"The VAEs compute in {chosen_name}: on this CPU a convolution takes {told}."


def choose_dtype(float32_s: float, bfloat16_s: float) -> torch.dtype:
    """Return bfloat16 where it is clearly faster, and float32 elsewhere."""
    return torch.bfloat16 if _MARGIN * bfloat16_s < float32_s else torch.float32


@torch.no_grad()
def _convolution_seconds(dtype: torch.dtype) -> float:
    video = torch.zeros(1, _CHANNELS, _FRAMES, _HEIGHT, _WIDTH, dtype=dtype)
    weight = torch.zeros(_CHANNELS, _CHANNELS, 3, 3, 3, dtype=dtype)
    return seconds_of(lambda: conv3d(video, weight, padding=1), torch.device("cpu"))
