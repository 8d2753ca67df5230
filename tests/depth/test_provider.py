import logging
import math

import numpy as np
import pytest
import torch

from more4d_backend.depth import (
    PROVIDERS,
    DepthError,
    DepthFile,
    DepthPrediction,
    DepthProviderError,
    lift_prediction,
    provider_class,
)
from more4d_backend.files.depth_maps import save_depth_png16

IMAGE = torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(0))
INTRINSICS = torch.tensor([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]])


def prediction(intrinsics=None) -> DepthPrediction:
    depth = torch.full((24, 32), 2.0)
    depth[0, 0] = torch.inf
    return DepthPrediction(depth=depth, intrinsics=intrinsics, provider="a stub", is_metric=True)


def test_predicted_intrinsics_are_used():
    scene = lift_prediction(IMAGE, prediction(INTRINSICS))
    assert torch.equal(scene.cameras.intrinsics[0], INTRINSICS)
    assert torch.equal(scene.points.valid[0], prediction().valid)
    assert not scene.points.valid[0, 0, 0]


def test_a_field_of_view_given_by_the_user_wins_and_that_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        scene = lift_prediction(IMAGE, prediction(INTRINSICS), fov_rad=math.pi / 2)
    assert scene.cameras.intrinsics[0, 0, 0].item() == pytest.approx(16.0)
    assert "replaces that of a stub" in caplog.text


def test_depth_without_a_camera_needs_a_field_of_view():
    with pytest.raises(DepthError, match=r"a stub gives depth without a camera.*field of view"):
        lift_prediction(IMAGE, prediction())
    scene = lift_prediction(IMAGE, prediction(), fov_rad=math.pi / 2)
    assert scene.cameras.intrinsics[0].tolist() == [[16, 0, 16], [0, 16, 12], [0, 0, 1]]


def test_a_depth_file_is_a_provider(tmp_path):
    depth = torch.linspace(0.5, 8, 24 * 32).reshape(24, 32)
    depth[3, 4] = 0
    save_depth_png16(tmp_path / "depth.png", depth)
    found = DepthFile(path=tmp_path / "depth.png", intrinsics=INTRINSICS).predict(IMAGE)
    torch.testing.assert_close(found.depth, depth, atol=0.0005001, rtol=0)
    assert not found.valid[3, 4]
    assert found.valid.sum() == 24 * 32 - 1
    assert torch.equal(found.intrinsics, INTRINSICS)
    np.save(tmp_path / "depth.npy", (depth * 100).round().numpy().astype(np.uint16))
    found = DepthFile(path=tmp_path / "depth.npy", unit_m=0.01).predict(IMAGE)
    torch.testing.assert_close(found.depth, depth, atol=0.005001, rtol=0)
    assert found.intrinsics is None


def test_a_depth_file_of_another_size_is_refused_with_both_sizes(tmp_path):
    np.save(tmp_path / "depth.npy", np.ones((12, 16), np.float32))
    with pytest.raises(DepthError, match=r"depth map is 12x16 and the image is 24x32"):
        DepthFile(path=tmp_path / "depth.npy").predict(IMAGE)


def test_an_unknown_provider_is_refused_with_the_nearest_name():
    with pytest.raises(DepthProviderError, match=r"no depth provider 'depthpro'.*'depth-pro'"):
        provider_class("depthpro")
    for name, kind in PROVIDERS.items():
        assert provider_class(name) is kind
        assert kind.name == name
