"""The two benchmarks of a whole generation run, at toy size and on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOY = ["--size", "tiny", "--device", "cpu", "--num-frames", "5", "--height", "32", "--width", "48"]


def figures(script, tmp_path, *more):
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", f"benchmarks.{script}", *TOY, *more, "--output", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text()), done.stdout


def test_every_second_of_a_generation_is_in_some_part(tmp_path):
    found, table = figures("end_to_end", tmp_path, "--steps", "3")
    seconds = found["seconds"]
    assert {"depth", "scene: denoising", "scene: decode", "dolly-zoom: render"} <= set(seconds)
    assert {"scene: encode condition", "dolly-zoom: complete: denoising"} <= set(seconds)
    # What is left over is a difference of clocks, and run.json has milliseconds.
    assert all(value > -0.01 for value in seconds.values()), seconds
    assert "extrapolated to 50 steps" in table


def test_step_caching_leaves_out_calls_and_says_how_far_off_it_ends(tmp_path):
    more = ["--steps", "4", "--thresholds", "0.0001", "0.9"]
    found, table = figures("step_cache", tmp_path, *more)
    plain, skipped, strict, loose = found["variants"]
    assert plain["full_calls"] == 4
    assert plain["relative_error"] == 0
    # Below the threshold nothing changes at all, above it the latent does.
    assert strict["full_calls"] == 4
    assert strict["relative_error"] < 1e-5
    assert loose["full_calls"] == 1
    assert loose["relative_error"] > 1e-4
    assert skipped["relative_error"] > 1e-4
    assert "random weights" in table
