"""Ranks that do not belong together end with a sentence instead of waiting for each other."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sharded_run.py"
ROOT = Path(__file__).parents[3]
TINY = "--size tiny --num-frames 5 --size-hw 32 32 --num-steps 2 --learning-rate 1e-3".split()
SECONDS = 240
"""A rank that waits for the other one is ended, and the test has failed."""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="torch.distributed lacks gloo's TCP")


def started_by_hand(ranks: list[tuple[str, Path, Path]]) -> list[tuple[int, str]]:
    """Start ranks of (engine, working folder, output); return exit codes and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    for rank, (engine, folder, output) in enumerate(ranks):
        folder.mkdir(parents=True, exist_ok=True)
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(ranks))}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
        running.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), engine, "drawn", *TINY, "--output", str(output)],
                env={**os.environ, **place, **where, "OMP_NUM_THREADS": "1"},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


def test_ranks_of_different_engines_are_told_so(tmp_path):
    ranks = started_by_hand([("fsdp", tmp_path, tmp_path), ("none", tmp_path, tmp_path)])
    for code, said in ranks:
        assert code != 0
        assert "The ranks have different settings: launch.engine" in said


def test_ranks_whose_output_folders_are_not_one_are_told_so(tmp_path):
    output = Path("run")  # relative, and the ranks are started in different folders
    ranks = started_by_hand([("none", tmp_path / name, output) for name in ("a", "b")])
    for code, said in ranks:
        assert code != 0
        assert "run is not shared by all ranks: rank 1 does not see" in said
    assert not list((tmp_path / "a" / "run").glob(".shared-*"))
