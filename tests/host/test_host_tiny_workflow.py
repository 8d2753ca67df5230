"""The workflow with the embedded models, run by a real server from a prompt to a video."""

import json

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.host

NUM_FRAMES, HEIGHT, WIDTH = 9, 64, 80


def saved_video(run):
    """Return what SaveVideo says it wrote."""
    files = [shown["images"][0] for shown in run.outputs.values()]
    return next(file for file in files if file["filename"].endswith(".mp4"))


def named(prompt, class_type):
    return [key for key, node in prompt.items() if node["class_type"] == class_type]


@pytest.fixture(scope="module")
def first_run(comfy, schemas, make_tiny_prompt):
    """The whole workflow, and what came of it."""
    prompt = make_tiny_prompt(num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH)
    run = comfy.run(prompt)
    assert run.end == "execution_success", run.detail
    return prompt, run


@pytest.fixture
def small(make_tiny_prompt):
    """`small(seed, **settings)`: a prompt that takes few seconds, and more if told so."""
    return lambda seed, **settings: make_tiny_prompt(
        num_frames=5, height=48, width=64, seed=seed, **settings
    )


def test_a_picture_becomes_a_video_that_starts_with_it(
    comfy, first_run, video_frames, png, screenshots
):
    _, run = first_run
    frames = video_frames(comfy.file(saved_video(run)))
    assert frames.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    sheet = np.concatenate(frames[[0, NUM_FRAMES // 2, -1]], axis=1)
    (screenshots / f"video-{comfy.installation.folder.name}.png").write_bytes(png(sheet))
    with Image.open("nodes/pictures/box-moves-left.png") as file:
        # Cropped to the proportions of the video: 160 of 176 columns.
        picture = np.asarray(file.convert("RGB").resize((88, HEIGHT)))[:, 4:-4]
    difference = np.abs(frames.astype(float) - picture).mean(axis=(1, 2, 3))
    # Video compression and two resamplings: 8 of 255. Later frames are seen from elsewhere.
    assert difference[0] < 16
    assert difference[-1] > 1.2 * difference[0]


def test_every_node_ran_and_sampling_showed_previews_and_progress(first_run):
    prompt, run = first_run
    # Tests before this one may have left a loader in the cache.
    assert run.executed | run.cached == set(prompt)
    assert {*named(prompt, "KSampler"), *named(prompt, "SaveVideo")} <= run.executed
    pictures = [data for kind, data in run.events if kind == "preview"]
    assert len(pictures) >= 2
    assert all(b"\xff\xd8\xff" in data[:4096] or b"PNG" in data[:4096] for data in pictures)
    steps = {(data["node"], data["value"]) for kind, data in run.events if kind == "progress"}
    for sampler in named(prompt, "KSampler"):
        assert (sampler, prompt[sampler]["inputs"]["steps"]) in steps


def test_a_second_run_computes_nothing_again(comfy, first_run):
    prompt, run = first_run
    again = comfy.run(prompt)
    assert again.end == "execution_success"
    assert again.executed == set()
    assert again.cached == set(prompt)
    assert saved_video(again) == saved_video(run)


def test_an_interrupted_prompt_stops_at_once_and_can_be_run_again(comfy, small):
    prompt = small(1, steps=500)
    with comfy.listen() as listener:
        prompt_id = comfy.queue(prompt, listener)
        listener.until(lambda kind, data: kind == "progress" and data["max"] == 500)
        comfy.post("/interrupt", {})
        before = len(listener.events)
        end, detail = listener.until_end(prompt_id, timeout=60)
    assert end == "execution_interrupted"
    assert prompt[detail["node_id"]]["class_type"] == "KSampler"
    steps = [d["value"] for k, d in listener.events[before:] if k == "progress"]
    assert len(steps) < 10
    run = comfy.run(small(1))
    assert run.end == "execution_success", run.detail
    # Everything before the sampler was kept.
    assert named(prompt, "More4DStragConditioning")[0] in run.cached


def test_a_cancelled_prompt_never_starts_and_the_others_go_on(comfy, small):
    with comfy.listen() as listener:
        first = comfy.queue(small(2, steps=500), listener)
        second, third = (comfy.queue(small(seed), listener) for seed in (3, 4))
        listener.until(lambda kind, data: kind == "progress" and data["max"] == 500)
        comfy.post("/queue", {"delete": [second]})
        comfy.post("/interrupt", {})
        assert listener.until_end(first)[0] == "execution_interrupted"
        assert listener.until_end(third)[0] == "execution_success"
    started = [d["prompt_id"] for kind, d in listener.events if kind == "execution_start"]
    assert started == [first, third]
    assert comfy.get(f"/history/{second}") == {}


def test_two_queued_prompts_give_two_videos_in_order(comfy, small):
    with comfy.listen() as listener:
        ids = [comfy.queue(small(seed), listener) for seed in (5, 6)]
        ends = [listener.until_end(prompt_id) for prompt_id in ids]
    assert [end for end, _ in ends] == ["execution_success"] * 2
    videos = [json.dumps(comfy.outputs(prompt_id)) for prompt_id in ids]
    assert videos[0] != videos[1]
