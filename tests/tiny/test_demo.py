"""`make demo`: its commands at toy size, and what the committed weights make of its picture."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from more4d_backend import tiny
from more4d_backend.cli import main
from more4d_backend.evaluation.directions import match_objects
from more4d_backend.files.images import load_image, save_image
from more4d_backend.files.videos import load_mask_video, load_video
from more4d_backend.motion import OWN_MOTION, normalize_motion
from more4d_backend.scene_files import load_scene
from training.procedural.demo_picture import (
    DEMO_SEED,
    FIRST_HELD_OUT_SEED,
    LEAST_MOTION_PX,
    demo_scene,
    largest_motion_px,
    write,
)
from training.run.settings import SettingsError

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def generate_arguments(folder: Path, **variables: str) -> list[str]:
    """Return what `make demo` hands to `python -m more4d_backend`."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed here")
    variables = {"DEMO": str(folder), "EMBEDDED": "there"} | variables
    given = [f"{name}={value}" for name, value in variables.items()]
    printed = subprocess.run(
        ["make", "--dry-run", "--file", str(MAKEFILE), "demo", *given],
        cwd=MAKEFILE.parent, check=True, capture_output=True, text=True,
    )  # fmt: skip
    line = next(line for line in printed.stdout.splitlines() if "more4d_backend generate" in line)
    return shlex.split(line.partition("-m more4d_backend ")[2])


def as_a_shell(arguments: list[str], **variables: str) -> list[str]:
    """Put values for the shell's own expressions."""
    return [variables.get(argument, argument) for argument in arguments]


@pytest.fixture
def random_weights(random_embedded, monkeypatch):
    monkeypatch.setattr(tiny, "WEIGHTS_FOLDER", random_embedded)


TOY = ["--num-frames", "5", "--size-hw", "32", "48", "--num-steps", "2"]


def test_the_demo_makes_video_sheet_and_scene_from_its_own_picture(random_weights, tmp_path):
    assert write(tmp_path) == 0
    caption = (tmp_path / "caption.txt").read_text().strip()
    arguments = generate_arguments(tmp_path)
    (prompt,) = (a for a in arguments if a.startswith("${PROMPT"))
    assert f"cat {tmp_path}/caption.txt" in prompt
    assert main([*as_a_shell(arguments, **{prompt: caption}), *TOY]) == 0
    for name in ("orbit-left.mp4", "contact-sheet.png", "scene.safetensors"):
        assert (tmp_path / name).stat().st_size > 0


def test_the_demo_takes_any_picture_prompt_and_cameras(random_weights, tmp_path):
    photo = tmp_path / "my photo.png"
    save_image(photo, torch.rand(40, 60, 3))
    arguments = generate_arguments(
        tmp_path / "demo", IMAGE=str(photo), PROMPT="it's a ball", CAMERA="orbit-left dolly-in"
    )
    assert "$PROMPT" in arguments
    told = {"$IMAGE": str(photo), "$PROMPT": "it's a ball that moves left"}
    assert main([*as_a_shell(arguments, **told), *TOY]) == 0
    assert (tmp_path / "demo" / "orbit-left.mp4").exists()
    assert (tmp_path / "demo" / "dolly-in.mp4").exists()


def test_without_embedded_weights_the_demo_still_renders(tmp_path, capfd):
    if shutil.which("make") is None:
        pytest.skip("make is not installed here")
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "venv" / ".headless").touch()
    subprocess.run(
        ["make", "--file", str(MAKEFILE), f"--old-file={tmp_path}/venv/.headless", "demo",
         f"DEMO={tmp_path}/out", "EMBEDDED=", f"VENV={tmp_path}/venv"],
        cwd=MAKEFILE.parent, check=True,
    )  # fmt: skip
    assert "embedded weights are not in this checkout" in capfd.readouterr().out
    for name in ("orbit-left.mp4", "contact-sheet.png", "scene.safetensors"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_everything_that_moves_in_the_demos_picture_moves_visibly():
    scene = demo_scene(DEMO_SEED)
    moving = [thing.family != "still" for thing in scene.objects]
    assert sum(moving) >= 2
    motion_px = largest_motion_px(scene.truth, scene.object_index, len(scene.objects))
    for moves, distance in zip(moving, motion_px, strict=True):
        assert not moves or distance >= LEAST_MOTION_PX
    for thing in scene.objects:
        assert f"{thing.name} {thing.motion}" in scene.caption.lower()


def test_seeds_that_may_have_been_trained_on_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="expected 900000000 or more"):
        write(tmp_path, seed=FIRST_HELD_OUT_SEED - 1)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory) -> Path:
    """Folder of the demo, as `make demo` runs it: half a minute on two cores."""
    if not tiny.has_embedded_weights():
        pytest.skip("the trained embedded weights are not in this checkout")
    folder = tmp_path_factory.mktemp("demo")
    write(folder)
    caption = (folder / "caption.txt").read_text().strip()
    arguments = generate_arguments(folder)
    (prompt,) = (a for a in arguments if a.startswith("${PROMPT"))
    assert main(as_a_shell(arguments, **{prompt: caption})) == 0
    return folder


def test_things_in_the_finished_demo_go_where_the_caption_says(finished_demo):
    scene, made = demo_scene(DEMO_SEED), load_scene(finished_demo / "scene.safetensors")
    assert made.num_frames == 49
    assert (made.cameras.height, made.cameras.width) == (128, 176)
    # Divided by depth and focal length, both of which the depth network guessed.
    true, ours = (
        normalize_motion(s.points.positions, s.cameras, OWN_MOTION) for s in (scene.truth, made)
    )
    index = scene.object_index.flatten()
    words = [f"{thing.name} {thing.motion}" for thing in scene.objects]
    matches = match_objects(ours, true, index, words)
    assert len(matches) == len(words)
    assert all(match.is_right for match in matches), matches
    still = ours[:, index < 0].norm(dim=-1)
    moved = ours[:, index >= 0].norm(dim=-1)[1:].mean()
    assert torch.quantile(still[-1], 0.95) <= 0.1 * moved


def test_the_finished_demo_fills_holes_and_keeps_the_rest(finished_demo):
    completed = load_video(finished_demo / "orbit-left.mp4")[0]
    rendered = load_video(finished_demo / "orbit-left-render.mkv")[0]
    holes = load_mask_video(finished_demo / "orbit-left-holes.mkv")[0] > 0.5
    assert completed.shape == rendered.shape == (49, 128, 176, 3)
    assert holes.any()
    known = (completed - rendered)[~holes].square().mean()
    assert -10 * known.log10() > 20
    # Holes are rendered black; whatever is put there must be as bright as what is around it.
    around = rendered[~holes].mean()
    assert abs(completed[holes].mean() - around) < 0.25
    photo = load_image(finished_demo / "photo.png")
    assert (completed[0] - photo).abs().mean() < 0.1
