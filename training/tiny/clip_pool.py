"""Clips kept on the device, and the parts of them that the embedded VAEs are trained on."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from more4d_backend.motion import MotionNormalization
from more4d_backend.strag.conditioning import depth_picture_of

from ..data.samples import SampleSize, TrainingBatch, stack_samples
from ..procedural.pictures import Pictures, PictureSamples
from ..targets import normalized_motion

MOVES = 1e-2
"""Normalised motion that counts as one."""
_STILL = 1e-4
"""Chance of a still pixel to be a crop's centre, relative to a moving one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPool:
    """Samples as the VAEs see them."""

    motion: Float[Tensor, "scene 3 frame height width"]
    """Normalised, float16."""

    image: UInt8[Tensor, "scene 3 1 height width"]
    """sRGB, of frame 0."""

    depth_picture: Float[Tensor, "scene 3 1 height width"]
    """Depth of frame 0 as 4D-STraG is given it, in [-1, 1], float16."""

    video: UInt8[Tensor, "sample 3 frame height width"]
    """sRGB; of the source camera and of the novel one in turn."""

    @classmethod
    def filled(
        cls,
        pictures: Pictures,
        batches: Iterable[TrainingBatch],
        normalization: MotionNormalization,
    ) -> "ClipPool":
        """Make motion and stills of pictures, where those are, and take videos from samples."""
        videos = []
        for batch in batches:
            novel = batch.video if batch.novel_video is None else batch.novel_video
            chosen = torch.cat([batch.video[::2], novel[1::2]])
            videos.append(rearrange(chosen, "b f h w c -> b c f h w").contiguous())
        frames, size_hw = pictures.movements.shape[1], pictures.images.shape[-2:]
        # Filled in place: this is most of what there is, and a GPU may not hold it twice.
        motion = pictures.depth.new_empty((len(pictures), 3, frames, *size_hw), dtype=torch.float16)
        for number, place in enumerate(motion):
            batch = stack_samples([PictureSamples(pictures)[number]])
            place.copy_(normalized_motion(batch, normalization)[0])
        depths = [depth_picture_of(d[None].float(), normalization).half() for d in pictures.depth]
        return cls(
            motion=motion,
            image=pictures.images[:, :, None],
            depth_picture=torch.stack(depths)[:, None].expand(-1, 3, -1, -1, -1),
            video=torch.cat(videos),
        )

    def motion_crops(
        self, count: int, size: SampleSize, generator: torch.Generator
    ) -> Float[Tensor, "count 3 frame height width"]:
        """Cut clips out around pixels that move, mirrored at random along every axis.

        A clip begins with the still frame 0 and takes every n-th frame, for any n for which there
        are enough. To turn the sign of a motion along one axis makes another motion.
        """
        chosen = self._integers(0, len(self.motion), count, generator)
        moves = self.motion[chosen, :, -1].abs().amax(1).maximum(
            self.motion[chosen, :, self.motion.shape[2] // 3].abs().amax(1)
        ).flatten(1) > MOVES  # fmt: skip
        centers = torch.multinomial(moves.float() + _STILL, 1, generator=generator)[:, 0]
        longest = max(1, (self.motion.shape[2] - 1) // max(1, size.num_frames - 1))
        strides = self._integers(1, longest + 1, count, generator)
        last = [stride * (size.num_frames - 1) + 1 for stride in strides]
        spans = [slice(0, end, stride) for end, stride in zip(last, strides, strict=True)]
        crops = self._cut(self.motion, chosen, centers, spans, size, generator)
        draw = torch.rand(5, count, generator=generator, device=crops.device)
        crops = crops * torch.where(draw[:3].T < 0.5, -1.0, 1.0).view(-1, 3, 1, 1, 1)
        return _mirrored(_mirrored(crops, -1, draw[3]), -2, draw[4])

    def picture_crops(
        self, count: int, size: SampleSize, generator: torch.Generator
    ) -> Float[Tensor, "count 3 frame height width"]:
        """Cut clips in [-1, 1] out of what 4D-STraG and 4D-ViSM have encoded.

        A quarter is depth that stands still, a quarter images that do, and the rest videos.

        Raises:
            ValueError: fewer than three clips would not hold one of each.
        """
        if count < 3:
            raise ValueError(f"count is {count}; expected 3 or more, one of each kind.")
        quarter = max(1, count // 4)
        still = [slice(0, 1)] * quarter
        depth = self._places(self.depth_picture, still, size, generator)
        image = self._places(self.image, still, size, generator) / 127.5 - 1
        latest = self.video.shape[2] - size.num_frames
        firsts = self._integers(0, latest + 1, count - 2 * quarter, generator)
        spans = [slice(first, first + size.num_frames) for first in firsts]
        video = self._places(self.video, spans, size, generator) / 127.5 - 1
        frames = (-1, -1, size.num_frames, -1, -1)
        clips = torch.cat([depth.expand(frames), image.expand(frames), video])
        return _mirrored(clips, -1, torch.rand(count, generator=generator, device=clips.device))

    def _places(
        self, source: Tensor, spans: list[slice], size: SampleSize, generator: torch.Generator
    ) -> Tensor:
        """Cut each span out of a sample, at a place, both of them drawn."""
        chosen = self._integers(0, len(source), len(spans), generator)
        num_pixels = source.shape[-2] * source.shape[-1]
        centers = torch.tensor(self._integers(0, num_pixels, len(spans), generator))
        return self._cut(source, chosen, centers, spans, size, generator)

    def _integers(self, low: int, high: int, count: int, generator: torch.Generator) -> list[int]:
        device = generator.device
        return torch.randint(low, high, (count,), generator=generator, device=device).tolist()

    def _cut(
        self,
        source: Tensor,
        chosen: list[int],
        centers: Tensor,
        spans: list[slice],
        size: SampleSize,
        generator: torch.Generator,
    ) -> Tensor:
        height, width = source.shape[-2:]
        shifts = torch.rand(2, len(chosen), generator=generator, device=generator.device).tolist()
        crops = []
        for n, (sample, center, span) in enumerate(
            zip(chosen, centers.tolist(), spans, strict=True)
        ):
            top = center // width - int(size.height * (0.15 + 0.7 * shifts[0][n]))
            left = center % width - int(size.width * (0.15 + 0.7 * shifts[1][n]))
            top, left = (
                max(0, min(top, height - size.height)),
                max(0, min(left, width - size.width)),
            )
            rows, columns = slice(top, top + size.height), slice(left, left + size.width)
            # Before they are stacked: autocast to bfloat16 refuses to stack halves.
            crops.append(source[sample, :, span, rows, columns].float())
        return torch.stack(crops)


def _mirrored(crops: Tensor, axis: int, draw: Float[Tensor, "crop"]) -> Tensor:
    return torch.where((draw < 0.5).view(-1, 1, 1, 1, 1), crops.flip(axis), crops)
