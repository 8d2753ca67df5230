"""Encoded samples are those that a trainer would have encoded itself, and train as well."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from more4d_backend import tiny
from more4d_backend.files import FileFormatError
from training.data.encoded import EncodedBatch, EncodedSamples, EncodedWriter
from training.data.loader import TrainingLoader
from training.data.samples import SampleError, SampleSize
from training.data.sources import training_samples
from training.encode import encode
from training.procedural.dataset import procedural_tiny
from training.procedural.pictures import draw_pictures
from training.recipes import motion_vae_tiny, strag_tiny, vism_tiny
from training.run.settings import SettingsError
from training.train_motion_vae import train as train_motion_vae
from training.train_strag import StragGiven
from training.train_strag import train as train_strag
from training.train_vism import train as train_vism

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


def _some(first=0, count=5):
    numbers = range(first, first + count)
    return EncodedBatch(
        names=tuple(f"n{n}" for n in numbers),
        captions=tuple(f"Thing {n} moves." for n in numbers),
        tensors={
            "latent": torch.arange(first, first + count).float().view(-1, 1).expand(-1, 3),
            "picture": torch.full((count, 2, 2), 0.5),
        },
    ).compact()


@pytest.fixture
def folder(tmp_path):
    writer = EncodedWriter(tmp_path / "e", {"kind": "strag"}, samples_per_file=5)
    for first in (0, 5, 10):
        writer.add(_some(first))
    writer.add(_some(15, 2))
    writer.flush()
    return tmp_path / "e"


@pytest.fixture
def encoded_in(tmp_path):
    def put(config):
        data = replace(config.data, encoded=tmp_path / "encoded")
        return replace(config, data=data)

    return put


@pytest.mark.parametrize("device", [None, CPU])
def test_samples_come_by_number_from_files_or_from_the_device(folder, device):
    samples = EncodedSamples(folder, device)
    assert len(samples) == 17
    batch = samples.batch([16, 0, 7])
    assert batch.names == ("n16", "n0", "n7")
    assert batch.captions[0] == "Thing 16 moves."
    assert batch["latent"][:, 0].tolist() == [16, 0, 7]
    torch.testing.assert_close(batch["picture"], torch.full((3, 2, 2), 128 / 255))


def test_a_loader_gives_every_sample_once_and_goes_on_where_it_was(folder):
    def loader():
        return TrainingLoader(EncodedSamples(folder), batch_size=4, seed=3)

    first = loader()
    batches = iter(first)
    names = [name for _ in range(3) for name in next(batches).names]
    assert len(set(names)) == 12
    second = loader()
    second.resume(first.state)
    assert next(iter(second)).names == next(batches).names


def test_a_folder_of_something_else_is_refused(folder, tmp_path):
    with pytest.raises(FileFormatError, match=r"training\.encode"):
        EncodedSamples(tmp_path)
    with pytest.raises(FileFormatError, match="kind is 'strag', expected 'vism'"):
        EncodedSamples(folder).check({"kind": "vism"})
    EncodedSamples(folder).check({"kind": "strag"})
    (folder / "encoded-000-00001.safetensors").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="encoded-000-00001"):
        EncodedSamples(folder)


def test_what_float16_cannot_hold_is_refused_by_name():
    batch = EncodedBatch(names=("a",), captions=("b",), tensors={"latent": torch.tensor([1e6])})
    with pytest.raises(SampleError, match="latent of a"):
        batch.compact()


def test_encoded_samples_give_the_inputs_of_the_samples_themselves(small, encoded_in):
    config = encoded_in(small(strag_tiny, 1, batch_size=4))
    samples = EncodedSamples(encode(config))
    assert len(samples) == 8
    given = StragGiven.load(config, CPU)
    by_name = {batch.names[0]: batch for batch in samples.batches(1)}
    source = training_samples(replace(config.data, encoded=None), CPU, novel_views=False)
    raw = next(iter(TrainingLoader(source, batch_size=1, seed=0)))
    draw = torch.Generator().manual_seed(0)
    expected = given.inputs(raw, draw, training=False)
    got = given.inputs(by_name[raw.names[0]], draw, training=False)
    assert got.text == expected.text == raw.captions
    for name in ("latent", "channels", "reference_latent", "picture", "weight"):
        # float16, and the VAE on whole clips
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), atol=5e-3, rtol=2e-3
        )


@pytest.mark.parametrize(("recipe", "train"), [(strag_tiny, train_strag), (vism_tiny, train_vism)])
def test_both_transformers_train_on_encoded_samples(
    recipe, train, small, encoded_in, metrics_of, same_tensors
):
    config = encoded_in(small(recipe, 2, batch_size=4))
    encode(config)
    paths = []
    for on_device in (False, True):
        data = replace(config.data, encoded_on_device=on_device)
        run = replace(config.run, output=config.run.output / str(on_device))
        paths.append(train(replace(config, data=data, run=run)))
    assert same_tensors(*paths)


def test_encoding_stops_when_its_time_is_over(small, encoded_in):
    config = encoded_in(small(strag_tiny, 1, batch_size=2, minutes=1e-6))
    assert len(EncodedSamples(encode(config))) == 2


@pytest.mark.parametrize(
    ("recipe", "named", "missing"),
    [
        (strag_tiny, {}, "weights.wan_vae and weights.motion_vae"),
        (strag_tiny, {"wan_vae": Path("v.safetensors")}, "weights.motion_vae"),
        (vism_tiny, {}, "weights.wan_vae"),
    ],
)
def test_nothing_is_encoded_with_a_random_vae_that_nobody_asked_for(
    recipe, named, missing, small, encoded_in, tmp_path, monkeypatch
):
    monkeypatch.setattr(tiny, "WEIGHTS_FOLDER", tmp_path / "none")
    config = encoded_in(small(recipe, 1))
    weights = replace(config.weights, from_scratch=False, **named)
    with pytest.raises(SettingsError, match=f"no file for {missing},"):
        encode(replace(config, weights=weights))
    assert not config.data.encoded.exists()


def test_a_folder_that_holds_something_is_not_encoded_into(small, encoded_in):
    config = encoded_in(small(strag_tiny, 1))
    config.data.encoded.mkdir()
    (config.data.encoded / "something").touch()
    with pytest.raises(SettingsError, match="empty"):
        encode(config)
    with pytest.raises(SettingsError, match="motion VAE"):
        train_motion_vae(replace(small(motion_vae_tiny, 1), data=config.data))


def test_drawn_pictures_are_a_data_set_to_encode(small, encoded_in, tmp_path):
    config = encoded_in(small(strag_tiny, 1))
    settings = replace(procedural_tiny(), size=SampleSize(num_frames=5, height=32, width=32))
    (tmp_path / "pictures").mkdir()
    draw_pictures(settings, first_seed=0, count=4).save(tmp_path / "pictures/0.safetensors")
    config = replace(config, data=replace(config.data, train=tmp_path / "pictures"))
    samples = EncodedSamples(encode(config))
    assert len(samples) == 4
    assert all(samples.batch([0, 1, 2, 3]).captions)


def _encode_on(ranks: int, pictures: Path, output: Path) -> EncodedSamples:
    told = ["-m", "training.encode", "strag", "tiny", "--weights.from-scratch"]
    told += ["--data.size.num-frames", "5", "--data.size.height", "32", "--data.size.width", "32"]
    told += ["--data.train", str(pictures), "--data.encoded", str(output), "--run.batch-size", "1"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else []), *told],
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(output)]
    return EncodedSamples(output)


@pytest.mark.skipif(os.name != "posix", reason="torch.distributed on Windows lacks this launcher")
def test_two_ranks_encode_every_sample_once_and_as_one_rank_does(tmp_path):
    settings = replace(procedural_tiny(), size=SampleSize(num_frames=5, height=32, width=32))
    (tmp_path / "pictures").mkdir()
    draw_pictures(settings, first_seed=0, count=4).save(tmp_path / "pictures/0.safetensors")
    one, two = (
        {batch.names[0]: batch for batch in _encode_on(n, tmp_path / "pictures", out).batches(1)}
        for n, out in ((1, tmp_path / "one"), (2, tmp_path / "two"))
    )
    assert len(one) == 4
    assert sorted(one) == sorted(two)
    for name, batch in one.items():
        assert batch.captions == two[name].captions
        for kind, tensor in batch.tensors.items():
            torch.testing.assert_close(two[name].tensors[kind], tensor, atol=1e-5, rtol=1e-5)
