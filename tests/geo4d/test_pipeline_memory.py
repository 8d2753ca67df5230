"""What a reconstruction needs of memory, and what happens where that is not there."""

import logging
from dataclasses import replace

import pytest
import torch

from more4d_backend.devices import DeviceMemoryError
from more4d_backend.geo4d import pipeline
from more4d_backend.geo4d.alignment.samples import sample_bytes
from more4d_backend.geo4d.decoding import decode_windows, window_bytes
from more4d_backend.geo4d.framing import plan_framing
from more4d_backend.geo4d.pipeline import ReconstructionError, reconstruct, sample_windows
from more4d_backend.geo4d.remapping import aligned_bytes, scene_bytes
from more4d_backend.geo4d.windows import plan_windows


class Full:
    """Makes a call fail as a full GPU does, for batches above a size."""

    def __init__(self, call, most: int, count) -> None:
        self.call, self.most, self.count, self.tried = call, most, count, []

    def __call__(self, *arguments, **options):
        size = self.count(*arguments)
        self.tried.append(size)
        if size > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.call(*arguments, **options)


def test_where_memory_runs_out_fewer_windows_are_sampled_at_one_time(
    toy_networks, one_step, prepared, monkeypatch, caplog
):
    _, video, windows = prepared(toy_networks, 9)
    settings = replace(one_step, windows_per_batch=6)
    expected = sample_windows(toy_networks, video, windows, settings)
    full = Full(pipeline.sample_latents, 2, lambda _networks, videos, _noise: len(videos))
    monkeypatch.setattr(pipeline, "sample_latents", full)
    with caplog.at_level(logging.WARNING):
        found = sample_windows(toy_networks, video, windows, settings)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert full.tried == [6, 3, 1, 1, 1, 1, 1, 1]
    assert "ran out of memory with 6 windows at one time; going on with 3" in caplog.text


def test_where_not_even_one_window_fits_the_message_says_what_to_do(
    toy_networks, one_step, prepared, monkeypatch
):
    _, video, windows = prepared(toy_networks, 5)
    monkeypatch.setattr(pipeline, "sample_latents", Full(None, 0, lambda *_: 1))
    with pytest.raises(DeviceMemoryError, match=r"one of the windows\. Use a smaller network size"):
        sample_windows(toy_networks, video, windows, one_step)


def test_where_memory_runs_out_fewer_pictures_are_decoded_at_one_time(
    toy_networks, monkeypatch, caplog
):
    framing = plan_framing((48, 64), toy_networks.size)
    latents = torch.randn(1, 16, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    windows = plan_windows(4, 1, 4)
    (expected,) = decode_windows(toy_networks, latents, windows, framing)
    full = Full(toy_networks.vae.decode_points, 1, len)
    monkeypatch.setattr(toy_networks.vae, "decode_points", full)
    (found,) = decode_windows(toy_networks, latents, windows, framing)
    torch.testing.assert_close(found.points, expected.points, atol=2e-3, rtol=1e-3)
    assert full.tried[:3] == [4, 2, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    toy_networks, one_step, prepared, monkeypatch
):
    _, video, windows = prepared(toy_networks, 5)

    def broken(*_arguments, **_options):
        raise RuntimeError("CUDA error: an illegal instruction was encountered")

    monkeypatch.setattr(pipeline, "sample_latents", broken)
    with pytest.raises(RuntimeError, match="illegal instruction"):
        sample_windows(toy_networks, video, windows, one_step)


def scene_nbytes(scene) -> int:
    points = scene.points
    parts = (points.positions, points.colors, points.valid, points.confidence)
    return sum(part.nbytes for part in parts)


@pytest.mark.parametrize("resolution", ["source", "network"])
def test_memory_of_a_scene_is_what_its_arrays_take(
    toy_networks, one_step, clip, monkeypatch, resolution
):
    seen = []
    original = pipeline.align_windows
    spy = lambda *a, **o: seen.append(original(*a, **o)) or seen[-1]  # noqa: E731
    monkeypatch.setattr(pipeline, "align_windows", spy)
    settings = replace(one_step, resolution=resolution, fit="pad")
    done = reconstruct(clip(3, 60, 90), toy_networks, settings)
    (aligned,) = seen
    counted = scene_nbytes(aligned.scene) + aligned.depth.nbytes
    assert aligned_bytes(3, done.framing.network_hw) == counted
    size_hw = (60, 90) if resolution == "source" else done.framing.content_hw
    assert scene_bytes(3, size_hw) == scene_nbytes(done.scene)


@pytest.mark.parametrize(("resolution", "advice"), [
    ("network", "5 frames .*: 2 windows take .* alignment and scene take .*larger stride"),
    ("source", "5 frames at the video's own size .* Use resolution network"),
    ("auto", "5 frames at the video's own size .* Use resolution network"),
])  # fmt: skip
def test_windows_and_scene_have_to_fit_memory_together(
    toy_networks, one_step, clip, monkeypatch, resolution, advice
):
    video, network_hw = clip(5, 96, 128), (48, 64)
    result_hw = network_hw if resolution == "network" else (96, 128)
    settings = replace(one_step, network_hw=network_hw, resolution=resolution)
    # While windows are aligned, or while pixels are mapped back.
    sampled = 2 * sample_bytes(4, network_hw, settings.alignment)
    assert (sampled > scene_bytes(5, result_hw)) == (resolution == "network")
    needed = 2 * window_bytes(4, network_hw) + aligned_bytes(5, network_hw)
    needed += max(scene_bytes(5, result_hw), sampled)
    free = [needed]
    monkeypatch.setattr(pipeline, "work_bytes", lambda *_: 0)
    monkeypatch.setattr(pipeline, "free_bytes", lambda _device: free[0])
    assert reconstruct(video, toy_networks, settings).num_windows == 2
    free[0] -= 1
    monkeypatch.setattr(pipeline, "encode_video", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ReconstructionError, match=advice):
        reconstruct(video, toy_networks, settings)


class Endless:
    """A video of which nobody has seen the end."""

    fps = 24.0

    def __init__(self) -> None:
        self.read = 0

    def pictures(self):
        while True:
            self.read += 1
            yield torch.zeros(8, 8, 3, dtype=torch.uint8)


def test_a_video_that_is_too_long_is_refused_while_it_is_read(toy_networks, one_step, monkeypatch):
    monkeypatch.setattr(pipeline, "free_bytes", lambda _device: 10_000_000)
    video, settings = Endless(), replace(one_step, network_hw=(8, 8), stride=4)
    with pytest.raises(ReconstructionError, match=r"\d+ frames need too much memory"):
        reconstruct(video, toy_networks, settings)
    assert video.read < 3000
