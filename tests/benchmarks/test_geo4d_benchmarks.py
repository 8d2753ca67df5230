"""The benchmark of Geo4D's networks, at toy size and on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_part_is_timed_and_a_whole_video_added_up(tmp_path):
    out = tmp_path / "figures.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.geo4d_networks",
        "--size",
        "toy",
        "--device",
        "cpu",
    ]
    command += ["--height", "32", "--width", "48", "--repeats", "1", "--output", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    times = found["milliseconds"]
    assert {"UNet, 1 window", "encode, per frame", "decode reduced by 4, per frame"} <= set(times)
    assert all(value > 0 for row in times.values() for value in row.values())
    assert set(found["whole"]) == {"baseline", "ours"}
    assert "ours differs from the baseline" in done.stdout
