"""A picture as points at the networks' size, from depth or from a scene of one frame."""

import dataclasses

import pytest
import torch

from more4d_backend.depth.lifting import DepthError, lift_depth
from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene import Cameras, Scene4D
from more4d_backend.shapes import ShapeError
from more4d_backend.strag.lifted import lift_fitted, lift_scene, moved_scene
from more4d_backend.strag.profile import OWN, RELEASED
from more4d_backend.wan.fitting import fit_to_size
from more4d_backend.wan.sampling import SamplingError

HEIGHT, WIDTH = 20, 50


def photo(pose=None):
    g = torch.Generator().manual_seed(0)
    image = torch.rand(HEIGHT, WIDTH, 3, generator=g)
    depth = 1 + torch.rand(HEIGHT, WIDTH, generator=g)
    depth[:2] = torch.nan
    camera = Cameras(
        world_to_camera=(torch.eye(4) if pose is None else pose)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([40.0]), HEIGHT, WIDTH),
        height=HEIGHT,
        width=WIDTH,
    )
    return image, depth, camera


def same(found, wanted):
    torch.testing.assert_close(found.positions, wanted.positions)
    assert torch.equal(found.valid, wanted.valid)
    torch.testing.assert_close(found.fitted.image, wanted.fitted.image)
    torch.testing.assert_close(found.fitted.camera.intrinsics, wanted.fitted.camera.intrinsics)
    usable = wanted.valid
    torch.testing.assert_close(found.fitted.depth[usable], wanted.fitted.depth[usable])
    assert (found.fitted.rows, found.fitted.columns) == (wanted.fitted.rows, wanted.fitted.columns)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size_hw", [(32, 48), (20, 50), (64, 64)])
def test_a_scene_of_one_frame_lifts_as_its_depth_does(size_hw, fit):
    image, depth, camera = photo()
    wanted = lift_fitted(fit_to_size(image, depth, camera, size_hw, fit))
    same(lift_scene(lift_depth(image, depth, camera), image, size_hw, fit), wanted)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_lifted_picture_comes_back_from_its_own_scene(fit):
    image, depth, camera = photo()
    wanted = lift_fitted(fit_to_size(image, depth, camera, (32, 48), fit))
    scene = wanted.scene(8.0)
    same(lift_scene(scene, scene.points.colors[0], (32, 48), "pad"), wanted)


def test_a_scene_keeps_its_place_in_the_world():
    pose = torch.tensor([[0.0, 0, 1, 2], [0, 1, 0, -1], [-1, 0, 0, 3], [0, 0, 0, 1]])
    image, depth, camera = photo(pose)
    scene = lift_depth(image, depth, camera)
    lifted = lift_scene(scene, image, (HEIGHT, WIDTH))
    valid = scene.points.valid[0]
    torch.testing.assert_close(lifted.positions[valid], scene.points.positions[0][valid])


def test_points_that_were_left_out_stay_left_out_but_keep_their_depth():
    image, depth, camera = photo()
    scene = lift_depth(image, depth, camera)
    valid = scene.points.valid.clone()
    valid[:, 5:9, 10:20] = False
    scene = dataclasses.replace(scene, points=dataclasses.replace(scene.points, valid=valid))
    lifted = lift_scene(scene, image, (HEIGHT, WIDTH))
    assert torch.equal(lifted.valid, valid[0])
    torch.testing.assert_close(lifted.fitted.depth[5:9, 10:20], depth[5:9, 10:20])


def test_only_one_frame_with_a_point_per_pixel_of_the_image_is_taken(tracks_scene):
    image, depth, camera = photo()
    scene = lift_depth(image, depth, camera)
    with pytest.raises(ShapeError, match="2 frames of one point per pixel"):
        lift_scene(scene.frames([0, 0]), image, (32, 48))
    with pytest.raises(ShapeError, match="5 frames of tracks"):
        lift_scene(tracks_scene(), image, (32, 48))
    with pytest.raises(ShapeError, match="20x50 and the image is 19x50"):
        lift_scene(scene, image[1:], (32, 48))


def test_nothing_valid_is_refused():
    image, depth, camera = photo()
    scene = lift_depth(image, depth, camera)
    points = dataclasses.replace(scene.points, valid=torch.zeros_like(scene.points.valid))
    empty = Scene4D(points=points, cameras=scene.cameras, fps=8.0)
    with pytest.raises(DepthError, match="No point of the scene is valid"):
        lift_scene(empty, image, (32, 48))


def test_no_motion_leaves_every_point_where_it_is():
    image, depth, camera = photo()
    lifted = lift_fitted(fit_to_size(image, depth, camera, (32, 48), "pad"))
    for profile in (OWN, RELEASED):
        scene = moved_scene(torch.zeros(5, 32, 48, 3), lifted, profile, fps=8.0)
        rows, columns = lifted.fitted.rows, lifted.fitted.columns
        start = lifted.positions[rows, columns].flatten(0, 1)
        torch.testing.assert_close(scene.points.positions, start.expand(5, -1, -1))
        assert scene.points.grid_hw == (rows.stop - rows.start, columns.stop - columns.start)


def test_motion_that_is_not_finite_is_refused():
    image, depth, camera = photo()
    lifted = lift_fitted(fit_to_size(image, depth, camera, (32, 48), "crop"))
    with pytest.raises(SamplingError, match="NaN or infinity"):
        moved_scene(torch.full((5, 32, 48, 3), torch.nan), lifted, OWN, fps=8.0)
