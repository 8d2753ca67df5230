import io
import json
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from more4d_backend.geometry import project
from training.data.lossless_video import encode_video
from training.data.shards import ShardDataset
from training.data.trajscene_samples import GRID_HW
from training.trajscene import convert, convert_archive

HEIGHT, WIDTH = GRID_HW
FRAMES = 3


def _tracks(source_hw: tuple[int, int], seed: int) -> dict[str, torch.Tensor]:
    """What the tracker writes: focal length = width, centre = half the size, of its own input."""
    draw = torch.Generator().manual_seed(seed)
    source_height, source_width = source_hw
    row, column = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    depth = 2 + 0.5 * torch.sin(column / 60) + 0.3 * torch.cos(row / 40)
    x = (column * source_width / WIDTH - source_width // 2) / source_width * depth
    y = (row * source_height / HEIGHT - source_height // 2) / source_width * depth
    first = torch.stack([x, y, depth], dim=-1).reshape(-1, 3)
    steps = torch.arange(FRAMES)[:, None, None] * torch.tensor([0.05, 0.0, 0.02])
    return {
        "coords": (first + steps).half(),
        "colors": torch.randint(256, (HEIGHT * WIDTH, 3), generator=draw).float(),
        "vis": torch.rand(FRAMES, HEIGHT * WIDTH, generator=draw) > 0.2,
    }


def _files(number: str, source_hw=(384, 512), seed=0, video_frames=FRAMES, **changes):
    """The six files of a sample, as released, by name."""
    tracks = _tracks(source_hw, seed)
    picture = tracks["colors"].reshape(HEIGHT, WIDTH, 3).to(torch.uint8)
    video = picture.repeat(video_frames, 1, 1, 1)
    video[1:] //= 2
    files = {
        f"{number}.mp4": encode_video(video, 24.0),
        f"{number}.txt": b"A wave moves to the right.\n",
        f"{number}_dt3d_pred.pkl": pickle.dumps(tracks | changes),
        f"{number}_dt3d_render.mp4": b"not read",
        f"{number}_mask_render.mp4": b"not read",
        f"{number}_mask_render_binary.npy": b"not read",
    }
    return files


def _archive(folder: Path, files: dict[str, bytes], name="000001_000050") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        root = tarfile.TarInfo(name)
        root.type = tarfile.DIRTYPE
        tar.addfile(root)
        for file, data in files.items():
            member = tarfile.TarInfo(f"{name}/{file}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def _rejects(folder: Path, name="000001_000050") -> list[dict]:
    lines = (folder / f"{name}.rejects.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("source_hw", [(384, 512), (336, 596)])
def test_an_archive_of_the_released_layout_becomes_a_shard(source_hw, tmp_path):
    files = _files("000001", source_hw) | _files("000002", source_hw, seed=1)
    report = convert_archive(_archive(tmp_path / "in", files), tmp_path / "out")
    assert (report.num_samples, report.rejects, report.failed) == (2, (), False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "000001_000050.rejects.jsonl",
        "000001_000050.tar",
    ]
    dataset = ShardDataset(tmp_path / "out")
    sample = dataset[1]
    tracks = _tracks(source_hw, 1)
    assert sample.name == "trajscene-000002"
    assert sample.caption == "A wave moves to the right."
    assert sample.fps == 24
    size = f"{source_hw[1]}x{source_hw[0]}"
    assert sample.source == f"TrajScene-60K 000001_000050/000002, tracked at {size}"
    assert torch.equal(sample.visibility.reshape(FRAMES, -1), tracks["vis"])
    assert torch.equal(sample.video[0].reshape(-1, 3).float(), tracks["colors"])
    # Positions are float16 in the pickle: their step at 2.8 m is 0.002.
    positions = sample.positions().reshape(FRAMES, -1, 3)
    assert (positions - tracks["coords"].float()).abs().max() < 4e-3


def test_files_of_samples_may_lie_between_those_of_others(tmp_path):
    files = _files("000001") | _files("000002", seed=1)
    files |= {"000001.txt": b"The first one.", "000002.txt": b"The second one."}
    mixed = {name: files[name] for name in sorted(files, key=lambda n: (n[6:], n))}
    report = convert_archive(_archive(tmp_path / "in", mixed), tmp_path / "out")
    assert (report.num_samples, report.rejects) == (2, ())
    samples = ShardDataset(tmp_path / "out")
    assert [s.caption for s in (samples[0], samples[1])] == ["The first one.", "The second one."]
    for seed in (0, 1):
        colors = _tracks((384, 512), seed)["colors"]
        assert torch.equal(samples[seed].video[0].reshape(-1, 3).float(), colors)


def test_the_camera_is_that_of_the_trackers_pixels(tmp_path):
    convert_archive(_archive(tmp_path / "in", _files("000001", (336, 596))), tmp_path / "out")
    intrinsics = ShardDataset(tmp_path / "out")[0].cameras.intrinsics[0]
    # f = 596 px on a 596x336 image; the tracker's pixel i is at i, ours at i + 0.5.
    assert float(intrinsics[0, 0]) == pytest.approx(512, rel=1e-3)
    assert float(intrinsics[1, 1]) == pytest.approx(596 * 384 / 336, rel=1e-3)
    assert float(intrinsics[0, 2]) == pytest.approx(256.5, abs=0.05)
    assert float(intrinsics[1, 2]) == pytest.approx(192.5, abs=0.05)


def test_points_project_to_the_pixels_that_they_were_tracked_from(tmp_path):
    convert_archive(_archive(tmp_path / "in", _files("000001")), tmp_path / "out")
    sample = ShardDataset(tmp_path / "out")[0]
    tracks = _tracks((384, 512), 0)["coords"][0].float()
    pixels, _ = project(tracks, sample.cameras.intrinsics[0])
    # 0.13 px measured: the half precision of the pickle.
    expected = torch.tensor([100.5, 200.5])
    assert (pixels.reshape(HEIGHT, WIDTH, 2)[200, 100] - expected).abs().max() < 0.3


@pytest.mark.parametrize("wrap", [lambda t: t[None], lambda t: t.numpy()])
def test_leading_axes_and_numpy_arrays_are_read_too(wrap, tmp_path):
    wrapped = {name: wrap(array) for name, array in _tracks((384, 512), 0).items()}
    files = _files("000001", **wrapped)
    report = convert_archive(_archive(tmp_path / "in", files), tmp_path / "out")
    assert report.num_samples == 1


def test_every_second_frame_of_a_long_video_is_taken(tmp_path):
    files = _files("000001", video_frames=2 * FRAMES - 1)
    convert_archive(_archive(tmp_path / "in", files), tmp_path / "out")
    sample = ShardDataset(tmp_path / "out")[0]
    assert sample.size_fhw[0] == FRAMES
    assert sample.fps == 12


def test_a_video_of_another_size_is_squashed_to_the_grid(tmp_path):
    files = _files("000001", colors=torch.full((HEIGHT * WIDTH, 3), 90.0))
    files["000001.mp4"] = encode_video(torch.full((FRAMES, 336, 596, 3), 90, dtype=torch.uint8), 24)
    convert_archive(_archive(tmp_path / "in", files), tmp_path / "out")
    assert (ShardDataset(tmp_path / "out")[0].video == 90).all()


def _spoiled(frame: int, value: float, share: float = 1.0) -> dict[str, torch.Tensor]:
    coords = _tracks((384, 512), 0)["coords"]
    coords[frame, : int(share * HEIGHT * WIDTH), 2] = value
    return {"coords": coords}


def _scaled(factor: float) -> dict[str, torch.Tensor]:
    coords = _tracks((384, 512), 0)["coords"]
    coords[2] *= factor
    return {"coords": coords}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (_spoiled(1, float("nan"), 1e-5), "coords holds NaN or infinity."),
        (_spoiled(0, 0.0, 0.001), "196 points of frame 0 have depth 0 or less."),
        (_spoiled(0, -1.0, 0.001), "have depth 0 or less."),
        (_spoiled(2, 600.0, 0.02), "Frame 2 has 2.0% of its points nearer than 0.01 or farther"),
        (_spoiled(1, 0.001, 0.5), "Frame 1 has 50.0% of its points"),
        (_spoiled(0, 450.0, 0.009), "The depth of frame 0 varies by"),
        (_scaled(1.5), "The scale is not constant: depth changes by a factor of 1.5"),
        (_scaled(0.5), "The scale is not constant: depth changes by a factor of 0.5"),
        (_spoiled(0, 3.0, 0.2), "Frame 0 is not a grid of rays"),
        ({"colors": torch.full((HEIGHT * WIDTH, 3), 255.0)}, "do not belong together"),
        ({"coords": torch.ones(FRAMES, 100, 3)}, "coords has shape (3, 100, 3)"),
        ({"coords": torch.ones(1, 1, 1).expand(10**6, HEIGHT * WIDTH, 3)}, "vis has shape"),
        ({"vis": torch.ones(FRAMES, HEIGHT * WIDTH)}, "vis has type torch.float32"),
        ({"vis": None}, "no numbers called vis"),
        ({"coords": os.system}, "It names posix.system."),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="the hostile pickle names posix.system")
def test_a_sample_that_fails_a_check_is_listed_with_its_reason(changes, reason, tmp_path):
    files = _files("000001", **changes) | _files("000002")
    report = convert_archive(_archive(tmp_path / "in", files), tmp_path / "out")
    assert report.num_samples == 1
    assert not report.failed
    (reject,) = _rejects(tmp_path / "out")
    assert (reject["archive"], reject["sample"]) == ("000001_000050", "000001")
    assert reason in reject["reason"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"000001.txt": None}, "The caption of the sample is missing."),
        ({"000001.txt": b" \n"}, "The caption is empty."),
        ({"000001.txt": b"\xff\xfe"}, "can't decode"),
        ({"000001.mp4": b"nothing"}, "not a readable video"),
        ({"000001_dt3d_pred.pkl": None, "000001.mp4": None}, "prediction and the video of"),
        ({"000001_dt3d_pred.pkl": pickle.dumps([1])}, "no numbers called coords"),
        ({"000001_dt3d_pred.pkl": b"\x80\x04"}, "not a readable pickle"),
        (
            {"000001.mp4": _files("x", video_frames=FRAMES + 1)["x.mp4"]},
            "The video has 4 frames and the tracks 3",
        ),
    ],
)
def test_a_spoiled_file_rejects_its_sample_only(change, reason, tmp_path):
    files = _files("000001") | change | _files("000002")
    files = {name: data for name, data in files.items() if data is not None}
    report = convert_archive(_archive(tmp_path / "in", files), tmp_path / "out")
    assert report.num_samples == 1
    (reject,) = _rejects(tmp_path / "out")
    assert reason in reject["reason"]


class _Runs:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.makedirs, (str(self.mark),)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "ran"
    files = _files("000001", extra=_Runs(mark))
    report = convert_archive(_archive(tmp_path / "in", files), tmp_path / "out")
    assert not mark.exists()
    assert report.num_samples == 0
    assert "It names os.makedirs." in _rejects(tmp_path / "out")[0]["reason"]
    assert not (tmp_path / "out" / "000001_000050.tar").exists()


def _hostile(kind: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("000001_000050/000009.txt")
    if kind == "up":
        member.name = "../../000009.txt"
    elif kind == "absolute":
        member.name = "/tmp/000009.txt"
    elif kind == "windows":
        member.name = "..\\..\\000009.txt"
    elif kind == "symbolic link":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    elif kind == "hard link":
        member.type, member.linkname = tarfile.LNKTYPE, "000001_000050/000001.txt"
    elif kind == "device":
        member.type = tarfile.CHRTYPE
    return member


@pytest.mark.parametrize(
    "kind", ["up", "absolute", "windows", "symbolic link", "hard link", "device"]
)
def test_members_that_leave_the_archive_refuse_it(kind, tmp_path):
    path = _archive(tmp_path / "in", _files("000001"))
    with tarfile.open(path) as old:
        members = [(m, old.extractfile(m).read()) for m in old.getmembers() if m.isreg()]
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
        tar.addfile(_hostile(kind))
    report = convert_archive(path, tmp_path / "out")
    assert report.failed
    assert "is refused: its member" in report.rejects[-1].reason
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["000001_000050.rejects.jsonl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_a_caption_of_a_megabyte_refuses_the_archive(tmp_path):
    files = _files("000001") | {"000001.txt": b"word " * 200_000}
    report = convert_archive(_archive(tmp_path / "in", files), tmp_path / "out")
    assert report.failed
    assert "has 1000000 bytes" in report.rejects[0].reason


def test_the_folder_command_continues_where_it_stopped_and_tells_of_damage(tmp_path, caplog):
    source, out = tmp_path / "in", tmp_path / "out"
    _archive(source, _files("000001"), "000001_000050")
    damaged = _archive(source, _files("000051"), "000051_000100")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    assert convert(source, out, jobs=2) == 1
    (reject,) = _rejects(out, "000051_000100")
    assert reject["sample"] is None
    assert "is truncated or not a tar.gz" in reject["reason"]
    made = (out / "000001_000050.tar").stat().st_mtime_ns
    damaged.write_bytes(whole)
    assert convert(source, out, jobs=2) == 0
    assert (out / "000001_000050.tar").stat().st_mtime_ns == made
    assert len(ShardDataset(out)) == 2


def test_limits_are_settings(tmp_path):
    from training.data.trajscene_samples import SampleLimits

    archive = _archive(tmp_path / "in", _files("000001", **_scaled(1.5)))
    wide = replace(SampleLimits(), max_scale_jump=2.0)
    assert convert_archive(archive, tmp_path / "out", wide).num_samples == 1
    assert np.isclose(wide.max_scale_jump, 2.0)
