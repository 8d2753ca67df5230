"""PointOdyssey and TartanAir from small folders of their layout, and mixtures."""

import numpy as np
import pytest
import torch
from PIL import Image

from more4d_backend.files import FileFormatError
from more4d_backend.geometry import quaternion_wxyz_from_matrix
from training.data.samples import SampleError
from training.geo4d.clips import world_positions
from training.geo4d.datasets import (
    PUBLISHED_SHARES,
    ClipChoice,
    MixedClips,
    inpainted,
    point_odyssey,
    tartanair,
    world_to_camera_from_ned,
)
from training.procedural.clips import ClipSettings, procedural_clip

FRAMES, HEIGHT, WIDTH = 12, 24, 32
CHOICE = ClipChoice(num_frames=4)


@pytest.fixture(scope="module")
def truth():
    """A clip with 90 degrees of view, as TartanAir has."""
    settings = ClipSettings(
        size_hw=(HEIGHT, WIDTH), num_frames=FRAMES, samples=1, fov_deg=(89.99, 90.01)
    )
    return procedural_clip(2, settings)


@pytest.fixture
def odyssey(truth, tmp_path):
    folder = tmp_path / "pointodyssey" / "train" / "street"
    (folder / "rgbs").mkdir(parents=True)
    (folder / "depths").mkdir()
    for frame in range(FRAMES):
        picture = Image.fromarray(truth.video[frame].numpy())
        picture.save(folder / "rgbs" / f"rgb_{frame:05d}.jpg", quality=100, subsampling=0)
        stored = (truth.depth[frame] * 65535 / 1000).round().numpy().astype(np.uint16)
        stored[~truth.valid[frame].numpy()] = 65535
        stored[5, 7:9] = 0  # two pixels are missing
        Image.fromarray(stored).save(folder / "depths" / f"depth_{frame:05d}.png")
    np.savez(
        folder / "anno.npz",
        intrinsics=truth.cameras.intrinsics.numpy(),
        extrinsics=truth.cameras.world_to_camera.numpy(),
        trajs_2d=np.zeros((FRAMES, 3, 2)),
    )
    return tmp_path / "pointodyssey"


@pytest.fixture
def tartan(truth, tmp_path):
    folder = tmp_path / "tartanair" / "office" / "Easy" / "P000"
    (folder / "image_left").mkdir(parents=True)
    (folder / "depth_left").mkdir()
    axes = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # front right down to right down front
    lines = []
    for frame, pose in enumerate(truth.cameras.camera_to_world):
        Image.fromarray(truth.video[frame].numpy()).save(
            folder / "image_left" / f"{frame:06d}_left.png"
        )
        depth = truth.depth[frame].where(truth.valid[frame], 10000.0)
        np.save(folder / "depth_left" / f"{frame:06d}_left_depth.npy", depth.numpy())
        w, x, y, z = quaternion_wxyz_from_matrix(axes.T @ pose[:3, :3] @ axes).tolist()
        place = (axes.T @ pose[:3, 3]).tolist()
        lines.append(" ".join(f"{value:.9f}" for value in (*place, x, y, z, w)))
    (folder / "pose_left.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "tartanair"


def same_world(clip, truth, first: int, stride: int, atol: float) -> None:
    frames = [first + stride * i for i in range(CHOICE.num_frames)]
    ours = world_positions(clip.depth, clip.cameras)
    theirs = world_positions(truth.depth[frames], truth.cameras.frames(frames))
    both = clip.valid & truth.valid[frames]
    assert both.float().mean() > 0.3
    error = (ours - theirs).norm(dim=-1)[both]
    assert float(error.quantile(0.97)) < atol  # inpainted pixels are off


def strides_of(dataset, truth, atol, video_atol):
    seen = set()
    for index in range(len(dataset)):
        clip = dataset[index]
        matches = [
            s
            for s in (1, 2, 3)
            if index + 3 * s < FRAMES
            and (clip.video.float() - truth.video[[index + s * i for i in range(4)]].float())
            .abs().mean() < video_atol
        ]  # fmt: skip
        assert matches, f"clip {index} is none of the strides"
        same_world(clip, truth, index, matches[0], atol)
        seen.add(matches[0])
    return seen


def test_point_odyssey_is_the_world_that_was_written(odyssey, truth):
    dataset = point_odyssey(odyssey, CHOICE)
    assert len(dataset) == FRAMES - 3
    # Depth is in steps of 15 mm, and at the edge of the picture a pixel's ray is 1.5 as long.
    assert strides_of(dataset, truth, atol=0.02, video_atol=4) == {1, 2, 3}
    assert not dataset[0].valid[~truth.valid[:4]].any() or dataset[0].valid.all()


def test_tartanair_is_the_world_that_was_written(tartan, truth):
    dataset = tartanair(tartan, CHOICE)
    assert len(dataset) == FRAMES - 3
    # Its intrinsics are 90 degrees to the digit; the clip's are to a hundredth of a degree.
    assert strides_of(dataset, truth, atol=0.01, video_atol=0.5) == {1, 2, 3}


def test_a_clip_is_always_the_same(tartan):
    one, two = tartanair(tartan, CHOICE), tartanair(tartan, CHOICE)
    assert torch.equal(one[3].video, two[3].video)
    assert one[3].name == two[3].name


def test_axes_of_tartanair_are_front_right_down():
    # One metre ahead, and turned to the right by 90 degrees about the axis that points down.
    half = 2**-0.5
    pose = torch.tensor([[1.0, 0, 0, 0, 0, half, half]], dtype=torch.float64)
    world_to_camera = world_to_camera_from_ned(pose)[0]
    ahead = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)  # in our axes: where it stands
    torch.testing.assert_close(
        world_to_camera @ ahead, torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
    )
    right = ahead + torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(
        world_to_camera @ right, torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)
    )


def test_missing_depth_is_filled_from_around_and_far_inside_stays_unknown():
    depth = torch.full((1, 50, 50), 2.0)
    depth[:, 3, 3] = 0
    depth[:, 5:, 5:] = 0
    filled, known = inpainted(depth)
    assert filled[0, 3, 3] == 2
    assert known[0, :21, :21].all()
    assert not known[0, 30:, 30:].any()


def test_what_is_missing_or_damaged_is_named(odyssey, tartan, tmp_path):
    with pytest.raises(SampleError, match="holds no sequence"):
        tartanair(tmp_path / "nothing", CHOICE)
    with pytest.raises(SampleError, match="None of 1 sequences has 13 frames"):
        tartanair(tartan, ClipChoice(num_frames=13))
    street = odyssey / "train" / "street"
    (street / "depths" / "depth_00002.png").write_bytes(b"not a picture")
    with pytest.raises(FileFormatError, match=r"depth_00002\.png cannot be read as a depth map"):
        point_odyssey(odyssey, ClipChoice(num_frames=4, strides=(1,)))[0]
    np.savez(street / "anno.npz", trajs_2d=np.zeros(3))
    with pytest.raises(FileFormatError, match=r"anno\.npz cannot be read as annotations"):
        point_odyssey(odyssey, CHOICE)
    (tartan / "office" / "Easy" / "P000" / "pose_left.txt").write_text("1 2 3\n")
    with pytest.raises(FileFormatError, match="3 numbers a line, not 7"):
        tartanair(tartan, CHOICE)


class Numbers(torch.utils.data.Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def test_a_mixture_takes_each_as_often_as_its_share_says(as_users_run_it):
    shares = [PUBLISHED_SHARES["bedlam"], PUBLISHED_SHARES["tartanair"]]
    parts = list(zip((Numbers(1000), Numbers(7)), shares, strict=True))
    mixed = MixedClips(parts, 3000, seed=0)
    drawn = [mixed.chosen(index) for index in range(3000)]
    assert sum(d == 0 for d, _ in drawn) / 3000 == pytest.approx(2 / 3, abs=0.03)
    assert {number for dataset, number in drawn if dataset == 1} == set(range(7))
    assert drawn == [MixedClips(parts, 3000, seed=0).chosen(index) for index in range(3000)]
    assert drawn != [MixedClips(parts, 3000, seed=1).chosen(index) for index in range(3000)]
    with pytest.raises(SampleError, match="positive shares"):
        MixedClips([(Numbers(3), 0.0)], 10, seed=0)
    assert sum(PUBLISHED_SHARES.values()) == pytest.approx(1)
