import io
import json
import tarfile
from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load, save

from more4d_backend.files import FileFormatError
from training.data.samples import SampleError, SampleSize, TrainingSample
from training.data.shards import ShardDataset, write_shard


def _rewritten(path, change) -> None:
    """Write the tar at `path` again; `change(name, data)` returns new data, or None to drop."""
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            if (data := change(name, data)) is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _json_with(**changes):
    def change(name: str, data: bytes) -> bytes:
        return json.dumps(json.loads(data) | changes).encode() if name.endswith("json") else data

    return change


def _tensors_with(change_tensors):
    def change(name: str, data: bytes) -> bytes:
        return save(change_tensors(load(data))) if name.endswith("safetensors") else data

    return change


@pytest.fixture
def shard(make_sample, tmp_path):
    path = tmp_path / "train-000.tar"
    assert write_shard(path, (make_sample(seed, novel=True) for seed in range(3))) == 3
    return path


@pytest.mark.parametrize("novel", [False, True])
def test_samples_come_back_to_the_bit(novel, make_sample, tmp_path):
    samples = [make_sample(seed, frames=6, height=18, width=34, novel=novel) for seed in range(2)]
    write_shard(tmp_path / "a.tar", samples)
    dataset = ShardDataset(tmp_path)
    assert dataset.has_novel_views == novel
    assert len(dataset) == 2
    for sample, read in zip(samples, (dataset[0], dataset[1]), strict=True):
        for name in TrainingSample.__slots__:
            there, here = getattr(sample, name), getattr(read, name)
            if isinstance(there, torch.Tensor):
                assert there.dtype == here.dtype
                assert torch.equal(there, here), name
            elif "cameras" in name and there is not None:
                assert torch.equal(there.world_to_camera, here.world_to_camera)
                assert torch.equal(there.intrinsics, here.intrinsics)
                assert (there.height, there.width) == (here.height, here.width)
            else:
                assert there == here


def test_equal_samples_give_equal_shards(make_sample, tmp_path):
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, [make_sample(1, novel=True)])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_the_layout_is_the_documented_one(shard):
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        about = json.load(tar.extractfile("random-0001.json"))
        tensors = load(tar.extractfile("random-0001.safetensors").read())
    kinds = ("json", "safetensors", "mp4", "novel.mp4")
    assert names == [f"random-{i:04d}.{kind}" for i in range(3) for kind in kinds]
    assert about == {
        "format": "more4d-training-sample",
        "version": 1,
        "name": "random-0001",
        "caption": "A square moves 1 times.",
        "source": "random seed 1",
        "fps": 8.0,
        "frames": 5,
        "height": 16,
        "width": 32,
        "novel": True,
        "objects": [],
    }
    assert {name: (str(t.dtype), tuple(t.shape)) for name, t in tensors.items()} == {
        "depth": ("torch.float32", (16, 32)),
        "motion": ("torch.float16", (5, 16, 32, 3)),
        "visibility": ("torch.uint8", (5 * 16 * 32 // 8,)),
        "world_to_camera": ("torch.float32", (5, 4, 4)),
        "intrinsics": ("torch.float32", (5, 3, 3)),
        "novel_world_to_camera": ("torch.float32", (5, 4, 4)),
        "novel_intrinsics": ("torch.float32", (5, 3, 3)),
    }


def test_a_failed_writer_leaves_nothing(make_sample, tmp_path):
    with pytest.raises(SampleError, match="Two samples are named random-0000"):
        write_shard(tmp_path / "a.tar", [make_sample(0), make_sample(0)])
    assert list(tmp_path.iterdir()) == []


def test_motion_that_half_precision_cannot_hold_is_refused(make_sample, tmp_path):
    sample = make_sample()
    motion = sample.motion.float()
    motion[1] = 1e5
    with pytest.raises(SampleError, match="NaN or infinite"):
        write_shard(tmp_path / "a.tar", [replace(sample, motion=motion)])


def test_a_shard_that_is_being_written_is_not_read(shard):
    (shard.parent / ".train-001.0a1b2c3d.tar").write_bytes(b"half")
    assert len(ShardDataset(shard.parent)) == 3


def test_samples_are_brought_to_the_wanted_size(make_sample, tmp_path):
    write_shard(tmp_path / "a.tar", [make_sample(frames=9, height=40, width=70)])
    dataset = ShardDataset(tmp_path, SampleSize(num_frames=5, height=32, width=64))
    assert dataset[0].size_fhw == (5, 32, 64)


def test_a_sample_too_small_is_refused_before_training(shard):
    with pytest.raises(SampleError, match=r"random-0000 of .*has 5 frames of 16x32; expected"):
        ShardDataset(shard.parent, SampleSize(num_frames=9, height=16, width=32))


def test_an_empty_or_missing_folder_is_refused(tmp_path, make_sample):
    with pytest.raises(FileFormatError, match="nowhere is not there"):
        ShardDataset(tmp_path / "nowhere")
    with pytest.raises(FileFormatError, match="holds 0 shards"):
        ShardDataset(tmp_path)
    write_shard(tmp_path / "a.tar", [])
    with pytest.raises(FileFormatError, match=r"holds 1 shards .* and no sample"):
        ShardDataset(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_a_truncated_shard_is_named_before_training(kept, shard):
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(FileFormatError, match=r"train-000.tar is truncated"):
        ShardDataset(shard.parent)


def test_a_shard_cut_between_two_members_is_named(shard):
    with tarfile.open(shard) as tar:
        cut = tar.getmembers()[4].offset
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(FileFormatError, match="end mark of the tar is missing"):
        ShardDataset(shard.parent)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (_json_with(version=2), FileFormatError, r"version 2; this code reads .* version 1"),
        (_json_with(format="other"), FileFormatError, "says format 'other'"),
        (_json_with(caption=""), SampleError, "random-0000 of .* has no caption"),
        (_json_with(frames="5"), FileFormatError, "mistypes frames"),
        (_json_with(novel=False), FileFormatError, r"has the files .*novel\.mp4"),
        (_json_with(name="other"), FileFormatError, "calls itself 'other'"),
        (_json_with(extra=1), FileFormatError, "mistypes extra"),
        (lambda n, d: b"[]" if "json" in n else d, FileFormatError, "not the description"),
        (lambda n, d: b"{" if "json" in n else d, FileFormatError, "not the description"),
        (lambda n, d: None if "json" in n else d, FileFormatError, "no random-0000.json"),
        (lambda n, d: None if n.endswith("00.mp4") else d, FileFormatError, "has the files"),
    ],
)
def test_a_foreign_shard_is_refused_before_training(change, error, said, shard):
    _rewritten(shard, change)
    with pytest.raises(error, match=said):
        ShardDataset(shard.parent)


def _with_nan(tensors):
    tensors["motion"][2, 3, 4, 1] = float("nan")
    return tensors


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (_tensors_with(_with_nan), SampleError, "random-0000 has motion that is NaN"),
        (
            _tensors_with(lambda t: {k: v for k, v in t.items() if k != "depth"}),
            FileFormatError,
            "tensors of sample random-0000 .*depth",
        ),
        (
            _tensors_with(lambda t: t | {"motion": t["motion"][:, :8].clone()}),
            SampleError,
            "random-0000 is inconsistent: motion has shape",
        ),
        (
            _tensors_with(lambda t: t | {"visibility": t["visibility"][:9].clone()}),
            FileFormatError,
            "tensors of sample random-0000",
        ),
        (
            lambda n, d: d[:100] if n.endswith("safetensors") else d,
            FileFormatError,
            "tensors of sample random-0000 .* damaged",
        ),
        (
            lambda n, d: d[:100] if n.endswith("mp4") else d,
            FileFormatError,
            "sample random-0000 of .* is not a readable video",
        ),
    ],
)
def test_a_spoiled_sample_is_named_when_it_is_read(change, error, said, shard, as_users_run_it):
    _rewritten(shard, change)
    with pytest.raises(error, match=said):
        ShardDataset(shard.parent)[0]


def test_mutated_shards_give_samples_or_the_documented_errors(
    make_sample, tmp_path, as_users_run_it
):
    path = tmp_path / "a.tar"
    write_shard(path, [make_sample(frames=2, height=16, width=16)])
    original, draw = path.read_bytes(), Random(0)
    refused = 0
    for _ in range(2000):
        data = bytearray(original)
        for _ in range(draw.randint(1, 5)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]))
        try:
            ShardDataset(tmp_path)[0]
        except (FileFormatError, SampleError):
            refused += 1
    assert refused > 1000
