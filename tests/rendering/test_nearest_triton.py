COMPARISON = """
import torch
from dataclasses import replace
from more4d_backend.camera_paths import PathSettings, scene_path
from more4d_backend.rendering import nearest_triton
from more4d_backend.rendering.reference import nearest_plain
from more4d_backend.rendering.view import point_frames
from more4d_backend.synthetic import make_world

world = make_world(1)
cameras = world.cameras(3, 23, 37)
scene = world.scene(cameras)
path = scene_path("orbit-left", scene, 3, settings=PathSettings(angle_deg=15.0))
tracks = point_frames(scene, slice(0, 3), torch.device("cpu"), draw_unseen=False)
broken = tracks.positions.clone()
broken[0, ::7, 0], broken[1, ::5, 2], broken[2, ::3, 1] = torch.nan, torch.inf, -torch.inf
twice = torch.cat([tracks.positions] * 2, dim=1)
flicker = torch.rand(3, tracks.num_points, 3, generator=torch.Generator().manual_seed(0))
cases = {
    "tracks": tracks,
    "seen by all the cameras": replace(
        tracks, positions=tracks.positions[:1], usable=tracks.usable[:1]
    ),
    "colours of each frame": replace(tracks, colors=flicker),
    "not finite": replace(tracks, positions=broken),
    "behind the camera": replace(tracks, positions=-tracks.positions),
    "equal depths": replace(
        tracks,
        positions=twice,
        usable=tracks.usable.repeat(1, 2),
        colors=torch.cat([tracks.colors, 1 - tracks.colors], dim=1),
    ),
}
for name, points in cases.items():
    plain, fused = nearest_plain(points, path), nearest_triton.nearest(points, path)
    # Neither an interpreter nor every CPU fuses a product with its sum, so a point on the border
    # of two pixels may fall either way, and depth differs in its last bits.
    same = (plain.rgb == fused.rgb).all(-1) & (plain.alpha == fused.alpha)
    assert same.float().mean() > 0.999, (name, same.float().mean())
    torch.testing.assert_close(fused.depth[same], plain.depth[same], rtol=1e-6, atol=0)
    assert (plain.alpha.mean() > 0.3) == (name != "behind the camera"), name
"""


def test_the_fused_kernels_draw_what_plain_torch_does(assert_interpreted):
    assert_interpreted(COMPARISON)
