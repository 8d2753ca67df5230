"""The reference's paths; their numbers are compared in tests/parity."""

import logging

import pytest
import torch

from more4d_backend.camera_paths import CameraPathError
from more4d_backend.camera_paths.presets import CAMERA_PRESETS
from more4d_backend.camera_paths.reference_paths import REFERENCE_ALTERNATIVES, REFERENCE_PATHS


@pytest.mark.parametrize("name", REFERENCE_ALTERNATIVES)
def test_the_names_that_the_reference_has_no_code_for_are_refused_with_one_of_ours(path, name):
    with pytest.raises(
        CameraPathError, match=r"only as a name, without code\. The nearest of ours"
    ):
        path(name)
    assert REFERENCE_ALTERNATIVES[name] in CAMERA_PRESETS


def test_the_six_names_without_code_are_the_known_ones():
    names = {"mix1", "mix2", "anti-surrounding", "circular", "y_moving", "x_moving"}
    assert set(REFERENCE_ALTERNATIVES) == names


@pytest.mark.parametrize("name", REFERENCE_PATHS)
def test_the_reference_paths_are_relative_to_the_input_view(one_camera, random_pose, path, name):
    pose = random_pose(8)
    here = path(name, pivot=(0.1, 0.2, 3.0))
    there = path(name, start=one_camera(pose), pivot=(0.1, 0.2, 3.0))
    torch.testing.assert_close(there.world_to_camera, here.world_to_camera @ pose)
    assert torch.equal(there.intrinsics, there.intrinsics[:1].expand(9, 3, 3))


def test_settings_that_a_formula_does_not_know_are_said_to_have_no_effect(path, caplog):
    with caplog.at_level(logging.WARNING):
        path("surrounding", amplitude=2.0, ease="in", loop=True)
    for field in ("amplitude", "ease", "loop"):
        assert f"{field} has no effect on the camera path surrounding" in caplog.text
    assert "angle_deg" not in caplog.text
