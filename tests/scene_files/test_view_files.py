"""View files: what the browser gets of a scene."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend.files import FileFormatError
from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene import Cameras, PointMaps, PointTracks, Scene4D
from more4d_backend.scene_files.view_file import (
    MAGIC,
    ViewSettings,
    forget_oldest_views,
    read_view,
    step_of_view,
    write_view,
)

_HEIGHT, _WIDTH, _FRAMES = 12, 16, 3


def cameras(num_frames, translation=(0.0, 0.0, 0.0)):
    world_to_camera = torch.eye(4).repeat(num_frames, 1, 1)
    world_to_camera[:, :3, 3] = -torch.tensor(translation)
    K = intrinsics_from_focal(torch.tensor([14.0]), _HEIGHT, _WIDTH)
    return Cameras(
        world_to_camera=world_to_camera,
        intrinsics=K.expand(num_frames, 3, 3),
        height=_HEIGHT,
        width=_WIDTH,
    )


@pytest.fixture
def tracks():
    torch.manual_seed(0)
    positions = torch.randn(_FRAMES, _HEIGHT * _WIDTH, 3) + torch.tensor([0.0, 0.0, 4.0])
    points = PointTracks(
        positions=positions,
        colors=torch.rand(_HEIGHT * _WIDTH, 3),
        visibility=torch.rand(_FRAMES, _HEIGHT * _WIDTH) > 0.3,
        grid_hw=(_HEIGHT, _WIDTH),
    )
    return Scene4D(points=points, cameras=cameras(_FRAMES, (0.5, -0.2, 0.1)), fps=12.0)


@pytest.fixture
def maps(tracks):
    shape = (_FRAMES, _HEIGHT, _WIDTH)
    points = PointMaps(
        positions=tracks.points.positions.view(*shape, 3),
        colors=torch.rand(*shape, 3),
        valid=tracks.points.visibility.view(shape),
    )
    return replace(tracks, points=points)


def test_what_is_read_is_what_was_written_to_16_bits(tmp_path, tracks):
    path = cameras(5, (0.1, 0.2, 0.3))
    assert write_view(tmp_path / "a.m4dview", tracks, path) == 1
    view = read_view(tmp_path / "a.m4dview")
    found = view.scene
    assert (view.stride, view.num_points_of_scene) == (1, _HEIGHT * _WIDTH)
    assert found.fps == 12
    assert torch.equal(found.points.visibility, tracks.points.visibility)
    assert (found.points.colors - tracks.points.colors).abs().max() <= 0.5 / 255 + 1e-6
    for read, written in ((found.cameras, tracks.cameras), (view.camera_path, path)):
        assert torch.equal(read.world_to_camera, written.world_to_camera)
        assert torch.equal(read.intrinsics, written.intrinsics)
        assert (read.height, read.width) == (written.height, written.width)
    scale = header_of(tmp_path / "a.m4dview")["scale"]
    distance = tracks.points.positions - torch.tensor([0.5, -0.2, 0.1])
    error = found.points.positions - tracks.points.positions
    steps = torch.tensor([step_of_view(scale, float(d)) for d in distance.abs().flatten()])
    assert (error.abs().flatten() <= 1.01 * steps + 1e-6).all()  # 1e-6: float32 on the way


def header_of(file):
    data = file.read_bytes()
    return json.loads(data[16 : 16 + int.from_bytes(data[12:16], "little")])


def test_point_maps_keep_a_color_in_each_frame(tmp_path, maps):
    write_view(tmp_path / "a.m4dview", maps)
    found = read_view(tmp_path / "a.m4dview").scene.points
    assert isinstance(found, PointMaps)
    assert (found.colors[:, 0] - maps.points.colors.flatten(1, 2)).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(found.valid[:, 0], maps.points.valid.flatten(1, 2))


@pytest.mark.parametrize("kind", ["tracks", "maps"])
def test_a_stride_keeps_every_so_many_pixels_each_way(request, tmp_path, kind):
    scene = request.getfixturevalue(kind)
    write_view(tmp_path / "a.m4dview", scene, settings=ViewSettings(stride=2))
    view = read_view(tmp_path / "a.m4dview")
    assert (view.stride, view.num_points_of_scene) == (2, _HEIGHT * _WIDTH)
    kept = scene.points.positions.view(_FRAMES, _HEIGHT, _WIDTH, 3)[:, ::2, ::2].flatten(1, 2)
    found = view.scene.points.positions.flatten(1, -2)
    assert (found - kept).abs().max() < 1e-3


def test_points_without_a_grid_are_thinned_as_much(tmp_path, tracks):
    loose = replace(tracks, points=replace(tracks.points, grid_hw=None))
    write_view(tmp_path / "a.m4dview", loose, settings=ViewSettings(stride=2))
    assert read_view(tmp_path / "a.m4dview").scene.points.positions.shape[1] == 48


@pytest.mark.parametrize("kind", ["tracks", "maps"])
def test_the_stride_grows_until_the_file_is_small_enough(request, tmp_path, kind):
    scene = request.getfixturevalue(kind)
    whole, small = tmp_path / "whole.m4dview", tmp_path / "small.m4dview"
    write_view(whole, scene)
    assert write_view(small, scene, settings=ViewSettings(limit_bytes=1000)) > 1
    data = {f: f.stat().st_size - len(json.dumps(header_of(f))) for f in (whole, small)}
    assert data[small] < 1200 < data[whole]


def test_points_that_are_not_finite_are_missing(tmp_path, tracks):
    positions = tracks.points.positions.clone()
    positions[0, 0, 0], positions[1, 5, 2], positions[2, 7, 1] = torch.nan, torch.inf, -torch.inf
    broken = replace(tracks, points=replace(tracks.points, positions=positions))
    write_view(tmp_path / "a.m4dview", broken)
    found = read_view(tmp_path / "a.m4dview").scene.points.positions
    missing = found.isnan().all(-1)
    assert torch.equal(missing, ~positions.isfinite().all(-1))
    assert not found[~missing].isnan().any()


@pytest.mark.parametrize("count", [0, 1])
def test_scenes_of_hardly_any_points_are_written(tmp_path, tracks, count):
    points = PointTracks(
        positions=tracks.points.positions[:, :count],
        colors=tracks.points.colors[:count],
        visibility=torch.zeros(_FRAMES, count, dtype=torch.bool),
    )
    write_view(tmp_path / "a.m4dview", replace(tracks, points=points))
    assert read_view(tmp_path / "a.m4dview").scene.points.positions.shape == (_FRAMES, count, 3)
    assert header_of(tmp_path / "a.m4dview")["scene_scale"] is None


def test_49_frames_at_half_density_are_14_megabytes(tmp_path):
    num_points = 368 * 512
    points = PointTracks(
        positions=torch.zeros(1, 1, 3).expand(49, num_points, 3),
        colors=torch.zeros(num_points, 3),
        visibility=torch.ones(49, num_points, dtype=torch.bool),
        grid_hw=(368, 512),
    )
    scene = Scene4D(points=points, cameras=cameras(49), fps=8.0)
    write_view(tmp_path / "a.m4dview", scene, settings=ViewSettings(stride=2))
    assert (tmp_path / "a.m4dview").stat().st_size == pytest.approx(14.3e6, rel=0.01)


@settings(max_examples=50, deadline=None)
@given(
    scale=st.floats(1e-4, 1e4),
    distance=st.floats(0, 1e6),
    sign=st.sampled_from([-1, 1]),
)
def test_no_coordinate_is_further_off_than_its_step(tmp_path_factory, scale, distance, sign):
    positions = torch.full((1, 3, 3), scale)
    positions[0, 0, 0] = sign * distance * scale
    points = PointTracks(
        positions=positions, colors=torch.zeros(3, 3), visibility=torch.ones(1, 3).bool()
    )
    file = tmp_path_factory.mktemp("view") / "a.m4dview"
    write_view(file, Scene4D(points=points, cameras=cameras(1), fps=8.0))
    found = read_view(file).scene.points.positions[0, 0, 0]
    allowed = step_of_view(header_of(file)["scale"], distance * scale)
    of_float32 = 0.01 * allowed + 1e-6 * distance * scale
    assert abs(float(found - positions[0, 0, 0])) <= allowed + of_float32


def test_progress_is_told_and_can_interrupt(tmp_path, tracks):
    told = []
    write_view(tmp_path / "a.m4dview", tracks, progress=lambda *now: told.append(now))
    assert told == [(1, 3), (2, 3), (3, 3)]

    def stop(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_view(tmp_path / "b.m4dview", tracks, progress=stop)
    assert not list(tmp_path.glob("*b.m4dview*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"PLY" + data[3:], "begins with"),
        (lambda data: data[:8] + b"\7\0\0\0" + data[12:], "is of version 7"),
        (lambda data: data[:40], "view file"),
        (lambda data: data[:-2000], "view file"),
        (lambda data: data.replace(b'"positions"', b'"placement"'), "view file"),
    ],
    ids=["other", "newer", "head", "cut", "blocks"],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path, tracks, change, words):
    file = tmp_path / "a.m4dview"
    write_view(file, tracks)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(FileFormatError, match=words):
        read_view(file)


@pytest.mark.parametrize("bad", [{"stride": 0}, {"limit_bytes": 0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="expected at least 1"):
        ViewSettings(**bad)


def test_the_oldest_files_go_until_the_rest_fits(tmp_path):
    for age, name in enumerate(["new", "middle", "old"]):
        file = tmp_path / f"{name}.m4dview"
        file.write_bytes(bytes(100))
        os.utime(file, (1000 - age, 1000 - age))
    (tmp_path / "other.png").write_bytes(bytes(1000))
    forget_oldest_views(tmp_path, 300)
    assert len(list(tmp_path.iterdir())) == 4
    forget_oldest_views(tmp_path, 199)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["new.m4dview", "other.png"]


def test_convention_view_file_bytes(tmp_path):
    """What docs/view-files.md says, byte for byte."""
    points = PointTracks(
        positions=torch.tensor([[[0.0, 0.0, 2.0], [torch.nan, 0.0, 0.0], [-2.0, 1.0, 2.0]]]),
        colors=torch.tensor([[1.0, 0.0, 0.2], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        visibility=torch.tensor([[True, False, True]]),
    )
    file = tmp_path / "a.m4dview"
    write_view(file, Scene4D(points=points, cameras=cameras(1), fps=8.0))
    data, header = file.read_bytes(), header_of(file)
    assert data[:8] == MAGIC == b"M4DVIEW\0"
    assert np.frombuffer(data[8:16], "<u4")[0] == 1
    length = int(np.frombuffer(data[8:16], "<u4")[1])
    assert length % 8 == 0
    assert header["scale"] == 2
    assert header["center"] == [0, 0, 0]
    body = data[16 + length :]
    blocks = header["blocks"]
    assert [(n, b["offset"], b["shape"]) for n, b in blocks.items()] == [
        ("positions", 0, [1, 3, 3]),
        ("colors", 24, [1, 3, 3]),
        ("shown", 40, [1, 1]),
    ]
    # 32767 + 32768 * d / (1 + |d|) with d = distance / scale: 0, 0, 1; missing; -1, 0.5, 1.
    assert np.frombuffer(body, "<u2", 9).tolist() == [
        32767, 32767, 49151, 65535, 65535, 65535, 16383, 43690, 49151,
    ]  # fmt: skip
    assert list(body[24:33]) == [255, 0, 51, 0, 0, 0, 0, 255, 0]
    assert body[40] == 0b101
