"""One training sample: a video, the 3D motion of its first frame's pixels, and a caption.

Axes: batch, frame, height, width. The world is the camera of frame 0.
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int8, UInt8
from torch import Tensor

from more4d_backend.geometry import pixel_centers, unproject
from more4d_backend.scene import Cameras, PointTracks, Scene4D
from more4d_backend.shapes import ShapeError, check_shapes


class SampleError(ValueError):
    """A training sample that cannot be learned from; the message names it."""


MotionFamily = Literal[
    "still", "translation", "spin", "bounce", "swing", "wave", "growth", "deformation"
]
"""Kinds of motion that are told apart in evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleObject:
    """The truth about one object that the caption names."""

    name: str
    """As in the caption, such as `red striped ball`."""

    motion: str
    """As in the caption, such as `moves left`."""

    family: MotionFamily
    """What kind of motion that is."""

    direction: tuple[float, float, float]
    """Unit vector in world axes: where it first goes (translation, bounce, swing, wave), or the
    axis about which it turns by the right-hand rule (spin). Zero for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """What the trainers learn from: seen colours, exact or estimated motion, words."""

    name: str
    """Unique in its data set: letters, digits, `-` and `_`."""

    caption: str
    """What is seen and how it moves, in English; never empty."""

    source: str
    """Where it comes from, for people: "procedural seed 17", "TrajScene-60K 000001_000050"."""

    fps: float
    """Frames per second."""

    video: UInt8[Tensor, "frame height width 3"]
    """sRGB."""

    depth: Float[Tensor, "height width"]
    """Depth of frame 0 in world units, float32, finite and positive everywhere (sky: far)."""

    motion: Float[Tensor, "frame height width 3"]
    """World positions of the points that frame 0 shows at each pixel, minus those of frame 0.

    float16, finite also where the point is hidden; zero in frame 0.
    """

    visibility: Bool[Tensor, "frame height width"]
    """True where the point that frame 0 shows at this pixel is seen in that frame."""

    cameras: Cameras
    """Source cameras at the size of `video`; frame 0 is the identity."""

    novel_video: UInt8[Tensor, "frame height width 3"] | None = None
    """The same scene and times, seen from `novel_cameras`."""

    novel_cameras: Cameras | None = None
    """Cameras of `novel_video`, in the same world; present exactly when it is."""

    objects: tuple[SampleObject, ...] = ()
    """What the caption names, where that is known."""

    object_index: Int8[Tensor, "height width"] | None = None
    """Which of `objects` each pixel of frame 0 shows; -1 for none. Present when `objects` are."""

    @property
    def size_fhw(self) -> tuple[int, int, int]:
        """(frame, height, width)."""
        frames, height, width, _ = self.video.shape
        return frames, height, width

    def positions(self) -> Float[Tensor, "frame height width 3"]:
        """World positions of the pixels of frame 0 over time, float32."""
        return _positions(self.depth, self.motion, self.cameras.intrinsics[0])

    def scene(self) -> Scene4D:
        """Return the sample as a scene of tracks."""
        return _scene(self.positions(), self.video[0], self.visibility, self.cameras, self.fps)


def _positions(depth: Tensor, motion: Tensor, intrinsics: Tensor) -> Tensor:
    pixels = pixel_centers(*depth.shape, device=depth.device, dtype=torch.float32)
    return unproject(pixels, depth.float(), intrinsics.float()) + motion.float()


def _scene(
    positions: Tensor, image: Tensor, visibility: Tensor, cameras: Cameras, fps: float
) -> Scene4D:
    tracks = PointTracks(
        positions=positions.flatten(1, 2),
        colors=image.flatten(0, 1).float() / 255,
        visibility=visibility.flatten(1),
        grid_hw=(cameras.height, cameras.width),
    )
    return Scene4D(points=tracks, cameras=cameras, fps=fps)


def check_sample(sample: TrainingSample) -> None:
    """Refuse a sample that would spoil training.

    Raises:
        SampleError: names the sample, the field, what arrived and what was expected.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", sample.name):
        raise SampleError(
            f"A sample is named {sample.name!r}; expected letters, digits, '-' and '_' only."
        )
    if not sample.caption.strip():
        raise SampleError(f"Sample {sample.name} has no caption; expected one sentence.")
    if not sample.fps > 0:
        raise SampleError(f"Sample {sample.name} has fps {sample.fps}; expected more than 0.")
    try:
        _check_sample_shapes(sample)
    except ShapeError as e:
        raise SampleError(f"Sample {sample.name} is inconsistent: {e}") from e
    _check_sample_values(sample)


def _check_sample_shapes(sample: TrainingSample) -> None:
    tensors = {
        "video": (sample.video, "frame height width 3"),
        "depth": (sample.depth, "height width"),
        "motion": (sample.motion, "frame height width 3"),
        "visibility": (sample.visibility, "frame height width"),
        "world_to_camera": (sample.cameras.world_to_camera, "frame 4 4"),
    }
    if (sample.novel_video is None) != (sample.novel_cameras is None):
        raise ShapeError("novel_video and novel_cameras come together; only one is there.")
    if sample.novel_video is not None and sample.novel_cameras is not None:
        tensors["novel_video"] = (sample.novel_video, "frame height width 3")
        tensors["novel world_to_camera"] = (sample.novel_cameras.world_to_camera, "frame 4 4")
    if (sample.object_index is None) != (not sample.objects):
        raise ShapeError("objects and object_index come together; only one is there.")
    if sample.object_index is not None:
        tensors["object_index"] = (sample.object_index, "height width")
    sizes = check_shapes(**tensors)
    for label, cameras in (("cameras", sample.cameras), ("novel_cameras", sample.novel_cameras)):
        if cameras and (cameras.height, cameras.width) != (sizes["height"], sizes["width"]):
            raise ShapeError(
                f"{label} are for {cameras.height}x{cameras.width} pixels; "
                f"the video has {sizes['height']}x{sizes['width']}."
            )


def _check_sample_values(sample: TrainingSample) -> None:
    name = sample.name
    if not (sample.depth.isfinite() & (sample.depth > 0)).all():
        raise SampleError(f"Sample {name} has depth that is not finite and positive everywhere.")
    if not _all_finite(sample.motion):
        raise SampleError(f"Sample {name} has motion that is NaN or infinite.")
    if sample.motion[0].any():
        raise SampleError(f"Sample {name} has motion in frame 0; expected zero there.")
    index = sample.object_index
    if index is not None and not -1 <= int(index.min()) <= int(index.max()) < len(sample.objects):
        raise SampleError(
            f"Sample {name} has object_index {int(index.min())} to {int(index.max())}; expected "
            f"-1 to {len(sample.objects) - 1}."
        )
    identity = torch.eye(4).to(sample.cameras.world_to_camera)
    if not torch.allclose(sample.cameras.world_to_camera[0], identity, atol=1e-5):
        raise SampleError(
            f"The camera of frame 0 of sample {name} is not the identity; expected the world "
            "to be the camera of frame 0."
        )


def _all_finite(values: Tensor) -> bool:
    if values.dtype != torch.float16:
        return bool(values.isfinite().all())
    # NaN and infinity are the halves whose five exponent bits are set; ten times as fast as
    # isfinite on the CPU, where this runs on 58 MB for each sample of the released size.
    return bool(values.contiguous().view(torch.int16).bitwise_and(0x7C00).max() < 0x7C00)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSize:
    """The size that a network is trained at."""

    num_frames: int
    """4k + 1, because the VAE packs frames by four after the first."""

    height: int
    """Pixels; a multiple of 16 (8 from the VAE, 2 from the patches)."""

    width: int
    """Pixels; a multiple of 16."""

    def __post_init__(self) -> None:
        if self.num_frames % 4 != 1 or self.num_frames < 1:
            near = max(1, self.num_frames - (self.num_frames - 1) % 4)
            raise ValueError(
                f"num_frames is {self.num_frames}; expected 4k + 1. Use {near} or {near + 4}."
            )
        for axis, size in (("height", self.height), ("width", self.width)):
            if size % 16 or size < 16:
                near = max(16, size // 16 * 16)
                raise ValueError(
                    f"{axis} is {size}; expected a multiple of 16. Use {near} or {near + 16}."
                )


def fit_sample(sample: TrainingSample, size: SampleSize) -> TrainingSample:
    """Bring a sample to `size`: the first frames, every n-th pixel, then the middle.

    Motion is never interpolated, because a mean over a silhouette belongs to no point. Colours
    are averaged over the n x n pixels. Intrinsics follow the points that were kept.

    Raises:
        SampleError: the sample is smaller than `size`.
    """
    frames, height, width = sample.size_fhw
    if frames < size.num_frames or height < size.height or width < size.width:
        raise SampleError(
            f"Sample {sample.name} has {frames} frames of {height}x{width}; expected at least "
            f"{size.num_frames} of {size.height}x{size.width}. Train at a smaller size."
        )
    step = min(height // size.height, width // size.width)
    top = (height // step - size.height) // 2
    left = (width // step - size.width) // 2
    rows = slice(top * step, (top + size.height) * step)
    columns = slice(left * step, (left + size.width) * step)
    picked = (
        slice(rows.start + step // 2, rows.stop, step),
        slice(columns.start + step // 2, columns.stop, step),
    )

    def colors(video: Tensor) -> Tensor:
        part = video[: size.num_frames, rows, columns]
        if step == 1:
            return part
        blocks = part.float().unflatten(1, (-1, step)).unflatten(3, (-1, step))
        return blocks.mean((2, 4)).round().to(torch.uint8)

    def views(cameras: Cameras) -> Cameras:
        intrinsics = cameras.intrinsics[: size.num_frames].clone()
        # Of each block of pixels the one at index step // 2 was kept; it becomes the centre 0.5.
        shift = step // 2 + 0.5 - step * 0.5
        intrinsics[:, 0, 2] -= left * step + shift
        intrinsics[:, 1, 2] -= top * step + shift
        intrinsics[:, :2] /= step
        return Cameras(
            world_to_camera=cameras.world_to_camera[: size.num_frames],
            intrinsics=intrinsics,
            height=size.height,
            width=size.width,
        )

    return replace(
        sample,
        video=colors(sample.video),
        depth=sample.depth[picked],
        motion=sample.motion[: size.num_frames, *picked],
        visibility=sample.visibility[: size.num_frames, *picked],
        cameras=views(sample.cameras),
        novel_video=None if sample.novel_video is None else colors(sample.novel_video),
        novel_cameras=None if sample.novel_cameras is None else views(sample.novel_cameras),
        object_index=None if sample.object_index is None else sample.object_index[picked],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """Samples of one size, stacked."""

    names: tuple[str, ...]
    """One per sample."""

    captions: tuple[str, ...]
    """One per sample."""

    fps: tuple[float, ...]
    """One per sample."""

    video: UInt8[Tensor, "batch frame height width 3"]
    """See `TrainingSample.video`."""

    depth: Float[Tensor, "batch height width"]
    """See `TrainingSample.depth`."""

    motion: Float[Tensor, "batch frame height width 3"]
    """See `TrainingSample.motion`."""

    visibility: Bool[Tensor, "batch frame height width"]
    """See `TrainingSample.visibility`."""

    intrinsics: Float[Tensor, "batch frame 3 3"]
    """Pixels."""

    world_to_camera: Float[Tensor, "batch frame 4 4"]
    """Source cameras."""

    novel_video: UInt8[Tensor, "batch frame height width 3"] | None
    """None unless every sample has one."""

    novel_world_to_camera: Float[Tensor, "batch frame 4 4"] | None
    """Cameras of `novel_video`."""

    novel_intrinsics: Float[Tensor, "batch frame 3 3"] | None
    """Pixels."""

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.names)

    def positions(self, index: int) -> Float[Tensor, "frame height width 3"]:
        """World positions of the pixels of frame 0 of a sample over time, float32."""
        return _positions(self.depth[index], self.motion[index], self.intrinsics[index, 0])

    def cameras(self, index: int) -> Cameras:
        """Return the source cameras of a sample."""
        return self._views(self.world_to_camera[index], self.intrinsics[index])

    def novel_cameras(self, index: int) -> Cameras:
        """Return the cameras of a sample's `novel_video`.

        Raises:
            SampleError: not every sample has one.
        """
        if self.novel_world_to_camera is None or self.novel_intrinsics is None:
            raise SampleError(f"Not every sample of {', '.join(self.names)} has a novel view.")
        return self._views(self.novel_world_to_camera[index], self.novel_intrinsics[index])

    def scene(self, index: int) -> Scene4D:
        """Return a sample as a scene of tracks."""
        image, visibility = self.video[index, 0], self.visibility[index]
        positions, cameras = self.positions(index), self.cameras(index)
        return _scene(positions, image, visibility, cameras, self.fps[index])

    def _views(self, world_to_camera: Tensor, intrinsics: Tensor) -> Cameras:
        height, width = self.depth.shape[1:]
        return Cameras(
            world_to_camera=world_to_camera, intrinsics=intrinsics, height=height, width=width
        )

    def to(self, device: torch.device | str) -> "TrainingBatch":
        """Return a copy on another device; from pinned memory this does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "TrainingBatch":
        """Return a copy in page-locked memory; the data loader calls this.

        What was made on a device stays there.
        """
        return self._map(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def _map(self, change) -> "TrainingBatch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)})


def stack_samples(samples: list[TrainingSample]) -> TrainingBatch:
    """Stack samples of one size."""
    novel = all(sample.novel_cameras for sample in samples)

    def stacked(read) -> Tensor:
        return torch.stack([read(sample) for sample in samples])

    return TrainingBatch(
        names=tuple(sample.name for sample in samples),
        captions=tuple(sample.caption for sample in samples),
        fps=tuple(sample.fps for sample in samples),
        video=stacked(lambda s: s.video),
        depth=stacked(lambda s: s.depth),
        motion=stacked(lambda s: s.motion),
        visibility=stacked(lambda s: s.visibility),
        intrinsics=stacked(lambda s: s.cameras.intrinsics),
        world_to_camera=stacked(lambda s: s.cameras.world_to_camera),
        novel_video=stacked(lambda s: s.novel_video) if novel else None,
        novel_world_to_camera=stacked(lambda s: s.novel_cameras.world_to_camera) if novel else None,
        novel_intrinsics=stacked(lambda s: s.novel_cameras.intrinsics) if novel else None,
    )
