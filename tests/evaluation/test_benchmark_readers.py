"""Sintel, TUM-dynamics and procedural videos, from small folders of their layout."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from more4d_backend.evaluation.benchmark_readers import (
    ProceduralVideo,
    SintelVideo,
    TumVideo,
    paired_times,
    read_cam,
    read_dpt,
)
from more4d_backend.evaluation.tables import EvaluationError
from more4d_backend.files import FileFormatError
from more4d_backend.geometry import matrix_from_quaternion_wxyz, quaternion_wxyz_from_matrix


def colors_of(video):
    return torch.stack(list(video.pictures())).float() / 255


def test_sintel_gives_back_what_was_written(sintel, scene):
    video = SintelVideo(sintel, "alley_1")
    frames = scene.num_frames
    assert torch.equal(colors_of(video.video()), (scene.points.colors * 255).round() / 255)
    assert video.video().fps == 24
    depth = video.depth()
    assert depth.valid.all()
    world_to_camera = scene.cameras.world_to_camera
    in_camera = scene.points.positions @ world_to_camera[:, None, :3, :3].transpose(-1, -2)
    expected = in_camera[..., 2] + world_to_camera[:, None, None, 2, 3]
    torch.testing.assert_close(depth.depth, expected, atol=1e-5, rtol=1e-5)
    expected = scene.cameras.camera_to_world.double()
    torch.testing.assert_close(video.camera_to_world(), expected, atol=1e-6, rtol=0)
    assert len(expected) == frames


def test_damaged_files_of_sintel_are_refused_by_name(sintel):
    path = sintel / "training" / "depth" / "alley_1" / "frame_0002.dpt"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError, match=r"frame_0002\.dpt"):
        SintelVideo(sintel, "alley_1").depth()
    path.write_bytes(struct.pack("<fii", 1.0, 1, 1) + b"\0" * 4)
    with pytest.raises(FileFormatError, match="begins with 1"):
        read_dpt(path)
    path = sintel / "training" / "camdata_left" / "alley_1" / "frame_0001.cam"
    path.write_bytes(struct.pack("<f21d", 7.0, *range(21)))
    with pytest.raises(FileFormatError, match="begins with 7"):
        read_cam(path)
    with pytest.raises(EvaluationError, match="market_2"):
        SintelVideo(sintel, "market_2")


def write_tum(folder, count=12, first_time=1_341_846_313.5):
    """Pictures at 30 Hz and poses at 100 Hz; picture i is grey i, the camera moves with time."""
    (folder / "rgb").mkdir(parents=True)
    times = first_time + np.arange(count) / 30
    lines = ["# color images", "# file: 'x.bag'", "# timestamp filename"]
    for number, time in enumerate(times):
        name = f"rgb/{time:.6f}.png"
        Image.fromarray(np.full((6, 8, 3), number % 256, np.uint8)).save(folder / name)
        lines.append(f"{time:.6f} {name}")
    (folder / "rgb.txt").write_text("\n".join(lines) + "\n")
    pose_times = first_time + np.arange(int(count / 30 * 100)) / 100 + 0.002
    turn = torch.from_numpy(pose_times - first_time) * 0.5
    quaternion = torch.stack([turn.cos(), turn * 0, turn.sin(), turn * 0], -1)
    rows = [
        f"{time:.4f} {time - first_time:.6f} 2 3 {x:.9f} {y:.9f} {z:.9f} {w:.9f}"
        for time, (w, x, y, z) in zip(pose_times, quaternion.tolist(), strict=True)
    ]
    (folder / "groundtruth.txt").write_text("# timestamp tx ty tz qx qy qz qw\n" + "\n".join(rows))
    return times - first_time


@pytest.mark.parametrize("name", ["walking_xyz", "rgbd_dataset_freiburg3_walking_xyz"])
def test_tum_takes_every_third_picture_with_the_pose_of_its_time(tmp_path, name):
    times = write_tum(tmp_path / name)
    video = TumVideo(tmp_path, "walking_xyz")
    assert [int(picture[0, 0, 0]) for picture in video.video().pictures()] == [0, 3, 6, 9]
    assert video.video().fps == 10
    poses = video.camera_to_world()
    # Poses come every 10 ms.
    torch.testing.assert_close(
        poses[:, 0, 3], torch.from_numpy(times[[0, 3, 6, 9]]), atol=5.1e-3, rtol=0
    )
    assert torch.equal(poses[:, 1:3, 3], torch.tensor([[2.0, 3.0]]).double().expand(4, 2))
    turn = (poses[:, 0, 3] - 0.002) * 0.5
    found = quaternion_wxyz_from_matrix(poses[:, :3, :3])
    expected = matrix_from_quaternion_wxyz(
        torch.stack([turn.cos(), turn * 0, turn.sin(), turn * 0], -1)
    )
    torch.testing.assert_close(found, quaternion_wxyz_from_matrix(expected), atol=2e-3, rtol=0)
    assert video.depth() is None


def test_tum_takes_ninety_pictures_and_leaves_out_those_without_a_pose(tmp_path):
    write_tum(tmp_path / "long", count=300)
    assert len(TumVideo(tmp_path, "long").camera_to_world()) == 90
    write_tum(tmp_path / "late")
    lines = (tmp_path / "late" / "groundtruth.txt").read_text().splitlines()
    (tmp_path / "late" / "groundtruth.txt").write_text("\n".join(lines[18:]))
    first = next(iter(TumVideo(tmp_path, "late").video().pictures()))
    assert int(first[0, 0, 0]) >= 5  # 17 poses, 0.17 s and five pictures are gone
    (tmp_path / "late" / "groundtruth.txt").write_text("5.0 0 0 0 0 0 0 1\n")
    with pytest.raises(EvaluationError, match="no picture has a pose"):
        TumVideo(tmp_path, "late")
    (tmp_path / "late" / "groundtruth.txt").write_text("5.0 0 0\n")
    with pytest.raises(FileFormatError, match=r"groundtruth\.txt"):
        TumVideo(tmp_path, "late")


def test_a_pose_belongs_to_one_picture_of_tum_alone():
    # Poses are missing between 0.02 and 0.1 s, but for one: it is nearer to picture 2.
    picture_s = np.array([0.0, 0.033, 0.066, 0.1])
    pose_s = np.array([0.1, 0.001, 0.011, 0.05])
    assert paired_times(picture_s, pose_s) == [(0, 1), (2, 3), (3, 0)]
    # The nearest pair comes first, though another picture then has to take the pose after.
    assert paired_times(np.array([0.0, 0.01]), np.array([0.008, 0.019])) == [(0, 1), (1, 0)]
    assert paired_times(np.array([0.1, 0.0]), np.array([0.0, 0.1])) == [(1, 0), (0, 1)]
    assert paired_times(np.array([0.0]), np.array([0.02])) == []  # less than 0.02 s, as there
    assert paired_times(np.array([]), pose_s) == []


def test_a_sequence_of_tum_that_is_not_there_is_not_called_damaged(tmp_path):
    with pytest.raises(
        EvaluationError, match=r"no rgb\.txt in .*walking_xyz or .*freiburg3_walking"
    ):
        TumVideo(tmp_path, "walking_xyz")


def test_procedural_videos_lie_beside_their_scenes(procedural, scene):
    video = ProceduralVideo(procedural / "one.safetensors")
    assert torch.equal(colors_of(video.video()), (scene.points.colors * 255).round() / 255)
    torch.testing.assert_close(
        video.camera_to_world(), scene.cameras.camera_to_world, atol=1e-6, rtol=0
    )
    assert torch.equal(video.depth().valid, scene.points.valid)
    (procedural / "one.mkv").unlink()
    with pytest.raises(EvaluationError, match=r"no .*one\.mp4"):
        video.video()
