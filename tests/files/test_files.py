import os

import pytest
import torch

from more4d_backend.files import OutputError, replacing, replacing_folder


def test_a_finished_file_appears_under_its_name(tmp_path):
    with replacing(tmp_path / "new" / "a.txt") as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_refused_before_work_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"), replacing(tmp_path / "file" / "a"):
        pytest.fail("the block ran")
    with pytest.raises(OutputError, match="is a folder"), replacing(tmp_path):
        pytest.fail("the block ran")


def write_a_scene(path):
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({"a": torch.zeros(100_000)}, temporary)


def write_bytes(path):
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(100_000))


def write_a_folder(path):
    with replacing_folder(path, "frame_*.ply") as temporary:
        (temporary / "frame_0000.ply").write_bytes(bytes(100_000))


@pytest.mark.parametrize("write", [write_a_scene, write_bytes, write_a_folder])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, write):
    # A limit on file sizes makes the same system calls fail as a full disk does.
    resource = pytest.importorskip("resource", reason="file sizes are limited on Unix only")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match="no space is left"):
            write(tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_file_may_be_read_by_whom_other_new_files_may_be_read(tmp_path):
    (tmp_path / "other").touch()
    with replacing(tmp_path / "new") as temporary:
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_name_that_no_file_can_have_is_refused_before_work(tmp_path):
    with pytest.raises(OutputError, match="No file can be made"), replacing(tmp_path / ("a" * 300)):
        pytest.fail("The block ran.")
    assert not list(tmp_path.iterdir())
