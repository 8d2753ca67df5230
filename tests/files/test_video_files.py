import io
import logging
import re
import struct
import wave
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import torch

from more4d_backend.files import FileFormatError, OutputError
from more4d_backend.files.videos import (
    load_mask_video,
    load_video,
    save_mask_video,
    save_video,
)


def moving_colors(frames: int = 12, height: int = 128, width: int = 192) -> torch.Tensor:
    """Smooth colours that reach every corner of the RGB cube and move."""
    t, y, x = torch.meshgrid(
        torch.linspace(0, 3, frames), torch.linspace(0, 4, height), torch.linspace(0, 5, width),
        indexing="ij",
    )  # fmt: skip
    return torch.stack([(x + t).sin(), (y - t).cos(), (x + y + t).sin()], dim=-1) / 2 + 0.5


def psnr_db(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def eight_bit(frames: torch.Tensor) -> torch.Tensor:
    return (frames * 255).round() / 255


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_h264_video_comes_back_with_its_colors_and_its_rate(tmp_path, suffix):
    frames = moving_colors()
    save_video(tmp_path / f"a{suffix}", frames, 23.976)
    back, fps = load_video(tmp_path / f"a{suffix}")
    assert back.shape == frames.shape
    assert fps == pytest.approx(23.976)
    assert psnr_db(back, frames) > 42  # measured: 43.5
    # A wrong matrix or range shifts colours everywhere; 4:2:0 only blurs them. Measured: 0.0012.
    assert (back - frames).mean((0, 1, 2)).abs().max() < 0.003


def test_an_independent_reader_sees_the_same_colors(tmp_path):
    frames = moving_colors()
    save_video(tmp_path / "a.mp4", frames, 24)
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    found = []
    while (answer := capture.read())[0]:
        found.append(torch.from_numpy(answer[1][..., ::-1].copy()).float() / 255)
    assert psnr_db(torch.stack(found), frames) > 39  # measured: 40.4; it repeats chroma pixels


def test_mp4_says_its_colors_and_begins_with_its_index(tmp_path):
    save_video(tmp_path / "a.mp4", moving_colors(), 24)
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert context.color_range == 1
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("size", [(127, 192), (128, 191), (127, 191), (1, 1)])
def test_odd_sizes_are_kept_and_announced(tmp_path, caplog, size):
    frames = moving_colors(5, *size)
    with caplog.at_level(logging.WARNING):
        save_video(tmp_path / "a.mp4", frames, 24)
    assert "its size is odd, so it is written as H.264 4:4:4" in caplog.text
    back, _ = load_video(tmp_path / "a.mp4")
    assert back.shape == frames.shape
    assert psnr_db(back, frames) > 41  # measured: 42.6 or more


@pytest.mark.parametrize("size", [(32, 48), (31, 47), (9, 17)])
def test_lossless_video_keeps_every_bit(tmp_path, size):
    frames = torch.rand(7, *size, 3, generator=torch.Generator().manual_seed(0))
    save_video(tmp_path / "a.mkv", frames, 30, lossless=True)
    back, fps = load_video(tmp_path / "a.mkv")
    assert torch.equal(back, eight_bit(frames))
    assert fps == 30


def test_mask_video_keeps_every_bit(tmp_path):
    hard = torch.rand(7, 31, 47, generator=torch.Generator().manual_seed(0)) > 0.5
    save_mask_video(tmp_path / "a.mkv", hard, 12.5)
    back, fps = load_mask_video(tmp_path / "a.mkv")
    assert torch.equal(back, hard.float())
    assert fps == 12.5
    as_rgb, _ = load_video(tmp_path / "a.mkv")
    assert torch.equal(as_rgb, hard.float()[..., None].expand(-1, -1, -1, 3))
    soft = torch.rand(3, 31, 47, generator=torch.Generator().manual_seed(0))
    save_mask_video(tmp_path / "b.mkv", soft, 12.5)
    assert torch.equal(load_mask_video(tmp_path / "b.mkv")[0], eight_bit(soft))


def test_a_mask_from_color_video_is_its_brightness(tmp_path):
    grey = torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1, 1).expand(3, 16, 16, 3)
    save_video(tmp_path / "a.mp4", grey, 24)
    mask, _ = load_mask_video(tmp_path / "a.mp4")
    assert torch.allclose(mask, grey[..., 0], atol=0.01)


def test_values_outside_0_to_1_are_clamped(tmp_path):
    frames = torch.tensor([-1.0, 2.0, torch.nan]).view(3, 1, 1, 1).expand(3, 8, 8, 3)
    save_video(tmp_path / "a.mkv", frames, 24, lossless=True)
    assert load_video(tmp_path / "a.mkv")[0][:, 0, 0, 0].tolist() == [0, 1, 0]


def test_only_the_first_frames_are_read_when_asked(tmp_path):
    frames = eight_bit(moving_colors())
    save_video(tmp_path / "a.mkv", frames, 24, lossless=True)
    back, fps = load_video(tmp_path / "a.mkv", max_frames=5)
    assert torch.equal(back, frames[:5])
    assert fps == 24
    with pytest.raises(ValueError, match="max_frames is 0"):
        load_video(tmp_path / "a.mkv", max_frames=0)


def test_a_video_too_large_for_memory_is_refused_early(tmp_path, monkeypatch):
    save_video(tmp_path / "a.mkv", moving_colors(), 24, lossless=True)
    monkeypatch.setattr("more4d_backend.files.video_decoding.LIMIT_BYTES", 5 * 128 * 192 * 3 * 4)
    with pytest.raises(FileFormatError, match=r"first 6 frames take .* pass max_frames"):
        load_video(tmp_path / "a.mkv")
    assert len(load_video(tmp_path / "a.mkv", max_frames=5)[0]) == 5


def test_frames_at_uneven_times_are_all_kept_and_announced(tmp_path, caplog):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pts in (0, 40, 80, 500, 540, 580):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), pts % 251, np.uint8))
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with caplog.at_level(logging.WARNING):
        frames, fps = load_video(tmp_path / "a.mp4")
    assert len(frames) == 6
    assert 9 < fps < 11
    assert "not evenly spaced" in caplog.text


@pytest.mark.parametrize(("turn", "matrix"), [
    (1, (0, -1, 1, 0)), (2, (-1, 0, 0, -1)), (3, (0, 1, -1, 0)),
])  # fmt: skip
def test_a_video_filmed_sideways_is_turned_upright(tmp_path, turn, matrix):
    frames = moving_colors(4)
    save_video(tmp_path / "a.mp4", frames, 24)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    unity = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    at = data.rindex(unity)  # that of the track; the first is that of the movie
    a, b, c, d = (0x10000 * value for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    (tmp_path / "a.mp4").write_bytes(data)
    back, _ = load_video(tmp_path / "a.mp4")
    assert psnr_db(back, torch.rot90(frames, turn, (1, 2))) > 41
    # OpenCV turns frames by the same matrix.
    ok, picture = cv2.VideoCapture(str(tmp_path / "a.mp4")).read()
    assert ok
    assert psnr_db(torch.from_numpy(picture[..., ::-1].copy()).float() / 255, back[0]) > 39


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.3, 0.6, 0.9, 0.97])
def test_a_truncated_video_is_refused(tmp_path, lossless, kept):
    path = tmp_path / ("a.mkv" if lossless else "a.mp4")
    save_video(path, moving_colors(24), 24, lossless=lossless)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(FileFormatError, match="cannot be read as a video"):
        load_video(path)


def test_what_a_truncated_video_has_is_read_when_asked(tmp_path):
    frames = eight_bit(moving_colors(24))
    save_video(tmp_path / "a.mkv", frames, 24, lossless=True)
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    with pytest.raises(FileFormatError, match=r"is truncated: it promises 1\.000 s") as refusal:
        load_video(tmp_path / "a.mkv")
    advice = re.search(r"pass max_frames=(\d+)", str(refusal.value))
    there = int(advice.group(1))
    assert 8 < there < 16
    assert torch.equal(load_video(tmp_path / "a.mkv", max_frames=there)[0], frames[:there])


def silence() -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a video at all" * 100,
        silence(),
        b"ffconcat version 1.0\nfile whole.mp4\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nwhole.mp4\n#EXT-X-ENDLIST\n",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ],
    ids=["empty", "text", "sound", "list-of-files", "playlist", "picture"],
)
def test_foreign_files_are_refused(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    save_video("whole.mp4", moving_colors(4), 24)
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(FileFormatError, match="cannot be read as a video"):
        load_video("a.mp4")


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_video(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda p: save_video(p / "a.avi", moving_colors(), 24), "needs .mp4 or .mov or .mkv"),
        (lambda p: save_video(p / "a.mp4", moving_colors(), 24, lossless=True), "needs .mkv"),
        (lambda p: save_mask_video(p / "a.mp4", torch.ones(2, 4, 4) > 0, 24), "needs .mkv"),
    ],
)
def test_endings_that_do_not_fit_are_refused(tmp_path, save, message):
    with pytest.raises(OutputError, match=message):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_frames_and_rates_are_refused_before_anything_is_written(tmp_path, as_users_run_it):
    path = tmp_path / "a.mp4"
    with pytest.raises(ValueError, match=r"frames has shape \(4, 4, 3\); expected"):
        save_video(path, torch.zeros(4, 4, 3), 24)
    with pytest.raises(ValueError, match="nothing to write"):
        save_video(path, torch.zeros(0, 4, 4, 3), 24)
    for fps in (0, -1, float("nan"), float("inf"), 1e-9):
        with pytest.raises(ValueError, match="fps is"):
            save_video(path, torch.zeros(1, 4, 4, 3), fps)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_video_leaves_the_older_file(tmp_path):
    path = tmp_path / "a.mp4"
    save_video(path, moving_colors(), 24)
    before = path.read_bytes()
    steps = []

    def interrupt(done, total):
        steps.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_video(path, moving_colors(), 24, progress=interrupt)
    assert steps == [(1, 12), (2, 12), (3, 12)]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "mask"])
def test_no_mutation_raises_anything_but_the_documented_error(
    tmp_path, as_users_run_it, little_memory, mutate, kind
):
    path = tmp_path / ("a.mp4" if kind == "mp4" else "a.mkv")
    if kind == "mask":
        save_mask_video(path, moving_colors(3, 16, 16)[..., 0] > 0.5, 24)
    else:
        save_video(path, moving_colors(3, 16, 16), 24, lossless=kind == "mkv")
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(2000):
        path.write_bytes(mutate(whole, rng))
        try:
            load_mask_video(path) if kind == "mask" else load_video(path)
        except FileFormatError as e:
            assert str(path) in str(e)  # noqa: PT017
            refused += 1
    assert 600 < refused < 2000
