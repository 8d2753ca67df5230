import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend.geometry import align_similarity, project, transform_points
from more4d_backend.scene import Cameras, PointTracks
from more4d_backend.shapes import ShapeError
from more4d_backend.synthetic import SKY, SyntheticWorld, make_world
from more4d_backend.synthetic import casting as synthetic_casting
from more4d_backend.synthetic.actors import MOTIONS, Dice, SyntheticObject, solid_actor
from more4d_backend.synthetic.layout import CameraMotion
from more4d_backend.synthetic.motions import Motion, object_to_stage
from more4d_backend.synthetic.surfaces import Pattern, Shape, Texture, intersect, normals

TEXTURE = Texture(
    pattern=Pattern.CHECKER, color_low=(0.8, 0.2, 0.1), color_high=(1.0, 0.9, 0.8), frequency=5.0
)
BIG = dict(num_frames=5, height=36, width=48, dtype=torch.float64)


def solid(shape: Shape, size: float, **motion) -> SyntheticObject:
    half_size = (size, size, size)
    return SyntheticObject(
        name="test", shape=shape, half_size_m=half_size, texture=TEXTURE, motion=Motion(**motion)
    )


def world_of(*objects: SyntheticObject, sky_radius_m: float | None = 40.0) -> SyntheticWorld:
    """The camera stands at the stage's origin and looks along +z: stage and world agree."""
    return SyntheticWorld(
        objects=objects,
        sky=TEXTURE,
        sky_radius_m=sky_radius_m,
        light=(0.0, -1.0, 0.0),
        waves=((1.0, 0.0, 0.0),) * 4,
        camera_motion=CameraMotion(position=(0.0, 0.0, 0.0), target=(0.0, 0.0, 1.0)),
        fps=1.0,
    )


def one_pixel_cameras(cameras: Cameras, tracks: PointTracks) -> tuple[Cameras, torch.Tensor]:
    """One 1x1 camera per visible (frame, point), its pixel's centre exactly on the point."""
    frame, point = tracks.visibility.nonzero(as_tuple=True)
    world_to_camera, intrinsics = cameras.world_to_camera[frame], cameras.intrinsics[frame].clone()
    pixel, depth = project(
        transform_points(tracks.positions[frame, point], world_to_camera), intrinsics
    )
    intrinsics[:, :2, 2] += 0.5 - pixel
    shifted = Cameras(world_to_camera=world_to_camera, intrinsics=intrinsics, height=1, width=1)
    return shifted, depth


@pytest.mark.parametrize("seed", range(4))
def test_a_visible_point_has_the_depth_and_the_color_that_its_pixel_sees(seed):
    world = make_world(seed, moving_camera=True)
    cameras = world.cameras(**BIG)
    tracks = world.tracks(cameras)
    frame, point = tracks.visibility.nonzero(as_tuple=True)
    shifted, depth = one_pixel_cameras(cameras, tracks)
    seen = world.view(shifted, world.times(cameras.num_frames)[frame])
    torch.testing.assert_close(seen.depth.flatten(), depth, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(
        seen.positions.reshape(-1, 3), tracks.positions[frame, point], atol=1e-8, rtol=1e-8
    )
    # A point on the edge of a box belongs to two faces; rounding decides which lights it.
    off = (seen.rgb.reshape(-1, 3) - tracks.colors[point]).abs().amax(-1)
    assert (off > 1e-7).float().mean() < 1e-3
    assert tracks.visibility[0].all()
    assert not tracks.visibility.all()


def test_tracks_start_at_the_pixels_of_frame_0():
    world = make_world(2, moving_camera=True)
    cameras = world.cameras(3, 30, 40, dtype=torch.float64)
    scene, view = world.scene(cameras, samples=2), world.view(cameras, samples=2)
    assert scene.points.grid_hw == (30, 40)
    torch.testing.assert_close(scene.points.positions[0], view.positions[0].reshape(-1, 3))
    torch.testing.assert_close(scene.points.colors, view.rgb[0].reshape(-1, 3))
    torch.testing.assert_close(view.point_maps().positions, view.positions)


def test_a_ball_that_passes_before_a_wall_hides_it_and_nothing_else_does():
    wall = solid(Shape.BOX, 3.0, position=(0.0, 0.0, 8.0))
    ball = solid(Shape.SPHERE, 0.5, position=(-2.0, 0.0, 3.0), velocity=(1.0, 0.0, 0.0))
    world = world_of(wall, ball)
    cameras = world.cameras(5, 33, 33, dtype=torch.float64)
    tracks = world.tracks(cameras)
    middle = 16 * 33 + 16
    assert tracks.visibility[:, middle].tolist() == [True, True, False, True, True]
    assert tracks.positions[:, middle].tolist() == [[0.0, 0.0, 5.0]] * 5
    view = world.view(cameras)
    assert view.depth[:, 16, 16].tolist() == pytest.approx([5.0, 5.0, 2.5, 5.0, 5.0])
    assert view.object_index[:, 16, 16].tolist() == [0, 0, 1, 0, 0]


def test_the_back_of_a_turning_ball_is_not_visible():
    world = world_of(solid(Shape.SPHERE, 1.0, position=(0.0, 0.0, 5.0), spin_rad_s=math.pi))
    cameras = world.cameras(2, 33, 33, dtype=torch.float64)
    tracks = world.tracks(cameras)
    middle = 16 * 33 + 16
    torch.testing.assert_close(
        tracks.positions[:, middle], torch.tensor([[0, 0, 4.0], [0, 0, 6.0]]).double()
    )
    assert tracks.visibility[:, middle].tolist() == [True, False]


def test_points_that_leave_the_image_are_not_visible():
    world = world_of(solid(Shape.BOX, 1.0, position=(0.0, 0.0, 5.0), velocity=(10.0, 0.0, 0.0)))
    tracks = world.tracks(world.cameras(2, 17, 17))
    on_box = tracks.motion[1, :, 0] > 0
    assert on_box.any()
    assert not tracks.visibility[1, on_box].any()


def test_only_the_camera_moves_in_a_world_without_actors():
    world = make_world(5, num_objects=0, moving_camera=True)
    cameras = world.cameras(**BIG)
    tracks = world.tracks(cameras)
    assert tracks.motion.abs().max() == 0
    torch.testing.assert_close(cameras.world_to_camera[0], torch.eye(4).double())
    assert cameras.world_to_camera[-1, :3, 3].norm() > 0.05
    assert not tracks.visibility.all()


@pytest.mark.parametrize("seed", range(3))
def test_points_of_an_object_move_as_one_similarity(seed):
    world = make_world(seed)
    cameras = world.cameras(**BIG)
    tracks = world.tracks(cameras)
    index = world.view(cameras.frames([0])).object_index.flatten()
    poses = world.poses(world.times(cameras.num_frames))
    for number in index[index != SKY].unique().tolist():
        points = tracks.positions[:, index == number]
        if len(points[0]) < 10:
            continue
        scale, rotation, translation = align_similarity(points[:1].expand_as(points), points)
        moved = torch.einsum("fij,fpj->fpi", rotation, points[:1].expand_as(points))
        fitted = scale[:, None, None] * moved + translation[:, None]
        torch.testing.assert_close(fitted, points, atol=1e-8, rtol=1e-8)
        expected = poses[:, number] @ torch.linalg.inv(poses[0, number])
        torch.testing.assert_close(
            transform_points(points[:1], expected[:, None]), points, atol=1e-8, rtol=1e-8
        )


def test_equal_seeds_give_equal_worlds_and_other_seeds_others():
    one, again, other = make_world(3), make_world(3), make_world(4)
    assert one == again
    assert one != other
    cameras = one.cameras(2, 24, 32)
    torch.testing.assert_close(one.view(cameras).rgb, again.view(cameras).rgb, atol=0, rtol=0)


def test_how_rays_are_split_into_chunks_makes_no_difference(monkeypatch):
    world = make_world(3)
    cameras = world.cameras(3, 20, 30, dtype=torch.float64)
    whole, tracks = world.view(cameras), world.tracks(cameras)
    for budget in (500, 20_000):  # parts of a frame; a frame at a time, and the last alone
        monkeypatch.setattr(synthetic_casting, "_CPU_BUDGET", budget)
        split = world.view(cameras)
        assert torch.equal(split.object_index, whole.object_index)
        torch.testing.assert_close(split.depth, whole.depth)
        torch.testing.assert_close(split.rgb, whole.rgb)
        assert torch.equal(world.tracks(cameras).visibility, tracks.visibility)


def test_no_points_are_seen_nowhere():
    world = make_world(3)
    assert world.sees(world.cameras(2, 8, 8), torch.zeros(2, 0, 3)).shape == (2, 0)


def test_float32_and_float64_agree():
    world = make_world(7)
    single = world.view(world.cameras(2, 48, 64))
    double = world.view(world.cameras(2, 48, 64, dtype=torch.float64))
    same = single.object_index == double.object_index
    assert same.float().mean() > 0.999
    relative = (single.depth - double.depth).abs() / double.depth
    assert relative[same].max() < 1e-5  # measured: 2e-6
    assert (single.rgb - double.rgb).abs()[same].quantile(0.999) < 1e-3


@pytest.mark.parametrize(
    ("shape", "depth"),
    [(Shape.PLANE, 5.0), (Shape.SPHERE, 4.0), (Shape.BOX, 4.0), (Shape.CYLINDER, 4.0)],
)
def test_each_shape_is_where_it_is_put(shape, depth):
    world = world_of(solid(shape, 1.0, position=(0.0, 0.0, 5.0)), sky_radius_m=None)
    view = world.view(world.cameras(1, 65, 65, dtype=torch.float64))
    assert view.depth[0, 32, 32].item() == pytest.approx(depth)
    # The outermost ray that still meets it, against the silhouette's tangent.
    fx = view.cameras.intrinsics[0, 0, 0].item()
    columns = (view.object_index[0, 32] == 0).nonzero().flatten()
    edge = {Shape.SPHERE: 1 / math.sqrt(24), Shape.CYLINDER: 1 / math.sqrt(24)}.get(
        shape, 1 / depth
    )
    assert columns[-1].item() + 0.5 - 32.5 == pytest.approx(fx * edge, abs=1)


shapes = st.sampled_from(list(Shape))


@given(shape=shapes, seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_a_ray_ends_on_the_surface_and_meets_it_from_outside(shape, seed):
    dice = Dice(seed)
    origin = 3 * torch.nn.functional.normalize(dice.vectors(64), dim=-1) * 2
    direction = dice.vectors(64) * 0.5 - origin  # most of them hit
    t = intersect(shape, origin, direction)
    hit = t.isfinite()
    points = (origin + t[:, None] * direction)[hit]
    distance = {
        Shape.PLANE: points[:, 2],
        Shape.SPHERE: points.norm(dim=-1) - 1,
        Shape.BOX: points.abs().amax(-1) - 1,
        Shape.CYLINDER: torch.maximum(points[:, ::2].norm(dim=-1), points[:, 1].abs()) - 1,
    }[shape]
    torch.testing.assert_close(distance, torch.zeros_like(distance), atol=1e-9, rtol=0)
    outward = normals(torch.full((len(points),), int(shape)), points)
    assert ((outward * direction[hit]).sum(-1) <= 1e-9).all()


def test_misses_are_infinite_and_inside_or_behind_counts_as_a_miss():
    ahead = torch.tensor([0.0, 0.0, 1.0])
    for shape in (Shape.SPHERE, Shape.BOX, Shape.CYLINDER):
        for origin in ([0.0, 0.0, 0.0], [0.0, 0.0, 3.0], [1.5, 0.0, -3.0]):
            assert intersect(shape, torch.tensor(origin), ahead).isinf()
        assert intersect(shape, torch.tensor([0.0, 0.0, -3.0]), ahead).item() == 2.0
    plane_from_behind = intersect(Shape.PLANE, torch.tensor([0.0, 0.0, 3.0]), -ahead)
    assert plane_from_behind.isinf()


def test_a_dome_has_depth_and_an_endless_sky_has_none():
    ball = solid(Shape.SPHERE, 1.0, position=(0.0, 0.0, 5.0))
    dome, endless = world_of(ball), world_of(ball, sky_radius_m=None)
    cameras = dome.cameras(2, 16, 24, dtype=torch.float64)
    near, far = dome.view(cameras), endless.view(cameras)
    sky = near.object_index == SKY
    assert sky.any()
    torch.testing.assert_close(
        near.positions[sky].norm(dim=-1), torch.tensor(40.0).double().expand(int(sky.sum()))
    )
    assert near.valid.all()
    assert torch.equal(far.valid, ~sky)
    assert far.positions.isfinite().all()
    torch.testing.assert_close(near.rgb, far.rgb)  # seen from the dome's middle
    tracks = endless.tracks(cameras)
    assert torch.equal(tracks.visibility[0], ~sky[0].flatten())


def test_more_samples_are_the_mean_of_a_finer_image():
    world = make_world(1)
    cameras = world.cameras(2, 24, 32, dtype=torch.float64)
    coarse = world.view(cameras, samples=3)
    fine = world.view(cameras.resized(72, 96))
    mean = fine.rgb.reshape(2, 24, 3, 32, 3, 3).mean((2, 4))
    torch.testing.assert_close(coarse.rgb, mean, atol=1e-9, rtol=0)
    assert torch.equal(coarse.depth, world.view(cameras).depth)


def test_light_is_baked_so_a_lit_face_stays_lit_when_it_turns():
    plain = replace(TEXTURE, color_low=(0.5, 0.5, 0.5), color_high=(0.5, 0.5, 0.5))
    turning = solid(Shape.BOX, 1.0, position=(-1.5, 0.0, 5.0), spin_rad_s=math.pi / 2)
    swollen = solid(
        Shape.BOX,
        0.5,
        position=(1.5, 0.0, 5.0),
        quaternion_wxyz=(0.0, 0.0, 1.0, 0.0),
        pulse=math.log(2),
        phase_rad=math.pi / 2,
    )
    boxes = [replace(box, texture=plain) for box in (turning, swollen)]
    world = replace(world_of(*boxes), light=(0.0, 0.0, -1.0))
    view = world.view(world.cameras(4, 17, 17))
    assert view.object_index[0, 8, 3:14:9].tolist() == [0, 1]
    front, right, back, left = view.rgb[:, 8, 3, 0].tolist()
    assert front > right + 0.05 > back + 0.1
    assert right == pytest.approx(left)
    assert view.rgb[0, 8, 12, 0].item() == pytest.approx(front)


@pytest.mark.parametrize("name", MOTIONS)
def test_actors_do_what_their_name_says_and_keep_to_the_ground(name):
    actor = solid_actor(Dice(5), name, (0.5, 4.0), 0.3, 6.0)
    times = torch.linspace(0, 6, 601)
    pose = object_to_stage([actor.motion], times)[:, 0]
    position, first = pose[:, :3, 3], pose[0, :3, 3]
    size = torch.linalg.det(pose[:, :3, :3]).pow(1 / 3)
    near_side = -pose[:, 0, 2]  # x of the side that faced the camera
    facts = {
        "stays still": (pose == pose[0]).all(),
        "moves left": position[-1, 0] < first[0] - 0.9,
        "moves right": position[-1, 0] > first[0] + 0.9,
        "comes closer": position[-1, 2] < first[2] - 0.7,
        "moves away": position[-1, 2] > first[2] + 0.9,
        "turns left": near_side[1] < near_side[0],
        "turns right": near_side[1] > near_side[0],
        "bounces": position[:, 1].max() - position[:, 1].min() > 0.65,
        "sways": position[:, 0].max() - position[:, 0].min() > 0.6,
        "rocks": (pose[:, 0, 1] / size).abs().max() > 0.25,
        "grows": (size.diff() > 0).all(),
        "shrinks": (size.diff() < 0).all(),
        "breathes": (size.max() > 1.1) & (size.min() < 0.9),
    }
    assert facts[name]
    feet = transform_points(torch.tensor(actor.motion.pivot, dtype=torch.float64), pose)
    assert feet[:, 1].max() < 1e-9


def test_a_limb_stays_in_its_joint_while_the_figure_walks():
    world = make_world(0)
    numbers = [i for i, o in enumerate(world.objects) if o.motion.parent >= 0]
    assert numbers
    poses = object_to_stage([o.motion for o in world.objects], torch.linspace(0, 6, 20))
    for number in numbers:
        motion = world.objects[number].motion
        joint = transform_points(torch.tensor(motion.pivot, dtype=torch.float64), poses[:, number])
        on_trunk = transform_points(
            torch.tensor(motion.position, dtype=torch.float64), poses[:, motion.parent]
        )
        torch.testing.assert_close(joint, on_trunk, atol=1e-9, rtol=1e-9)


def test_most_actors_are_in_view_from_first_to_last():
    shares = []
    for seed in range(12):
        world = make_world(seed)
        actors = [i for i, o in enumerate(world.objects) if o.name.startswith("a ")]
        cameras = world.cameras(3, 36, 48)
        seen = world.view(cameras, torch.tensor([0.0, 3.0, 6.0])).object_index
        shares += [float((frame == i).any()) for i in actors for frame in seen]
    assert sum(shares) / len(shares) > 0.8  # measured: 0.91; the rest hides behind another actor


def test_an_unknown_setting_and_a_wrong_number_of_times_are_refused(as_users_run_it):
    with pytest.raises(ValueError, match=r"setting is 'sea'; expected one of room, landscape"):
        make_world(0, setting="sea")
    with pytest.raises(ValueError, match="num_objects is -1"):
        make_world(0, num_objects=-1)
    world = make_world(0)
    with pytest.raises(ShapeError, match="times_s has 2 entries and cameras has 3 frames"):
        world.view(world.cameras(3, 8, 8), torch.zeros(2))
    with pytest.raises(ValueError, match="samples is 0"):
        world.view(world.cameras(1, 8, 8), samples=0)
    late = solid(Shape.BOX, 1.0, position=(0.0, 0.0, 5.0), parent=0)
    with pytest.raises(ValueError, match=r"Object 0 \(test\) has parent 0"):
        world_of(late)
    with pytest.raises(ValueError, match="at least one object"):
        replace(world, objects=())
