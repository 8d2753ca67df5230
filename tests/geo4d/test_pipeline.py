"""A video to a scene, through the real path, with small networks that know nothing."""

import logging
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from more4d_backend.geo4d import pipeline
from more4d_backend.geo4d.alignment import align_windows
from more4d_backend.geo4d.decoding import DecodingError, DecodingSettings
from more4d_backend.geo4d.framing import plan_framing
from more4d_backend.geo4d.modalities import ModalityError, ModalitySettings
from more4d_backend.geo4d.pipeline import (
    ReconstructionError,
    encode_video,
    reconstruct,
    sample_windows,
)
from more4d_backend.geo4d.predictions import WindowError
from more4d_backend.geo4d.sampling import SamplingError, SamplingSettings
from more4d_backend.geo4d.video import PictureVideo, VideoFile, frame_video
from more4d_backend.geo4d.windows import WindowPlanError, plan_windows
from more4d_backend.geometry import pixel_centers, project, transform_points
from more4d_backend.scene_files import load_scene, save_scene

REAL = Path(__file__).parents[3] / "shared" / "real" / "drift-straight.mp4"


@pytest.mark.parametrize("num_frames", [1, 3, 4, 5, 11])
def test_every_frame_of_the_video_and_nothing_else_is_in_the_scene(
    toy_networks, one_step, colors, clip, num_frames
):
    result = reconstruct(clip(num_frames), toy_networks, one_step)
    scene = result.scene
    assert scene.num_frames == num_frames
    assert scene.fps == 12
    assert scene.points.positions.shape == (num_frames, 48, 64, 3)
    torch.testing.assert_close(scene.points.colors, colors(num_frames), atol=0.51 / 255, rtol=0)
    assert scene.points.positions[scene.points.valid].isfinite().all()
    torch.testing.assert_close(scene.cameras.world_to_camera[0], torch.eye(4))


def test_the_weights_decide_how_much_ray_cameras_count_where_the_settings_do_not(
    toy_networks, one_step, clip, monkeypatch
):
    counted = []

    def spy(*arguments, settings, **others):
        counted.append(settings.camera_weight)
        return align_windows(*arguments, settings=settings, **others)

    monkeypatch.setattr("more4d_backend.geo4d.pipeline.align_windows", spy)
    monkeypatch.setattr(toy_networks, "camera_weight", 0.5)
    reconstruct(clip(2), toy_networks, one_step)
    asked = replace(one_step.alignment, camera_weight=0.25)
    reconstruct(clip(2), toy_networks, replace(one_step, alignment=asked))
    assert counted == [0.5, 0.25]


def test_the_weights_decide_whether_windows_are_seen_mirrored_where_the_settings_do_not(
    toy_networks, one_step, clip, monkeypatch
):
    plain = reconstruct(clip(5), toy_networks, one_step)
    monkeypatch.setattr(toy_networks, "mirrored_windows", True)
    both = reconstruct(clip(5), toy_networks, one_step)
    assert (plain.num_windows, both.num_windows) == (2, 4)
    assert both.scene.num_frames == 5
    assert not torch.equal(both.scene.points.positions, plain.scene.points.positions)
    refused = reconstruct(clip(5), toy_networks, replace(one_step, mirrored_windows=False))
    torch.testing.assert_close(
        refused.scene.points.positions, plain.scene.points.positions, equal_nan=True
    )


def test_the_second_side_of_an_encoded_video_is_that_of_its_mirror_image(toy_networks, prepared):
    framed, video, _ = prepared(toy_networks, 3)
    both = encode_video(toy_networks, framed, mirrored=True)
    flipped = encode_video(toy_networks, replace(framed, frames=framed.frames.flip(2)))
    assert (len(video), len(both)) == (1, 2)
    torch.testing.assert_close(both[:1], video)
    torch.testing.assert_close(both[1:], flipped)
    assert not torch.equal(both[1], both[0])


def test_a_mirrored_window_is_sampled_from_the_mirrored_frames_with_noise_of_its_own(
    toy_networks, one_step, prepared
):
    framed, _, _ = prepared(toy_networks, 4)
    both = encode_video(toy_networks, framed, mirrored=True)
    seen, mirrored = plan_windows(4, 1, 4, mirrored=True)
    first = sample_windows(toy_networks, both, [seen, mirrored], one_step)
    other = both.clone()
    other[0] = 0
    second = sample_windows(toy_networks, other, [seen, mirrored], one_step)
    torch.testing.assert_close(second[1], first[1])
    assert not torch.equal(second[0], first[0])
    same = sample_windows(toy_networks, both[:1].expand(2, -1, -1, -1, -1), [seen, mirrored])
    assert not torch.equal(same[0], same[1])


def test_the_weights_decide_the_denoising_steps_where_the_settings_do_not(
    toy_networks, one_step, clip, monkeypatch, caplog
):
    monkeypatch.setattr(toy_networks, "num_steps", 1)
    unsaid = replace(one_step, sampling=SamplingSettings())
    with caplog.at_level("INFO"):
        found = reconstruct(clip(2), toy_networks, unsaid).scene
    assert caplog.messages.count("Denoising in 1 step: what these weights are made for.") == 1
    one = reconstruct(clip(2), toy_networks, one_step).scene
    torch.testing.assert_close(found.points.positions, one.points.positions, equal_nan=True)
    two = replace(one_step, sampling=SamplingSettings(num_steps=2))
    other = reconstruct(clip(2), toy_networks, two).scene
    assert not torch.allclose(
        found.points.positions, other.points.positions, atol=1e-3, equal_nan=True
    )


def test_the_report_of_one_window_says_window(toy_networks, one_step, clip):
    assert reconstruct(clip(1), toy_networks, one_step).report.summary().startswith("1 window ")
    assert reconstruct(clip(5), toy_networks, one_step).report.summary().startswith("2 windows ")


def test_what_continues_a_short_video_never_reaches_the_scene(
    toy_networks, one_step, clip, monkeypatch
):
    seen = []

    def spy(predictions, *arguments, **options):
        seen.extend(predictions)
        return original(predictions, *arguments, **options)

    original = pipeline.align_windows
    monkeypatch.setattr(pipeline, "align_windows", spy)
    reconstruct(clip(3), toy_networks, one_step)
    (prediction,) = seen
    assert prediction.num_frames == 3
    assert prediction.rays.directions.shape[0] == prediction.disparity.shape[0] == 3


def test_points_lie_on_the_rays_of_their_pixels_so_that_files_are_small(
    toy_networks, one_step, clip, tmp_path
):
    scene = reconstruct(clip(5, 60, 90), toy_networks, one_step).scene
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
def test_the_scene_has_the_pixels_of_a_video_of_any_shape(
    toy_networks, one_step, clip, fit, size_hw
):
    settings = replace(one_step, fit=fit, resolution="source")
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


def test_the_same_video_gives_the_same_scene_and_another_seed_another(toy_networks, one_step, clip):
    first, second = (reconstruct(clip(5), toy_networks, one_step).scene for _ in range(2))
    other = reconstruct(clip(5), toy_networks, replace(one_step, seed=1)).scene
    valid = first.points.valid
    assert torch.equal(first.points.positions[valid], second.points.positions[valid])
    assert not torch.equal(first.points.valid, other.points.valid) or not torch.equal(
        first.points.positions[valid], other.points.positions[valid]
    )


def test_a_window_does_not_depend_on_its_batch_nor_on_the_length_of_the_video(
    toy_networks, one_step, prepared
):
    _, video, windows = prepared(toy_networks, 9)
    at_once = sample_windows(toy_networks, video, windows, replace(one_step, windows_per_batch=16))
    for batch in (1, 2):
        one_by_one = sample_windows(
            toy_networks, video, windows, replace(one_step, windows_per_batch=batch)
        )
        torch.testing.assert_close(one_by_one, at_once, atol=1e-5, rtol=1e-5)
    first = sample_windows(toy_networks, video[:, :6], windows[:3], one_step)
    torch.testing.assert_close(first, at_once[:3], atol=1e-5, rtol=1e-5)


def test_every_window_has_noise_of_its_own(toy_networks, one_step, prepared):
    _, video, windows = prepared(toy_networks, 6)
    still = video[:, :1].expand_as(video)  # so that nothing but the noise differs
    first, second, third = sample_windows(toy_networks, still, windows, one_step)
    # Measured: 1.3 of their own size; 0 with the same noise.
    for a, b in ((first, second), (first, third), (second, third)):
        assert (a - b).norm() > 0.5 * a.norm()


def test_each_frame_is_encoded_once(toy_networks, one_step, clip, monkeypatch):
    counts = []
    encode = toy_networks.vae.encode
    monkeypatch.setattr(
        toy_networks.vae,
        "encode",
        lambda pictures: counts.append(len(pictures)) or encode(pictures),
    )
    reconstruct(clip(23), toy_networks, one_step)
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


def test_the_network_is_told_the_frame_rate_of_the_settings(
    toy_networks, one_step, prepared, monkeypatch
):
    _, video, windows = prepared(toy_networks, 5)
    told = []
    unet = toy_networks.unet.forward

    def spy(latents, timesteps, context, fps):
        told.append(fps.tolist())
        return unet(latents, timesteps, context, fps)

    monkeypatch.setattr(toy_networks.unet, "forward", spy)
    sample_windows(toy_networks, video, windows, replace(one_step, condition_fps=7))
    sample_windows(toy_networks, video, windows, one_step)
    assert told == [[7, 7], [24, 24]]


def test_a_video_of_more_than_eighty_windows_goes_through(toy_networks, one_step, clip):
    # The reference fails from 80 windows (328 frames) on.
    result = reconstruct(
        clip(340, 16, 16), toy_networks, replace(one_step, network_hw=(16, 16), stride=4)
    )
    assert result.num_windows == 85
    assert result.scene.num_frames == 340


def test_a_black_video_goes_through(toy_networks, one_step):
    video = PictureVideo(torch.zeros(6, 48, 64, 3), fps=8.0)
    scene = reconstruct(video, toy_networks, one_step).scene
    assert scene.points.positions[scene.points.valid].isfinite().all()


def test_a_network_that_returns_nan_is_named(toy_networks, one_step, clip):
    networks = type(toy_networks)(toy_networks.size)
    networks.load_state_dict(toy_networks.state_dict())
    with torch.no_grad():
        next(iter(networks.unet.parameters()))[0] = math.nan
    with pytest.raises(SamplingError, match="NaN or infinity at step 1"):
        reconstruct(clip(5), networks.eval(), one_step)
    networks.load_state_dict(toy_networks.state_dict())
    with torch.no_grad():
        next(iter(networks.vae.point_decoder.parameters()))[0] = math.nan
    with pytest.raises(WindowError, match="NaN"):
        reconstruct(clip(5), networks, one_step)


def test_every_stage_reports_and_can_be_interrupted(toy_networks, one_step, clip):
    stages: dict[str, list[tuple[int, int]]] = {}

    def report(stage):
        return lambda done, total: stages.setdefault(stage, []).append((done, total))

    reconstruct(clip(6), toy_networks, one_step, report=report)
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
            reconstruct(clip(6), toy_networks, one_step, report=stopping)


def test_settings_that_cannot_work_are_refused_before_the_networks_run(
    toy_networks, one_step, clip, monkeypatch, as_users_run_it
):
    monkeypatch.setattr(pipeline, "encode_video", lambda *_: pytest.fail("work has begun"))
    with monkeypatch.context() as unread:
        unread.setattr(pipeline, "frame_video", lambda *_: pytest.fail("the video is read"))
        with pytest.raises(WindowPlanError, match="stride is 5; expected 1 to 4"):
            reconstruct(clip(5), toy_networks, replace(one_step, stride=5))
    with pytest.raises(ReconstructionError, match="resolution is 'huge'"):
        replace(one_step, resolution="huge")
    with pytest.raises(ReconstructionError, match="windows_per_batch is 0; expected at least 1"):
        replace(one_step, windows_per_batch=0)
    with pytest.raises(ReconstructionError, match="seed is -1; expected at least 0"):
        replace(one_step, seed=-1)
    with pytest.raises(ReconstructionError, match="condition_fps is 0"):
        replace(one_step, condition_fps=0)
    with pytest.raises(ModalityError, match="sky_tolerance is nan"):
        ModalitySettings(sky_tolerance=math.nan)
    with pytest.raises(DecodingError, match="ray_reduction is 3"):
        DecodingSettings(ray_reduction=3)
    monkeypatch.setattr(pipeline, "work_bytes", lambda *_: 0)
    monkeypatch.setattr(pipeline, "free_bytes", lambda _device: 1000)
    with pytest.raises(ReconstructionError, match="larger stride"):
        reconstruct(clip(5), toy_networks, one_step)


class GrowingPictures(PictureVideo):
    """Of another size from the third picture on."""

    def pictures(self):
        for number, picture in enumerate(super().pictures()):
            yield picture if number < 2 else picture.repeat(2, 2, 1)


def test_a_change_of_size_is_told_once_though_the_video_is_read_twice(
    toy_networks, one_step, colors, caplog
):
    video, settings = GrowingPictures(colors(4), fps=12.0), replace(one_step, resolution="source")
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
    toy_networks, one_step, colors, monkeypatch
):
    video = FirstPicture(colors(40), fps=12.0)
    # Latents of 10 x 16.
    for name in ("ray_reduction", "disparity_reduction"):
        decoding = replace(DecodingSettings(), **{name: 4})
        settings = replace(one_step, network_hw=(40, 64), decoding=decoding)
        with pytest.raises(DecodingError, match=f"{name} is 4, which does not divide.*10 x 16"):
            reconstruct(video, toy_networks, settings)
    monkeypatch.setattr(pipeline, "free_bytes", lambda _device: 2_000_000)
    with pytest.raises(ReconstructionError, match=r"A window of 48 x 64 takes.*smaller network"):
        reconstruct(video, toy_networks, one_step)


def test_the_real_video_goes_through_the_whole_path(toy_networks, one_step, tmp_path):
    if not REAL.is_file():
        pytest.skip(f"{REAL.name} is not in the folder beside the project")
    settings = replace(one_step, resolution="network", stride=2)
    scene = reconstruct(VideoFile(REAL), toy_networks, settings).scene
    assert scene.num_frames == 50
    assert scene.points.positions[scene.points.valid].isfinite().all()
    save_scene(tmp_path / "scene.safetensors", scene)
    assert os.path.getsize(tmp_path / "scene.safetensors") > 0
