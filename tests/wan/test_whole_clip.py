import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from more4d_backend.wan.latents import decode_video, encode_video
from more4d_backend.wan.whole_clip import run_whole_clips

diffusers = pytest.importorskip("diffusers", reason="the VAE is diffusers'")


@pytest.fixture(scope="module")
def vaes():
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    torch.manual_seed(0)
    in_chunks = AutoencoderKLWan(base_dim=4).eval()
    return in_chunks, run_whole_clips(copy.deepcopy(in_chunks))


@pytest.mark.parametrize("num_frames", [1, 5, 13])
@torch.no_grad()
def test_a_whole_clip_has_the_latents_and_the_picture_of_chunks(vaes, num_frames):
    in_chunks, whole = vaes
    video = torch.rand(2, 3, num_frames, 16, 32) * 2 - 1
    latent = encode_video(in_chunks, video)
    torch.testing.assert_close(encode_video(whole, video), latent, atol=1e-5, rtol=0)
    decoded = decode_video(in_chunks, 3 * latent, clamp=False)
    torch.testing.assert_close(
        decode_video(whole, 3 * latent, clamp=False), decoded, atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_decoding_is_clamped_only_where_it_is_asked_for(vaes):
    _, whole = vaes
    latent = 20 * torch.randn(1, 16, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    assert decode_video(whole, latent).abs().max() <= 1
    torch.testing.assert_close(
        decode_video(whole, latent), decode_video(whole, latent, clamp=False).clamp(-1, 1)
    )


def test_gradients_reach_both_ends(vaes):
    _, whole = vaes
    video = torch.rand(1, 3, 5, 16, 16, requires_grad=True)
    decode_video(whole, encode_video(whole, video), clamp=False).sum().backward()
    assert video.grad is not None
    assert video.grad[:, :, -1].abs().max() > 0


def test_tiling_is_refused(vaes):
    tiled = copy.deepcopy(vaes[0])
    tiled.enable_tiling()
    with pytest.raises(ValueError, match="use_tiling=True"):
        run_whole_clips(tiled)


_COMPILED = """
import copy, functools, json
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch._dynamo.utils import counters
from more4d_backend.wan.latents import decode_video, encode_video
from more4d_backend.wan.whole_clip import run_whole_clips

torch.compile = functools.partial(torch.compile, backend="eager")
torch.manual_seed(0)
plain = run_whole_clips(AutoencoderKLWan(base_dim=4))
compiled = run_whole_clips(copy.deepcopy(plain), compiled=True)
found = []
for num_frames in (1, 9, 9):
    video, made = torch.rand(1, 3, num_frames, 16, 16), []
    for vae in (plain, compiled):
        latent = encode_video(vae, video)
        decoded = decode_video(vae, latent, clamp=False)
        (gradient,) = torch.autograd.grad(decoded.square().mean(), vae.encoder.conv_in.weight)
        made.append((latent, decoded, gradient))
    off = max(float((a - b).abs().max()) for a, b in zip(*made))
    found.append([off, counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())])
print(json.dumps(found))
"""


def test_a_compiled_vae_is_one_graph_each_way_for_every_size_and_computes_the_same():
    # In a process of its own: the checks of annotations, which tests have, cannot be compiled.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [graphs for _, graphs, _ in found] == [2, 4, 4]
    assert all(off < 1e-6 and breaks == 0 for off, _, breaks in found), found
