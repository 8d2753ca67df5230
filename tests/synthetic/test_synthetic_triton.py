COMPARISON = """
import torch
from more4d_backend.synthetic import triton_kernels as synthetic_triton
from more4d_backend.synthetic import _pixel_rays, make_world
from more4d_backend.synthetic.surfaces import Pattern
from dataclasses import replace

for seed, setting in ((0, "room"), (1, "landscape"), (4, "room")):
    world = make_world(seed, setting=setting, moving_camera=True)
    objects = [
        replace(o, texture=replace(o.texture, pattern=Pattern(number % 5)))
        for number, o in enumerate(world.objects)
    ]
    world = replace(world, objects=tuple(objects))
    cameras = world.cameras(2, 24, 40)
    caster, rays = world._caster(cameras, world.times(2)), _pixel_rays(cameras, 0.0, 0.0)
    t, surface = caster.cast(rays)
    fused_t, fused_surface = synthetic_triton.cast(
        caster.surfaces.shapes, caster.to_unit, caster.centers, rays
    )
    same = surface == fused_surface
    assert same.float().mean() > 0.999
    torch.testing.assert_close(fused_t[same], t[same], rtol=1e-5, atol=0)
    rgb = caster.colors(rays, t, surface)
    packed = caster.surfaces, caster.to_unit, caster.centers
    fused = synthetic_triton.colors(*packed, rays, t, surface)
    assert rgb.std() > 0.05
    assert ((fused - rgb).abs().amax(-1) > 1e-4).float().mean() < 1e-3
"""


def test_the_fused_kernels_compute_what_plain_torch_does(assert_interpreted):
    assert_interpreted(COMPARISON)
