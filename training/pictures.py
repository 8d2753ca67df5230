"""Pictures with depth and field of view, drawn on the CPU's cores: frame 0 of procedural scenes.

A scene's first frame alone is cheap (30 ms on one core), so no accelerator is held for it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .procedural_scenes import draw_scene
from .procedural_settings import ProceduralSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A pool of pictures of one size."""

    images: UInt8[Tensor, "picture 3 height width"]
    """sRGB, 0 to 255."""

    depth: Float[Tensor, "picture height width"]
    """Camera z in metres, float16."""

    log_focal: Float[Tensor, "picture"]
    """Logarithm of the focal length as a share of the picture's longer side."""

    def to(self, device: torch.device | str) -> "Pictures":
        """Return the pool on another device."""
        return Pictures(
            images=self.images.to(device),
            depth=self.depth.to(device),
            log_focal=self.log_focal.to(device),
        )


def draw_pictures(
    settings: ProceduralSettings, *, first_seed: int, count: int, num_workers: int = 0
) -> Pictures:
    """Draw frame 0 of the scenes of `count` seeds, in their order, by `num_workers` processes."""
    scenes = _FirstFrames(settings, first_seed, count)
    loader = DataLoader(
        scenes,
        batch_size=64,
        num_workers=num_workers,
        collate_fn=_stacked,
        # A forked process could not use a GPU that this one uses.
        multiprocessing_context="spawn" if num_workers else None,
        generator=torch.Generator().manual_seed(0),
    )
    images, depth, focal = zip(*loader, strict=True)
    return Pictures(
        images=torch.from_numpy(np.concatenate(images)),
        depth=torch.from_numpy(np.concatenate(depth)),
        log_focal=torch.from_numpy(np.concatenate(focal)),
    )


_Picture = tuple[np.ndarray, np.ndarray, np.ndarray]


class _FirstFrames(Dataset[_Picture]):
    def __init__(self, settings: ProceduralSettings, first_seed: int, count: int) -> None:
        self.settings, self.first_seed, self.count = settings, first_seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> _Picture:
        size = self.settings.size
        world = draw_scene(self.first_seed + index, self.settings).world
        cameras = world.cameras(1, size.height, size.width)
        view = world.view(cameras, samples=self.settings.samples)
        image = (view.rgb[0] * 255).round().to(torch.uint8).permute(2, 0, 1)  # c h w
        focal_px = float(cameras.intrinsics[0, 0, 0])
        log_focal = np.asarray(np.log(focal_px / max(size.height, size.width)), np.float32)
        return image.numpy(), view.depth[0].half().numpy(), log_focal


def _stacked(pictures: list[_Picture]) -> _Picture:
    # Arrays go through a pipe; tensors would need more shared memory than containers give.
    images, depth, log_focal = zip(*pictures, strict=True)
    return np.stack(images), np.stack(depth), np.stack(log_focal)
