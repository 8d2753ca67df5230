import io
import struct

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from more4d_backend.files import FileFormatError
from more4d_backend.files.depth_maps import (
    load_depth,
    save_depth_exr,
    save_depth_frames,
    save_depth_png16,
)
from more4d_backend.files.exr import encode_exr

RNG = np.random.default_rng(0)
DEPTH = torch.from_numpy(RNG.uniform(0.3, 60, (33, 21)).astype(np.float32))
"""Taller than two EXR chunks of 16 lines."""


def test_png_depth_is_within_half_a_step(tmp_path):
    save_depth_png16(tmp_path / "a.png", DEPTH)
    assert (load_depth(tmp_path / "a.png") - DEPTH).abs().max() <= 0.0005 + 4e-6  # float32
    stored = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert np.array_equal(stored, (DEPTH.double() * 1000).round().numpy())
    save_depth_png16(tmp_path / "b.png", DEPTH * 10, unit_m=1 / 100)
    assert torch.allclose(load_depth(tmp_path / "b.png", unit_m=1 / 100), DEPTH * 10, atol=0.0051)


def test_missing_depth_is_0_in_a_png(tmp_path):
    depth = torch.tensor([[torch.nan, torch.inf, -1.0, 0.0, 2.0]])
    save_depth_png16(tmp_path / "a.png", depth)
    assert load_depth(tmp_path / "a.png").tolist() == [[0, 0, 0, 0, 2]]


def test_depth_beyond_the_range_of_a_png_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"reaches 70; .* of 0\.001 ends at 65\.535"):
        save_depth_png16(tmp_path / "a.png", torch.tensor([[1.0, 70.0, torch.inf]]))
    for unit_m in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="unit_m is"):
            save_depth_png16(tmp_path / "a.png", DEPTH, unit_m=unit_m)
        with pytest.raises(ValueError, match="unit_m is"):
            load_depth(tmp_path / "a.png", unit_m=unit_m)
    assert list(tmp_path.iterdir()) == []


def test_exr_depth_comes_back_bit_for_bit(tmp_path):
    depth = DEPTH.clone()
    depth[0, :4] = torch.tensor([torch.nan, torch.inf, 0.0, 1e30])
    save_depth_exr(tmp_path / "a.exr", depth)
    assert torch.equal(load_depth(tmp_path / "a.exr").nan_to_num(-1), depth.nan_to_num(-1))


def test_an_independent_reader_reads_our_exr(tmp_path):
    OpenEXR = pytest.importorskip("OpenEXR", reason="the OpenEXR package is not installed")
    save_depth_exr(tmp_path / "a.exr", DEPTH)
    channels = OpenEXR.File(str(tmp_path / "a.exr")).channels()
    assert list(channels) == ["Y"]
    assert np.array_equal(channels["Y"].pixels, DEPTH.numpy())


ALIKE = {"R": DEPTH, "G": DEPTH, "B": DEPTH}
LAYERS = {
    "ViewLayer.Depth.Z": DEPTH,
    **{f"ViewLayer.Combined.{name}": DEPTH * i for i, name in enumerate("RGBA")},
}


def write_exr(path, channels, compression: str, kind=np.float32, layout="scanlineimage") -> None:
    OpenEXR = pytest.importorskip("OpenEXR", reason="the OpenEXR package is not installed")
    header = {
        "compression": getattr(OpenEXR, f"{compression}_COMPRESSION"),
        "type": getattr(OpenEXR, layout),
    }
    if layout == "tiledimage":
        header["tiles"] = OpenEXR.TileDescription()
    pixels = {name: value.numpy().astype(kind) for name, value in channels.items()}
    OpenEXR.File(header, pixels).write(str(path))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("compression", ["NO", "RLE", "ZIPS", "ZIP", "PIZ"])
@pytest.mark.parametrize(
    "channels",
    [{"Z": DEPTH}, {"V": DEPTH}, {"Y": DEPTH}, {"depth": DEPTH}, ALIKE, LAYERS],
    ids=lambda channels: "+".join(channels)[:20],
)
def test_depth_passes_of_other_programs_are_read(tmp_path, channels, compression, kind):
    write_exr(tmp_path / "a.exr", channels, compression, kind)
    if compression == "PIZ" and kind == np.float32 and len(channels) > 1:
        # FFmpeg 8 gives other numbers here, without an error, when channels are noisy.
        with pytest.raises(FileFormatError, match="several float32 channels under PIZ"):
            load_depth(tmp_path / "a.exr")
        return
    expected = DEPTH.numpy().astype(kind).astype(np.float32)
    assert np.array_equal(load_depth(tmp_path / "a.exr").numpy(), expected)


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        ({"R": DEPTH, "G": DEPTH * 2, "B": DEPTH}, {}, "red, green and blue differ"),
        ({"A": DEPTH, "N.X": DEPTH}, {}, "channels are A, N.X; expected one named Z"),
        ({"L.Z": DEPTH, "R.Z": DEPTH}, {}, "channels are L.Z, R.Z"),
        ({"Z": DEPTH}, {"kind": np.uint32}, "channel Z holds integers"),
        ({"Z": DEPTH}, {"compression": "DWAA"}, r"DWA \(lossy\)"),
        ({"Z": DEPTH}, {"layout": "tiledimage"}, "tiled, deep or multi-part"),
    ],
)
def test_exr_files_that_are_no_depth_map_are_refused(tmp_path, channels, options, message):
    write_exr(tmp_path / "a.exr", channels, **({"compression": "ZIP"} | options))
    with pytest.raises(FileFormatError, match=message):
        load_depth(tmp_path / "a.exr")


@pytest.mark.parametrize("shape", [(33, 21), (1, 33, 21), (33, 21, 1), (1, 33, 21, 1)])
@pytest.mark.parametrize("kind", ["<f4", ">f8"])
def test_npy_depth_is_read_as_it_is(tmp_path, shape, kind):
    np.save(tmp_path / "a.npy", DEPTH.numpy().reshape(shape).astype(kind))
    assert torch.equal(load_depth(tmp_path / "a.npy"), DEPTH)


def test_integer_npy_depth_is_in_steps(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0, 1500]], np.uint16))
    assert torch.allclose(load_depth(tmp_path / "a.npy"), torch.tensor([[0.0, 1.5]]))
    assert load_depth(tmp_path / "a.npy", unit_m=1.0).tolist() == [[0, 1500]]


def test_the_content_and_not_the_name_says_the_format(tmp_path):
    save_depth_png16(tmp_path / "a.png", DEPTH)
    (tmp_path / "a.png").rename(tmp_path / "a.exr")
    assert torch.allclose(load_depth(tmp_path / "a.exr"), DEPTH, atol=6e-4)


@pytest.mark.parametrize("suffix", [".exr", ".png"])
def test_a_sequence_appears_when_it_is_whole(tmp_path, suffix):
    depth = torch.stack([DEPTH, DEPTH + 1])
    save_depth_frames(tmp_path / "depth", depth, suffix=suffix)
    files = sorted((tmp_path / "depth").iterdir())
    assert [f.name for f in files] == [f"depth_0000{suffix}", f"depth_0001{suffix}"]
    assert torch.allclose(load_depth(files[1]), depth[1], atol=6e-4)
    with pytest.raises(ValueError, match="reaches 100"):
        save_depth_frames(tmp_path / "new", torch.full((2, 3, 3), 100.0), suffix=".png")
    assert [f.name for f in tmp_path.iterdir()] == ["depth"]
    with pytest.raises(ValueError, match=r"expected '\.exr' or '\.png'"):
        save_depth_frames(tmp_path / "new", depth, suffix=".jpg")


def npy(value) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=True)
    return stream.getvalue()


def npy_claiming(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + bytes(100)


def exr_claiming(width: int) -> bytes:
    data = encode_exr(np.ones((4, 4), np.float32))
    at = data.index(b"dataWindow\0box2i\0") + 21
    return data[: at + 8] + struct.pack("<i", width - 1) + data[at + 12 :]


def eight_bit_png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; expected a depth map"),
        (b"P5 4 4 255", "begins with the bytes 50 35 20"),
        (npy(np.array([{}])), "holds object; expected numbers"),
        (npy(np.zeros((2, 3, 4))), r"has the shape \(2, 3, 4\); expected \(height, width\)"),
        (npy(np.zeros(4)), r"shape \(4,\)"),
        (npy(np.zeros((0, 4))), r"shape \(0, 4\)"),
        (npy_claiming((2**40, 2**40)), "which its 228 bytes cannot hold"),
        (exr_claiming(2**30), "claims 1073741824x4 pixels"),
        (exr_claiming(0), "claims 0x4 pixels"),
        (eight_bit_png(), "mode L; expected 16-bit grey. Is it a coloured preview"),
    ],
)
def test_foreign_and_hostile_files_are_refused(tmp_path, little_memory, data, message):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(FileFormatError, match=message):
        load_depth(tmp_path / "a")


@pytest.mark.filterwarnings("ignore")  # decoders warn of what they then refuse
@pytest.mark.parametrize("kind", ["exr", "layers", "png", "npy"])
def test_no_mutation_raises_anything_but_the_documented_error(
    tmp_path, as_users_run_it, little_memory, mutate, kind
):
    path = tmp_path / "a"
    if kind == "exr":
        path.write_bytes(encode_exr(DEPTH.numpy()))
    elif kind == "layers":
        write_exr(path, LAYERS, "ZIP")
    elif kind == "png":
        save_depth_png16(tmp_path / "a.png", DEPTH)
        (tmp_path / "a.png").rename(path)
    else:
        path.write_bytes(npy(DEPTH.numpy()))
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(2000):
        path.write_bytes(mutate(whole, rng))
        try:
            load_depth(path)
        except FileFormatError as e:
            assert str(path) in str(e)  # noqa: PT017
            refused += 1
    assert 500 < refused < 2000
