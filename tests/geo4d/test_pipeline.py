"""A video to a scene, through the real path, with small networks that know nothing."""

import logging
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from more4d_backend.devices import DeviceMemoryError
from more4d_backend.files.videos import save_video
from more4d_backend.geo4d import pipeline
from more4d_backend.geo4d.alignment import AlignmentSettings
from more4d_backend.geo4d.alignment.samples import sample_bytes
from more4d_backend.geo4d.decoding import (
    DecodingError,
    DecodingSettings,
    decode_windows,
    window_bytes,
)
from more4d_backend.geo4d.framing import plan_framing
from more4d_backend.geo4d.modalities import ModalityError, ModalitySettings
from more4d_backend.geo4d.pipeline import (
    ReconstructionError,
    ReconstructionSettings,
    encode_video,
    reconstruct,
    sample_windows,
)
from more4d_backend.geo4d.predictions import WindowError
from more4d_backend.geo4d.remapping import aligned_bytes, scene_bytes
from more4d_backend.geo4d.sampling import SamplingError, SamplingSettings
from more4d_backend.geo4d.speed import CompilationError, compilation_told
from more4d_backend.geo4d.video import PictureVideo, VideoFile, frame_video
from more4d_backend.geo4d.windows import WindowPlanError, plan_windows
from more4d_backend.geometry import pixel_centers, project, transform_points
from more4d_backend.scene_files import load_scene, save_scene

ONE_STEP = ReconstructionSettings(
    sampling=SamplingSettings(num_steps=1), alignment=AlignmentSettings(max_iterations=2)
)
REAL = Path(__file__).parents[3] / "shared" / "real" / "drift-straight.mp4"


def colors(frames: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """Smooth pictures that move."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    phase = torch.arange(frames)[:, None, None] / 7
    waves = [torch.sin(x * k + y * (3 - k) + phase) for k in range(3)]
    return (torch.stack(waves, -1) + 1) / 2


def clip(frames: int, height: int = 48, width: int = 64) -> PictureVideo:
    return PictureVideo(colors(frames, height, width), fps=12.0)


@pytest.mark.parametrize("num_frames", [1, 3, 4, 5, 11])
def test_every_frame_of_the_video_and_nothing_else_is_in_the_scene(toy_networks, num_frames):
    result = reconstruct(clip(num_frames), toy_networks, ONE_STEP)
    scene = result.scene
    assert scene.num_frames == num_frames
    assert scene.fps == 12
    assert scene.points.positions.shape == (num_frames, 48, 64, 3)
    torch.testing.assert_close(scene.points.colors, colors(num_frames), atol=0.51 / 255, rtol=0)
    assert scene.points.positions[scene.points.valid].isfinite().all()
    torch.testing.assert_close(scene.cameras.world_to_camera[0], torch.eye(4))


def test_the_weights_decide_the_denoising_steps_where_the_settings_do_not(
    toy_networks, monkeypatch, caplog
):
    monkeypatch.setattr(toy_networks, "num_steps", 1)
    unsaid = replace(ONE_STEP, sampling=SamplingSettings())
    with caplog.at_level("INFO"):
        found = reconstruct(clip(2), toy_networks, unsaid).scene
    assert caplog.messages.count("Denoising in 1 step: what these weights are made for.") == 1
    one = reconstruct(clip(2), toy_networks, ONE_STEP).scene
    torch.testing.assert_close(found.points.positions, one.points.positions, equal_nan=True)
    two = replace(ONE_STEP, sampling=SamplingSettings(num_steps=2))
    other = reconstruct(clip(2), toy_networks, two).scene
    assert not torch.allclose(
        found.points.positions, other.points.positions, atol=1e-3, equal_nan=True
    )


def test_the_report_of_one_window_says_window(toy_networks):
    assert reconstruct(clip(1), toy_networks, ONE_STEP).report.summary().startswith("1 window ")
    assert reconstruct(clip(5), toy_networks, ONE_STEP).report.summary().startswith("2 windows ")


def test_what_continues_a_short_video_never_reaches_the_scene(toy_networks, monkeypatch):
    seen = []

    def spy(predictions, *arguments, **options):
        seen.extend(predictions)
        return original(predictions, *arguments, **options)

    original = pipeline.align_windows
    monkeypatch.setattr(pipeline, "align_windows", spy)
    reconstruct(clip(3), toy_networks, ONE_STEP)
    (prediction,) = seen
    assert prediction.num_frames == 3
    assert prediction.rays.directions.shape[0] == prediction.disparity.shape[0] == 3


def test_points_lie_on_the_rays_of_their_pixels_so_that_files_are_small(toy_networks, tmp_path):
    scene = reconstruct(clip(5, 60, 90), toy_networks, ONE_STEP).scene
    cameras, points = scene.cameras, scene.points
    assert (cameras.height, cameras.width) == tuple(points.positions.shape[1:3]) == (60, 90)
    in_camera = transform_points(points.positions, cameras.world_to_camera[:, None, None])
    pixels, _ = project(in_camera, cameras.intrinsics[:, None, None])
    off = (pixels - pixel_centers(60, 90)).abs().amax(-1)[points.valid]
    assert off.max() < 0.01
    save_scene(tmp_path / "a.safetensors", scene)
    back = load_scene(tmp_path / "a.safetensors")
    assert torch.equal(back.points.valid, points.valid)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size_hw", [(60, 90), (90, 60), (33, 100)])
def test_the_scene_has_the_pixels_of_a_video_of_any_shape(toy_networks, fit, size_hw):
    settings = replace(ONE_STEP, fit=fit, resolution="source")
    scene = reconstruct(clip(2, *size_hw), toy_networks, settings).scene
    assert (scene.cameras.height, scene.cameras.width) == size_hw
    # Its camera looks through the middle: what is cut or added is the same on both sides.
    middle = torch.tensor([size_hw[1] / 2, size_hw[0] / 2])
    torch.testing.assert_close(scene.cameras.intrinsics[0, :2, 2], middle, atol=1e-4, rtol=0)
    network = reconstruct(clip(2, *size_hw), toy_networks, replace(settings, resolution="network"))
    framing = network.framing
    shown = (framing.rows.stop - framing.rows.start, framing.columns.stop - framing.columns.start)
    assert network.scene.points.valid.shape[1:] == shown
    if fit == "crop":
        assert shown == framing.network_hw
    fov = [float(s.cameras.height / s.cameras.intrinsics[0, 1, 1]) for s in (scene, network.scene)]
    assert fov[0] >= fov[1] - 1e-3  # the whole video sees as much as the network, or more


def test_the_same_video_gives_the_same_scene_and_another_seed_another(toy_networks):
    first, second = (reconstruct(clip(5), toy_networks, ONE_STEP).scene for _ in range(2))
    other = reconstruct(clip(5), toy_networks, replace(ONE_STEP, seed=1)).scene
    valid = first.points.valid
    assert torch.equal(first.points.positions[valid], second.points.positions[valid])
    assert not torch.equal(first.points.valid, other.points.valid) or not torch.equal(
        first.points.positions[valid], other.points.positions[valid]
    )


def prepared(networks, frames: int):
    framed = frame_video(clip(frames), lambda hw: plan_framing(hw, networks.size))
    return framed, encode_video(networks, framed), plan_windows(frames, 1, networks.size.num_frames)


def test_a_window_does_not_depend_on_its_batch_nor_on_the_length_of_the_video(toy_networks):
    _, video, windows = prepared(toy_networks, 9)
    at_once = sample_windows(toy_networks, video, windows, replace(ONE_STEP, windows_per_batch=16))
    for batch in (1, 2):
        one_by_one = sample_windows(
            toy_networks, video, windows, replace(ONE_STEP, windows_per_batch=batch)
        )
        torch.testing.assert_close(one_by_one, at_once, atol=1e-5, rtol=1e-5)
    first = sample_windows(toy_networks, video[:6], windows[:3], ONE_STEP)
    torch.testing.assert_close(first, at_once[:3], atol=1e-5, rtol=1e-5)


def test_every_window_has_noise_of_its_own(toy_networks):
    _, video, windows = prepared(toy_networks, 6)
    still = video[:1].expand_as(video)  # so that nothing but the noise differs
    first, second, third = sample_windows(toy_networks, still, windows, ONE_STEP)
    # Measured: 1.3 of their own size; 0 with the same noise.
    for a, b in ((first, second), (first, third), (second, third)):
        assert (a - b).norm() > 0.5 * a.norm()


def test_each_frame_is_encoded_once(toy_networks, monkeypatch):
    counts = []
    encode = toy_networks.vae.encode
    monkeypatch.setattr(
        toy_networks.vae,
        "encode",
        lambda pictures: counts.append(len(pictures)) or encode(pictures),
    )
    reconstruct(clip(23), toy_networks, ONE_STEP)
    assert sum(counts) == 23


def test_black_is_minus_1_and_white_is_1_for_the_encoder(toy_networks, monkeypatch):
    seen = []
    encode = toy_networks.vae.encode
    monkeypatch.setattr(
        toy_networks.vae, "encode", lambda pictures: seen.append(pictures) or encode(pictures)
    )
    video = PictureVideo(torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 48, 64, 3), 8.0)
    encode_video(toy_networks, frame_video(video, lambda hw: plan_framing(hw, toy_networks.size)))
    (pictures,) = seen
    assert torch.equal(pictures[:, 0, 0, 0], torch.tensor([-1.0, 1.0]))


def test_the_network_is_told_the_frame_rate_of_the_settings(toy_networks, monkeypatch):
    _, video, windows = prepared(toy_networks, 5)
    told = []
    unet = toy_networks.unet.forward

    def spy(latents, timesteps, context, fps):
        told.append(fps.tolist())
        return unet(latents, timesteps, context, fps)

    monkeypatch.setattr(toy_networks.unet, "forward", spy)
    sample_windows(toy_networks, video, windows, replace(ONE_STEP, condition_fps=7))
    sample_windows(toy_networks, video, windows, ONE_STEP)
    assert told == [[7, 7], [24, 24]]


def test_only_what_the_alignment_uses_is_decoded(toy_networks, monkeypatch):
    decoded = []
    decode = toy_networks.vae.decode

    def spy(latents, *, reduction=1):
        decoded.append((len(latents), reduction))
        return decode(latents, reduction=reduction)

    monkeypatch.setattr(toy_networks.vae, "decode", spy)
    settings = replace(ONE_STEP, alignment=AlignmentSettings.points_only())
    reconstruct(clip(4), toy_networks, settings)
    assert decoded == []
    reconstruct(clip(4, 96, 128), toy_networks, replace(ONE_STEP, network_hw=(96, 128)))
    assert decoded == [(8, 4), (4, 2)]  # rays and moments together; then disparity


def test_less_is_decoded_of_small_latents_only_where_something_is_left():
    chosen = DecodingSettings().for_latents((40, 64))
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (4, 2)
    chosen = DecodingSettings().for_latents((24, 80))
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (4, 2)
    chosen = DecodingSettings().for_latents((10, 16))
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (1, 1)
    chosen = DecodingSettings(ray_reduction=2).for_latents((10, 16))
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (2, 1)


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
    toy_networks, monkeypatch, caplog
):
    _, video, windows = prepared(toy_networks, 9)
    settings = replace(ONE_STEP, windows_per_batch=6)
    expected = sample_windows(toy_networks, video, windows, settings)
    full = Full(pipeline.sample_latents, 2, lambda _networks, videos, _noise: len(videos))
    monkeypatch.setattr(pipeline, "sample_latents", full)
    with caplog.at_level(logging.WARNING):
        found = sample_windows(toy_networks, video, windows, settings)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert full.tried == [6, 3, 1, 1, 1, 1, 1, 1]
    assert "ran out of memory with 6 windows at one time; going on with 3" in caplog.text


def test_where_not_even_one_window_fits_the_message_says_what_to_do(toy_networks, monkeypatch):
    _, video, windows = prepared(toy_networks, 5)
    monkeypatch.setattr(pipeline, "sample_latents", Full(None, 0, lambda *_: 1))
    with pytest.raises(DeviceMemoryError, match=r"one of the windows\. Use a smaller network size"):
        sample_windows(toy_networks, video, windows, ONE_STEP)


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


def test_other_errors_are_not_taken_for_a_lack_of_memory(toy_networks, monkeypatch):
    _, video, windows = prepared(toy_networks, 5)

    def broken(*_arguments, **_options):
        raise RuntimeError("CUDA error: an illegal instruction was encountered")

    monkeypatch.setattr(pipeline, "sample_latents", broken)
    with pytest.raises(RuntimeError, match="illegal instruction"):
        sample_windows(toy_networks, video, windows, ONE_STEP)


def test_a_video_of_more_than_eighty_windows_goes_through(toy_networks):
    # The reference fails from 80 windows (328 frames) on.
    result = reconstruct(
        clip(340, 16, 16), toy_networks, replace(ONE_STEP, network_hw=(16, 16), stride=4)
    )
    assert result.num_windows == 85
    assert result.scene.num_frames == 340


def test_a_black_video_goes_through(toy_networks):
    video = PictureVideo(torch.zeros(6, 48, 64, 3), fps=8.0)
    scene = reconstruct(video, toy_networks, ONE_STEP).scene
    assert scene.points.positions[scene.points.valid].isfinite().all()


def test_a_network_that_returns_nan_is_named(toy_networks):
    networks = type(toy_networks)(toy_networks.size)
    networks.load_state_dict(toy_networks.state_dict())
    with torch.no_grad():
        next(iter(networks.unet.parameters()))[0] = math.nan
    with pytest.raises(SamplingError, match="NaN or infinity at step 1"):
        reconstruct(clip(5), networks.eval(), ONE_STEP)
    networks.load_state_dict(toy_networks.state_dict())
    with torch.no_grad():
        next(iter(networks.vae.point_decoder.parameters()))[0] = math.nan
    with pytest.raises(WindowError, match="NaN"):
        reconstruct(clip(5), networks, ONE_STEP)


def test_every_stage_reports_and_can_be_interrupted(toy_networks):
    stages: dict[str, list[tuple[int, int]]] = {}

    def report(stage):
        return lambda done, total: stages.setdefault(stage, []).append((done, total))

    reconstruct(clip(6), toy_networks, ONE_STEP, report=report)
    assert list(stages) == ["read", "encode", "sample", "decode", "align", "map back"]
    for calls in stages.values():
        assert calls[-1][0] == calls[-1][1] > 0

    class Stop(Exception):
        pass

    for stage in stages:

        def stopping(name, stage=stage):
            def call(_done, _total):
                if name == stage:
                    raise Stop

            return call

        with pytest.raises(Stop):
            reconstruct(clip(6), toy_networks, ONE_STEP, report=stopping)


def test_settings_that_cannot_work_are_refused_before_the_networks_run(
    toy_networks, monkeypatch, as_users_run_it
):
    monkeypatch.setattr(pipeline, "encode_video", lambda *_: pytest.fail("work has begun"))
    with monkeypatch.context() as unread:
        unread.setattr(pipeline, "frame_video", lambda *_: pytest.fail("the video is read"))
        with pytest.raises(WindowPlanError, match="stride is 5; expected 1 to 4"):
            reconstruct(clip(5), toy_networks, replace(ONE_STEP, stride=5))
    with pytest.raises(ReconstructionError, match="resolution is 'huge'"):
        replace(ONE_STEP, resolution="huge")
    with pytest.raises(ReconstructionError, match="windows_per_batch is 0; expected at least 1"):
        replace(ONE_STEP, windows_per_batch=0)
    with pytest.raises(ReconstructionError, match="seed is -1; expected at least 0"):
        replace(ONE_STEP, seed=-1)
    with pytest.raises(ReconstructionError, match="condition_fps is 0"):
        replace(ONE_STEP, condition_fps=0)
    with pytest.raises(ModalityError, match="sky_tolerance is nan"):
        ModalitySettings(sky_tolerance=math.nan)
    with pytest.raises(DecodingError, match="ray_reduction is 3"):
        DecodingSettings(ray_reduction=3)
    monkeypatch.setattr(pipeline, "work_bytes", lambda *_: 0)
    monkeypatch.setattr(pipeline, "free_bytes", lambda _device: 1000)
    with pytest.raises(ReconstructionError, match="larger stride"):
        reconstruct(clip(5), toy_networks, ONE_STEP)


def scene_nbytes(scene) -> int:
    points = scene.points
    parts = (points.positions, points.colors, points.valid, points.confidence)
    return sum(part.nbytes for part in parts)


@pytest.mark.parametrize("resolution", ["source", "network"])
def test_memory_of_a_scene_is_what_its_arrays_take(toy_networks, monkeypatch, resolution):
    seen = []
    original = pipeline.align_windows
    spy = lambda *a, **o: seen.append(original(*a, **o)) or seen[-1]  # noqa: E731
    monkeypatch.setattr(pipeline, "align_windows", spy)
    settings = replace(ONE_STEP, resolution=resolution, fit="pad")
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
    toy_networks, monkeypatch, resolution, advice
):
    video, network_hw = clip(5, 96, 128), (48, 64)
    result_hw = network_hw if resolution == "network" else (96, 128)
    settings = replace(ONE_STEP, network_hw=network_hw, resolution=resolution)
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
    monkeypatch.setattr(pipeline, "encode_video", lambda *_: pytest.fail("work has begun"))
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


def test_a_video_that_is_too_long_is_refused_while_it_is_read(toy_networks, monkeypatch):
    monkeypatch.setattr(pipeline, "free_bytes", lambda _device: 10_000_000)
    video, settings = Endless(), replace(ONE_STEP, network_hw=(8, 8), stride=4)
    with pytest.raises(ReconstructionError, match=r"\d+ frames need too much memory"):
        reconstruct(video, toy_networks, settings)
    assert video.read < 3000


class GrowingPictures(PictureVideo):
    """Of another size from the third picture on."""

    def pictures(self):
        for number, picture in enumerate(super().pictures()):
            yield picture if number < 2 else picture.repeat(2, 2, 1)


def test_a_change_of_size_is_told_once_though_the_video_is_read_twice(toy_networks, caplog):
    video, settings = GrowingPictures(colors(4), fps=12.0), replace(ONE_STEP, resolution="source")
    with caplog.at_level(logging.WARNING):
        scene = reconstruct(video, toy_networks, settings).scene
    assert scene.points.positions.shape == (4, 48, 64, 3)
    assert caplog.text.count("change size") == 1


class FirstPicture(PictureVideo):
    """Fails where more than one batch of pictures is read."""

    def pictures(self):
        for number, picture in enumerate(super().pictures()):
            assert number < 16, "work has begun"
            yield picture


def test_sizes_that_cannot_work_are_refused_when_the_first_pictures_are_read(
    toy_networks, monkeypatch
):
    video = FirstPicture(colors(40), fps=12.0)
    # Latents of 10 x 16.
    for name in ("ray_reduction", "disparity_reduction"):
        decoding = replace(DecodingSettings(), **{name: 4})
        settings = replace(ONE_STEP, network_hw=(40, 64), decoding=decoding)
        with pytest.raises(DecodingError, match=f"{name} is 4, which does not divide.*10 x 16"):
            reconstruct(video, toy_networks, settings)
    monkeypatch.setattr(pipeline, "free_bytes", lambda _device: 2_000_000)
    with pytest.raises(ReconstructionError, match=r"A window of 48 x 64 takes.*smaller network"):
        reconstruct(video, toy_networks, ONE_STEP)


def test_a_video_file_becomes_a_scene_file_that_renders(toy_weights, tmp_path, capsys):
    pytest.importorskip("tyro", reason="the command line needs the extra [headless]")
    from more4d_backend.cli import main

    save_video(tmp_path / "a.mp4", colors(6), 12)
    scene = tmp_path / "scene.safetensors"
    command = ["reconstruct", str(tmp_path / "a.mp4"), "-o", str(scene), "--device", "cpu"]
    assert main([*command, "--weights", str(toy_weights), "--num-steps", "1"]) == 0
    assert load_scene(scene).num_frames == 6
    assert "6 frames from 3 windows." in capsys.readouterr().err
    assert main([*command, "--weights", str(toy_weights), "--max-frames", "1"]) == 0
    said = capsys.readouterr().err
    assert "1 frame from 1 window." in said
    assert "Denoising in 5 steps: what these weights are made for." in said
    assert main([*command, "--weights", str(toy_weights), "--num-steps", "0"]) == 2
    render = ["render", str(scene), "-o", str(tmp_path / "out")]
    assert main([*render, "--device", "cpu", "--camera", "truck-left"]) == 0
    assert VideoFile(tmp_path / "out" / "truck-left.mp4").fps != 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["missing.mp4"], "There is no file missing.mp4"),
    (["a.mp4", "-o", "scene.mp4"], "does not end in .safetensors"),
    (["a.mp4", "--frame-step", "0"], "frame_step is 0"),
    (["."], ". is a folder; expected a file"),
    (["a.mp4", "-o", "file/scene.safetensors"], "file is a file; expected a folder"),
    (["a.mp4", "--seed", "-1"], "seed is -1"),
])  # fmt: skip
def test_the_command_refuses_in_words(arguments, message, toy_weights, tmp_path, monkeypatch,
                                      capsys):  # fmt: skip
    pytest.importorskip("tyro", reason="the command line needs the extra [headless]")
    from more4d_backend.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["reconstruct", *arguments, "--weights", str(toy_weights)]) == 2
    assert message in capsys.readouterr().err


def test_every_option_of_the_command_reaches_the_settings():
    pytest.importorskip("tyro", reason="the command line needs the extra [headless]")
    from more4d_backend.cli.reconstruct_command import WindowOptions

    assert WindowOptions().settings() == ReconstructionSettings()
    same = {
        "stride": 3, "fit": "pad", "network_hw": (16, 24), "resolution": "network", "seed": 9,
        "condition_fps": 7, "windows_per_batch": 2,
    }  # fmt: skip
    sampling = {"num_steps": 4, "rescale": "released"}
    reductions = {"ray_reduction": 2, "disparity_reduction": 1}
    options = WindowOptions(
        **same, **sampling, **reductions, sky_tolerance=0.35, modalities="points",
        alignment_weights="paper",
    )  # fmt: skip
    assert options.settings() == ReconstructionSettings(
        **same,
        sampling=SamplingSettings(**sampling),
        decoding=DecodingSettings(**reductions, modalities=ModalitySettings(sky_tolerance=0.35)),
        alignment=AlignmentSettings.points_only().with_paper_weights(),
    )


def test_where_the_networks_cannot_be_compiled_one_sentence_says_so():
    from torch._dynamo.exc import TorchDynamoException

    def fail():
        raise TorchDynamoException("\nC++ compile error\nand a thousand lines")

    with (
        pytest.raises(CompilationError, match=r"here \(C\+\+ compile error\)\. Go on without"),
        compilation_told(),
    ):
        fail()


def test_the_real_video_goes_through_the_whole_path(toy_networks, tmp_path):
    if not REAL.is_file():
        pytest.skip(f"{REAL.name} is not in the folder beside the project")
    settings = replace(ONE_STEP, resolution="network", stride=2)
    scene = reconstruct(VideoFile(REAL), toy_networks, settings).scene
    assert scene.num_frames == 50
    assert scene.points.positions[scene.points.valid].isfinite().all()
    save_scene(tmp_path / "scene.safetensors", scene)
    assert os.path.getsize(tmp_path / "scene.safetensors") > 0
