"""Weight files on disk: whole, damaged, hostile, in parts."""

import hashlib
import json
import os
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file

from more4d_backend.files import FileFormatError
from more4d_backend.weights.files import WeightsError, file_sha256, first_five, open_weights, stored

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "scalar": torch.tensor(2.0, dtype=torch.float16),
    "counts": torch.arange(3),
}


class Calls:
    def __init__(self, function, *arguments):
        self.recipe = function, arguments

    def __reduce__(self):
        return self.recipe


def check(file):
    assert set(file.tensors) == set(TENSORS)
    for name, expected in TENSORS.items():
        tensor = file.tensors[name]
        assert tensor.shape == tuple(expected.shape)
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor.read(), expected)
    assert file.num_parameters == 6 + 4 + 1 + 3


def test_a_safetensors_file_is_read_with_its_metadata(tmp_path):
    save_file(TENSORS, tmp_path / "w.safetensors", metadata={"about": "test"})
    file = open_weights(tmp_path / "w.safetensors")
    check(file)
    assert file.metadata == {"about": "test"}


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".ckpt", ".torch"])
@pytest.mark.parametrize("in_zip", [True, False])
@pytest.mark.parametrize("container", [None, "state_dict", "module"])
def test_torch_files_are_read_whatever_their_form(tmp_path, suffix, in_zip, container):
    content = {container: TENSORS, "epoch": 3} if container else TENSORS
    path = tmp_path / f"w{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=in_zip)
    check(open_weights(path))


def test_the_content_and_not_the_suffix_decides(tmp_path):
    save_file(TENSORS, tmp_path / "w.bin")
    check(open_weights(tmp_path / "w.bin"))


@pytest.mark.parametrize("how", ["index", "folder"])
def test_a_file_in_parts_is_one_file(tmp_path, how):
    names = list(TENSORS)
    parts = {"w-00001-of-00002.safetensors": names[:2], "w-00002-of-00002.safetensors": names[2:]}
    for part, held in parts.items():
        save_file({name: TENSORS[name] for name in held}, tmp_path / part)
    weight_map = {name: part for part, held in parts.items() for name in held}
    index = tmp_path / "w.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    check(open_weights(index if how == "index" else tmp_path))
    with pytest.raises(WeightsError, match=r"one of 2 parts.*w\.safetensors\.index\.json"):
        open_weights(tmp_path / "w-00001-of-00002.safetensors")
    (tmp_path / "w-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"needs the part w-00002-of-00002\.safetensors"):
        open_weights(index)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "no", '{"weight_map": {"a": 3}}', '{"weight_map": 1}']
)
def test_a_broken_index_is_refused(tmp_path, text):
    index = tmp_path / "w.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(WeightsError):
        open_weights(index)


def test_an_index_cannot_reach_outside_its_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    save_file(TENSORS, tmp_path / "w.safetensors")
    index = tmp_path / "inner" / "w.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "../w.safetensors")}))
    with pytest.raises(WeightsError, match="not beside it"):
        open_weights(index)


def test_tensors_that_an_index_promises_must_be_there(tmp_path):
    save_file({"b": TENSORS["b"]}, tmp_path / "part.safetensors")
    index = tmp_path / "w.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "part.safetensors")}))
    with pytest.raises(WeightsError, match=r"lack: a\.weight"):
        open_weights(index)


def test_a_folder_with_several_files_asks_for_one(tmp_path):
    expected = r"folder without weight files; expected one that ends in \.safetensors, .*vae\.ckpt"
    with pytest.raises(WeightsError, match=expected):
        open_weights(tmp_path)
    save_file(TENSORS, tmp_path / "a.safetensors")
    check(open_weights(tmp_path))
    save_file(TENSORS, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match=r"2 weight files: a\.safetensors, b\.safetensors"):
        open_weights(tmp_path)


@pytest.mark.parametrize("in_zip", [True, False])
def test_code_in_a_file_is_refused_and_never_runs(tmp_path, in_zip):
    mark = tmp_path / "mark"
    path = tmp_path / "w.pth"
    torch.save(
        {"a": torch.zeros(2), "b": Calls(os.makedirs, str(mark))},
        path,
        _use_new_zipfile_serialization=in_zip,
    )
    with pytest.raises(WeightsError, match=r"is refused: it names os\.makedirs"):
        open_weights(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # The file is live: torch's unrestricted reader does run it.


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_with_code_is_refused(tmp_path):
    mark = tmp_path / "mark"
    path = tmp_path / "w.ckpt"
    path.write_bytes(pickle.dumps(Calls(os.makedirs, str(mark))))
    with pytest.raises(WeightsError):
        open_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"hello", "it begins with the bytes 68 65 6c 6c 6f"),
        (b"\x89PNG\r\n\x1a\n", "it begins with the bytes 89 50 4e 47"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_download_tools_leave_behind_is_named(tmp_path, content, said, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(
        WeightsError, match=said if suffix == ".pth" or "bytes" not in said else "whole"
    ):
        open_weights(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        open_weights(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 3}, {}, torch.zeros(3), {"state_dict": {"a": "x"}}]
)
def test_a_torch_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"expected tensors by their names|should hold tensors"):
        open_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for length in (1, 7, 9, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            open_weights(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_mutated_files_give_tensors_or_the_documented_error(tmp_path, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(min(len(data), 1200))] = draw.randrange(256)
        mutated = tmp_path / f"m{path.suffix}"
        mutated.write_bytes(bytes(data))
        try:
            for tensor in open_weights(mutated).tensors.values():
                tensor.read()
        except FileFormatError:
            refused += 1
    assert refused > 20


def test_tensors_in_memory_are_described_the_same_way():
    described = stored(TENSORS)
    assert described["a.weight"].shape == (2, 3)
    assert described["a.weight"].read() is TENSORS["a.weight"]


def test_long_lists_are_cut_after_five():
    assert first_five("abc") == "a, b, c"
    assert first_five("abcdefg") == "a, b, c, d, e and 2 more"
    assert first_five([]) == ""


def test_the_hash_is_sha256_and_progress_reaches_the_end(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x" * 40_000_000)
    seen = []
    digest = file_sha256(path, lambda done, total: seen.append((done, total)))
    assert digest == hashlib.sha256(b"x" * 40_000_000).hexdigest()
    assert seen[-1] == (40_000_000, 40_000_000)
    assert len(seen) == 3
