import pytest
import torch

from more4d_backend.files import FileFormatError
from training.data.lossless_video import decode_video, encode_video


@pytest.mark.parametrize("shape", [(1, 16, 16), (7, 18, 34), (5, 32, 48)])
def test_frames_come_back_to_the_bit(shape):
    frames = torch.randint(256, (*shape, 3), dtype=torch.uint8)
    assert torch.equal(decode_video(encode_video(frames, 8.0), "it"), frames)


def test_equal_frames_give_equal_bytes():
    frames = torch.randint(256, (9, 32, 48, 3), dtype=torch.uint8)
    assert encode_video(frames, 23.976) == encode_video(frames.clone(), 23.976)


def test_the_frame_rate_is_kept():
    import io

    import av

    data = encode_video(torch.zeros(5, 16, 16, 3, dtype=torch.uint8), 29.97)
    with av.open(io.BytesIO(data), "r") as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(29.97, abs=1e-3)


@pytest.mark.parametrize("data", [b"", b"no video at all" * 100])
def test_bytes_that_are_no_video_are_refused(data):
    with pytest.raises(FileFormatError, match="frames of x is not a readable video"):
        decode_video(data, "frames of x")


def test_a_video_of_other_colours_and_sizes_than_ours_is_read_too():
    import io

    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=24, options={"crf": "1"})
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        grey = torch.full((32, 48, 3), 90, dtype=torch.uint8).numpy()
        for _ in range(3):
            container.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(video.encode(None))
    frames = decode_video(stream.getvalue(), "it")
    assert frames.shape == (3, 32, 48, 3)
    assert (frames.int() - 90).abs().max() <= 3
