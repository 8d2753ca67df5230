"""Depth nodes and Scene From Geometry, on worlds whose truth is known."""

import pytest
import torch

pytestmark = pytest.mark.host


def near(found, wanted, tolerance=1e-4):
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


def test_moge_geometry_is_lifted_to_the_true_points_without_what_moge_masks(native_host):
    found = native_host.call("depth_nodes.from_moge")
    near(found["intrinsics"], found["true_intrinsics"][1:2])
    assert not found["valid"][0, :4].any()
    assert found["valid"][0, 4:].all()
    near(found["positions"][0, 4:], found["true_positions"][1, 4:])
    assert torch.equal(found["colors"], found["true_colors"][1:2])
    assert found["depth"].shape == (1, 48, 64, 3)
    assert found["depth"].max() > 0.999
    assert found["depth"][0, :4].max() == 0


def test_depth_anything_3_cameras_are_brought_to_the_pictures_size(native_host):
    found = native_host.call("depth_nodes.from_da3")
    near(found["intrinsics"], found["true_intrinsics"][2:3])
    assert not found["valid"][0, :5].any()  # sky
    near(found["positions"][0, 5:], found["true_positions"][2, 5:])


def test_a_video_of_depth_anything_3_keeps_how_the_camera_moved(native_host):
    found = native_host.call("depth_nodes.video", kind="da3")
    near(found["world_to_camera"], found["true_world_to_camera"])
    assert (found["world_to_camera"][2] - torch.eye(4)).abs().max() > 0.01
    near(found["positions"][:, 5:], found["true_positions"][:, 5:])
    assert not found["valid"][:, :5].any()
    assert found["fps"] == 12
    assert found["confidence"].shape == (3, 48, 64)
    assert found["path_frames"] == 3


def test_a_video_of_moge_stands_still_and_its_field_of_view_can_be_replaced(native_host):
    found = native_host.call("depth_nodes.video", kind="moge")
    near(found["world_to_camera"], torch.eye(4).repeat(3, 1, 1))
    near(found["positions"][:, 4:], found["true_positions"][:, 4:])
    wide = native_host.call("depth_nodes.video", kind="moge", fov_deg=90.0)
    near(wide["intrinsics"][:, 0, 0], torch.full((3,), 32.0))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("panorama", "panorama.*Use Run MoGe Inference"),
        ("index", "batch_index is 3.*expected 0 to 2"),
        ("mono", "field of view"),
        ("mono video", "Set fov_deg.*multiview"),
    ],
)
def test_geometry_that_cannot_be_used_is_refused_with_what_to_do(native_host, what, sentence):
    with pytest.raises(Exception, match=sentence):
        native_host.call("depth_nodes.refused_geometry", what=what)


@pytest.mark.parametrize("encoding", ["disparity 0-1", "depth 0-1", "depth"])
def test_a_depth_image_of_any_encoding_is_read_back_to_camera_z(native_host, encoding):
    found = native_host.call("depth_nodes.from_image", encoding=encoding, near=0.5, far=100.0)
    torch.testing.assert_close(found["z"], found["true_z"], rtol=1e-3, atol=1e-3)
    low, high = found["picture"].aminmax()
    assert low == 0
    assert high > 0.999


def test_a_depth_image_of_another_size_is_refused_with_both_sizes(native_host):
    with pytest.raises(Exception, match=r"24x32 and the image is 48x64.*Resize"):
        native_host.call(
            "depth_nodes.from_image", encoding="depth", near=1.0, far=9.0,
            depth=torch.ones(1, 24, 32, 3),
        )  # fmt: skip


def test_several_depth_images_and_far_before_near_are_refused(native_host):
    with pytest.raises(Exception, match="depth input has 2 pictures"):
        native_host.call(
            "depth_nodes.from_image", encoding="depth", near=1.0, far=9.0,
            depth=torch.ones(2, 48, 64, 3),
        )  # fmt: skip
    with pytest.raises(Exception, match=r"near is 9.0 and far is 2.0"):
        native_host.call("depth_nodes.from_image", encoding="depth 0-1", near=9.0, far=2.0,
                         depth=torch.ones(1, 48, 64, 3))  # fmt: skip


def test_the_embedded_network_lifts_as_it_does_headless(native_host, random_embedded):
    image = torch.rand(48, 64, 3, generator=torch.Generator().manual_seed(0))
    found = native_host.call("depth_nodes.tiny_depth", folder=str(random_embedded), image=image)
    torch.testing.assert_close(found["positions"], found["wanted"], rtol=1e-4, atol=1e-5)


def test_unidepth_is_refused_with_its_pip_line_until_it_is_installed(native_host, tmp_path):
    found = native_host.call("depth_nodes.unidepth", models=str(tmp_path))
    assert "pip install --no-deps git+https" in found["before"]
    assert found["after"] is True
    assert "nothing.safetensors" in found["wrong"]
    assert torch.equal(found["z"], torch.full((1, 48, 64), 3.0))
    assert found["intrinsics"][0, 0, 0] == 50


def test_the_hosts_own_depth_anything_3_speaks_of_its_networks_size(native_host):
    """The reason for what `convert` does; this fails when the host changes it."""
    found = native_host.call("depth_nodes.cameras_of_the_hosts_network")
    # Pictures of 160x90 are seen at 140x84, multiples of 14.
    assert found["host_intrinsics"][0, :2, 2].tolist() == [70, 42]
    assert found["intrinsics"][0, :2, 2].tolist() == [80, 45]
    ratio = found["intrinsics"][0] / found["host_intrinsics"][0]
    torch.testing.assert_close(ratio[[0, 1], [0, 1]], torch.tensor([160 / 140, 90 / 84]))
    near(found["world_to_camera"][0], torch.eye(4))
