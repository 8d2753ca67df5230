from dataclasses import replace

import numpy as np
import pytest
import torch

from more4d_backend.files import OutputError
from more4d_backend.geometry import project, transform_points
from more4d_backend.scene_files.points import point_spacing
from more4d_backend.scene_files.usd import linear_from_srgb, save_usd, to_usd_axes

pxr = pytest.importorskip("pxr", reason="usd-core is not installed")
from pxr import Gf, Usd, UsdGeom  # noqa: E402


def opened(path):
    stage = Usd.Stage.Open(str(path))
    return stage, UsdGeom.Points(stage.GetPrimAtPath("/scene/points"))


@pytest.mark.parametrize("suffix", [".usdc", ".usda", ".usd"])
def test_the_stage_states_its_time_axes_and_units(tmp_path, tracks_scene, suffix):
    save_usd(tmp_path / f"a{suffix}", tracks_scene(frames=4))
    stage, _ = opened(tmp_path / f"a{suffix}")
    assert UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.y
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    assert stage.GetTimeCodesPerSecond() == pytest.approx(23.976)
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, 3)
    assert stage.GetDefaultPrim().GetPath() == "/scene"


def test_tracks_keep_their_order_and_unseen_points_have_no_width(tmp_path, tracks_scene):
    scene = tracks_scene(frames=4)
    positions = scene.points.positions.clone()
    visibility = scene.points.visibility.clone()
    positions[:2, 7] = torch.nan
    visibility[:2, 7], visibility[2:, 7] = False, True
    scene = replace(scene, points=replace(scene.points, positions=positions, visibility=visibility))
    save_usd(tmp_path / "a.usdc", scene)
    _, points = opened(tmp_path / "a.usdc")
    colors = np.array(points.GetDisplayColorPrimvar().Get(0))
    assert points.GetDisplayColorPrimvar().GetInterpolation() == UsdGeom.Tokens.vertex
    assert np.allclose(colors, linear_from_srgb(scene.points.colors).numpy(), atol=1e-6)
    assert points.GetDisplayColorPrimvar().GetAttr().GetNumTimeSamples() == 1
    for frame in range(4):
        stored = np.array(points.GetPointsAttr().Get(frame))
        widths = np.array(points.GetWidthsAttr().Get(frame))
        assert np.isfinite(stored).all()
        seen = visibility[frame].numpy()
        expected = positions[frame].numpy()[seen] * [1, -1, -1]
        assert np.array_equal(stored[seen], expected.astype(np.float32))
        assert np.array_equal(widths[seen], point_spacing(scene, frame)[seen].numpy())
        assert not widths[~seen].any()
        low, high = np.array(points.GetExtentAttr().Get(frame))
        assert (low <= stored[seen].min(0)).all()
        assert (high >= stored[seen].max(0)).all()


def test_point_maps_hold_the_valid_points_of_each_frame(tmp_path, point_maps_scene):
    scene = point_maps_scene()
    save_usd(tmp_path / "a.usdc", scene)
    _, points = opened(tmp_path / "a.usdc")
    for frame in range(3):
        valid = scene.points.valid[frame]
        stored = np.array(points.GetPointsAttr().Get(frame))
        assert np.array_equal(stored, to_usd_axes(scene.points.positions[frame][valid]).numpy())
        colors = np.array(points.GetDisplayColorPrimvar().Get(frame))
        expected = linear_from_srgb(scene.points.colors[frame][valid])
        assert np.allclose(colors, expected.numpy(), atol=1e-6)
        assert len(points.GetWidthsAttr().Get(frame)) == len(stored)


def test_the_usd_camera_sees_points_at_the_same_pixels(tmp_path, tracks_scene):
    scene = tracks_scene(frames=3)
    intrinsics = scene.cameras.intrinsics.clone()
    intrinsics[:, 0, 2] += torch.tensor([0.0, 9.0, -4.0])
    intrinsics[:, 1, 2] += torch.tensor([0.0, -5.0, 8.0])
    scene = replace(scene, cameras=replace(scene.cameras, intrinsics=intrinsics))
    save_usd(tmp_path / "a.usda", scene)
    stage, points = opened(tmp_path / "a.usda")
    camera = UsdGeom.Camera(stage.GetPrimAtPath("/scene/camera"))
    height, width = scene.cameras.height, scene.cameras.width
    for frame in range(3):
        frustum = camera.GetCamera(frame).frustum
        to_screen = frustum.ComputeViewMatrix() * frustum.ComputeProjectionMatrix()
        in_camera = transform_points(
            scene.points.positions[frame], scene.cameras.world_to_camera[frame]
        )
        pixels, depth = project(in_camera, intrinsics[frame])
        stored = np.array(points.GetPointsAttr().Get(frame))
        compared = 0
        for i in (depth > 0.5).nonzero()[:, 0].tolist():
            screen = to_screen.Transform(Gf.Vec3d(*stored[i].tolist()))
            pixel = ((screen[0] + 1) / 2 * width, (1 - screen[1]) / 2 * height)
            assert pixel == pytest.approx(pixels[i].tolist(), abs=1e-2)
            compared += 1
        assert compared > 3


def test_convention_usd_axes_and_linear_colors():
    assert to_usd_axes(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, -2, -3]
    srgb = torch.tensor([[0.0, 0.04045, 0.5], [0.25, 0.75, 1.0]])
    linear = torch.tensor([[0.0, 0.0031308, 0.2140411], [0.0508761, 0.5225216, 1.0]])
    assert torch.allclose(linear_from_srgb(srgb), linear, atol=1e-6)


def test_other_suffixes_are_refused_and_an_interrupted_file_is_removed(tmp_path, tracks_scene):
    with pytest.raises(OutputError, match=r"ends in '\.obj'; expected \.usd, \.usdc or \.usda"):
        save_usd(tmp_path / "a.obj", tracks_scene())

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_usd(tmp_path / "a.usdc", tracks_scene(), progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_without_usd_core_the_error_gives_the_pip_line(tmp_path, tracks_scene, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pxr", None)
    with pytest.raises(ModuleNotFoundError, match="pip install usd-core"):
        save_usd(tmp_path / "a.usdc", tracks_scene())
