"""Videos of any kind: files, pictures, sizes that change, rates that vary, and none at all."""

import logging
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from more4d_backend.files import FileFormatError
from more4d_backend.files.videos import save_video
from more4d_backend.geo4d.framing import plan_framing
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.video import PictureVideo, VideoFile, frame_video, same_size


def colors(frames: int, height: int = 48, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (frames, height, width, 3), generator=generator) / 255


def framed(video, **options):
    return frame_video(video, lambda hw: plan_framing(hw, GEO4D_SIZES["toy"], **options))


def packets(path, sizes: list[tuple[int, int]]) -> None:
    """Write an MPEG transport stream whose parts have different sizes, as live streams do."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width = sizes[0]
        for number, (height, width) in enumerate(sizes):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
            encoder.time_base, encoder.options = Fraction(1, 24), {"bf": "0"}
            coded = []
            for index in range(6):
                picture = np.full((height, width, 3), 40 * number + 20, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = 6 * number + index, Fraction(1, 24)
                coded += encoder.encode(frame)
            for packet in coded + encoder.encode(None):
                packet.stream = stream
                container.mux(packet)


def test_a_file_gives_the_frames_it_holds_as_often_as_it_is_asked(tmp_path):
    frames = colors(20)
    save_video(tmp_path / "a.mkv", frames, 12, lossless=True)
    video = VideoFile(tmp_path / "a.mkv")
    for _ in range(2):
        seen = torch.stack(list(video.pictures()))
        assert torch.equal(seen / 255, frames)
    assert video.fps == 12
    assert torch.equal(framed(video).frames / 255, frames)


@pytest.mark.parametrize(("step", "most", "expected"), [
    (1, 5, [0, 1, 2, 3, 4]), (3, None, [0, 3, 6, 9]), (4, 2, [0, 4]), (50, None, [0]),
])  # fmt: skip
def test_some_of_the_frames_are_taken_when_asked(tmp_path, step, most, expected):
    frames = colors(11)
    save_video(tmp_path / "a.mkv", frames, 12, lossless=True)
    video = VideoFile(tmp_path / "a.mkv", frame_step=step, max_frames=most)
    assert torch.equal(torch.stack(list(video.pictures())) / 255, frames[expected])
    assert video.fps == 12 / step


def test_pictures_at_hand_are_taken_as_they_are():
    frames = colors(3)
    video = PictureVideo(frames, fps=8.0)
    result = framed(video)
    assert torch.equal(result.frames / 255, frames)
    assert torch.equal(result.colors([2, 0]), frames[[2, 0]])
    assert result.fps == 8


def test_pictures_that_change_size_are_brought_to_the_first_one_s_and_said(tmp_path, caplog):
    packets(tmp_path / "a.ts", [(64, 96), (32, 48), (96, 64)])
    with caplog.at_level(logging.WARNING):
        pictures = list(same_size(VideoFile(tmp_path / "a.ts").pictures()))
    assert len(pictures) == 18
    assert {tuple(picture.shape) for picture in pictures} == {(64, 96, 3)}
    assert "change size, from 64x96 to 32x48" in caplog.text
    assert caplog.text.count("change size") == 1
    assert abs(float(pictures[-1].float().mean()) - 100) < 6


def test_a_video_of_no_frames_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: data.index(b"\xa3")])
    with pytest.raises(FileFormatError):
        framed(VideoFile(tmp_path / "a.mkv"))
    with pytest.raises(ValueError, match="there is no picture"):
        PictureVideo(torch.zeros(0, 16, 16, 3), fps=8.0)


@pytest.mark.parametrize(("content", "why"), [
    (b"", "the file is empty"), (b"not a video", ""), (b"\x00" * 500, ""),
])  # fmt: skip
def test_an_unreadable_file_is_refused(tmp_path, content, why):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"a\.mp4 cannot be read as a video: {why}"):
        framed(VideoFile(tmp_path / "a.mp4"))


def test_a_truncated_file_is_refused(tmp_path):
    save_video(tmp_path / "a.mkv", colors(20), 12, lossless=True)
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    with pytest.raises(FileFormatError, match="truncated"):
        framed(VideoFile(tmp_path / "a.mkv"))


def test_a_varying_frame_rate_keeps_all_frames_and_is_said(tmp_path, caplog):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pts in (0, 40, 80, 500, 540, 580):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 100, np.uint8))
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with caplog.at_level(logging.WARNING):
        video = VideoFile(tmp_path / "a.mp4")
        results = [framed(video) for _ in range(2)]
    assert [result.num_frames for result in results] == [6, 6]
    assert all(9 < result.fps < 11 for result in results)
    assert caplog.text.count("not evenly spaced") == 1


@pytest.mark.parametrize(("options", "message"), [
    ({"max_frames": 0}, "max_frames is 0"), ({"frame_step": 0}, "frame_step is 0"),
])  # fmt: skip
def test_numbers_of_frames_below_one_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VideoFile("a.mp4", **options)


def test_pictures_with_nan_and_bad_rates_are_refused(as_users_run_it):
    frames = colors(3)
    frames[1, 5, 5, 0] = torch.nan
    with pytest.raises(ValueError, match="Frame 1 has a colour that is NaN"):
        framed(PictureVideo(frames, fps=8.0))
    with pytest.raises(ValueError, match="fps is 0"):
        PictureVideo(colors(2), fps=0)
    with pytest.raises(ValueError, match="frames has shape"):
        PictureVideo(torch.zeros(2, 16, 16, 4), fps=8.0)


def test_reading_can_be_interrupted():
    class Stop(Exception):
        pass

    def stop(_done: int, _total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        frame_video(
            PictureVideo(colors(3), fps=8.0),
            lambda hw: plan_framing(hw, GEO4D_SIZES["toy"]),
            progress=stop,
        )
