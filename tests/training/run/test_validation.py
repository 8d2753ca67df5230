from dataclasses import replace

import pytest
import torch
from PIL import Image

from more4d_backend.files.videos import load_video
from training.recipes import motion_vae_tiny, strag_tiny, vism_tiny
from training.train_motion_vae import train as train_motion_vae
from training.train_strag import train as train_strag
from training.train_vism import train as train_vism

TRAINERS = {
    "motion_vae": (motion_vae_tiny, train_motion_vae, 2),
    "strag": (strag_tiny, train_strag, 2),
    "vism": (vism_tiny, train_vism, 3),
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_validation_writes_videos_of_the_result_beside_the_truth(trainer, small):
    recipe, train, num_videos = TRAINERS[trainer]
    config = small(recipe, 1, validate_every=1, tracker="tensorboard")
    train(config)
    folder = config.run.output / "validation"
    for step in ("step-00000000", "step-00000001"):
        assert (folder / f"{step}.png").is_file()
        videos = sorted((folder / step).iterdir())
        assert [path.name for path in videos] == ["world-0100.mp4", "world-0101.mp4"]
        frames, fps = load_video(videos[0])
        assert frames.shape == (5, 32, num_videos * 32, 3)
        assert fps == 8.0
    shown = _images(config.run.output / "logs")
    assert shown.keys() == {
        "validation/frames",
        "validation/world-0100",
        "validation/world-0101",
    }
    assert all(len(events) == 2 for events in shown.values())
    gif = _decoded(shown["validation/world-0100"][0].encoded_image_string)
    assert (gif.format, gif.n_frames, gif.size) == ("GIF", 5, (num_videos * 32, 32))
    assert _decoded(shown["validation/frames"][0].encoded_image_string).format == "PNG"


def _images(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for events in folder.rglob("events.out.tfevents.*"):  # hyperparameters have a file of their own
        accumulator = EventAccumulator(str(events))
        accumulator.Reload()
        found |= {tag: accumulator.Images(tag) for tag in accumulator.Tags()["images"]}
    return found


def _decoded(data: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(data))


def test_the_true_scene_stands_left_of_the_generated_one(small, small_data):
    config = small(strag_tiny, 1, validate_every=1)
    config = replace(config, data=replace(config.data, num_validation_samples=1))
    train_strag(config)
    frames, _ = load_video(config.run.output / "validation" / "step-00000001" / "world-0100.mp4")
    from training.data.shards import ShardDataset

    true = ShardDataset(small_data / "validation", config.data.size)[0].video[0].float() / 255
    # In frame 0 nothing has moved: both sides are the picture. H.264 halves colour's resolution.
    assert (frames[0, :, :32] - true).abs().mean() < 0.05
    assert (frames[0, :, 32:] - true).abs().mean() < 0.05
    assert torch.isfinite(frames).all()
