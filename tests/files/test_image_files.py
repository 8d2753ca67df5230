import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from more4d_backend.files import FileFormatError, OutputError
from more4d_backend.files.images import load_image, save_image, to_bytes

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_lossless_pictures_come_back_exactly(tmp_path, suffix):
    image = torch.from_numpy(PICTURE).float() / 255
    save_image(tmp_path / f"a{suffix}", image)
    assert torch.equal(load_image(tmp_path / f"a{suffix}"), image)
    found = cv2.imread(str(tmp_path / f"a{suffix}"))[..., ::-1]
    assert np.array_equal(found, PICTURE)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_pictures_come_back_nearly(tmp_path, suffix):
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 60), indexing="ij")
    image = torch.stack([x, y, 1 - x], dim=-1)
    save_image(tmp_path / f"a{suffix}", image)
    assert (load_image(tmp_path / f"a{suffix}") - image).abs().mean() < 0.01


def test_grey_palette_and_black_and_white_become_rgb(tmp_path):
    grey = Image.fromarray(PICTURE[..., 0])
    for number, image in enumerate([grey, grey.convert("P"), grey.convert("1")]):
        image.save(tmp_path / f"{number}.png")
        expected = torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
        assert torch.equal(load_image(tmp_path / f"{number}.png"), expected)


def test_sixteen_bit_grey_keeps_its_bits(tmp_path):
    values = np.array([[0, 1, 256, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = torch.tensor([[0, 1, 256, 65535]]) / 65535
    assert torch.equal(load_image(tmp_path / "a.png"), expected[..., None].expand(1, 4, 3))


def test_sixteen_bit_color_is_read_at_eight_bits(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE[..., ::-1].astype(np.uint16) * 257)
    assert torch.allclose(load_image(tmp_path / "a.png"), torch.from_numpy(PICTURE) / 255)


def test_the_background_shows_through_transparent_pixels(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0], rgba[0, :, 3] = 255, (255, 0, 51)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    white = torch.tensor([[[1, 0, 0], [1, 1, 1], [1, 0.8, 0.8]]])
    assert torch.allclose(load_image(tmp_path / "a.png"), white)
    black = torch.tensor([[[1, 0, 0], [0, 0, 0], [0.2, 0, 0]]])
    assert torch.allclose(load_image(tmp_path / "a.png", background=0), black)
    palette = Image.fromarray(rgba).quantize()
    palette.save(tmp_path / "b.png")
    assert torch.allclose(load_image(tmp_path / "b.png")[0, 1], torch.ones(3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    found = load_image(tmp_path / "a.png")
    turned = {
        1: PICTURE, 2: PICTURE[:, ::-1], 3: PICTURE[::-1, ::-1], 4: PICTURE[::-1],
        5: PICTURE.swapaxes(0, 1), 6: np.rot90(PICTURE, -1),
        7: PICTURE[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(PICTURE),
    }[orientation]  # fmt: skip
    assert np.array_equal(to_bytes(found).numpy(), turned)


def test_cmyk_photos_become_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    found = load_image(tmp_path / "a.jpg").mean((0, 1))
    assert torch.allclose(found, torch.tensor([1.0, 0, 0]), atol=0.02)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header),
                     chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")])  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; expected a PNG, JPEG"),
        (b"hello there, this is text", "cannot be read as a PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as a PNG, JPEG"),
        (png_claiming(9000, 9000), "says that it has 9000x9000 pixels; expected at most 67108864"),
        (png_claiming(60000, 60000), "could be decompression bomb"),
        (png_claiming(20, 20), "truncated"),
    ],
    ids=["empty", "text", "postscript", "large", "bomb", "short"],
)
def test_foreign_and_hostile_files_are_refused(tmp_path, little_memory, data, message):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(FileFormatError, match=message):
        load_image(tmp_path / "a.png")


def test_a_float_picture_is_refused_with_a_hint(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(FileFormatError, match="floating-point values, as depth maps do"):
        load_image(tmp_path / "a.tif")


def test_a_missing_file_is_reported_as_missing_and_other_endings_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "a.png")
    with pytest.raises(OutputError, match=r"ends in '\.gif'; expected \.png"):
        save_image(tmp_path / "a.gif", torch.zeros(2, 2, 3))
    assert list(tmp_path.iterdir()) == []


def test_convention_bytes_are_rounded_and_clamped():
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0, torch.nan])
    assert to_bytes(values).tolist() == [0, 0, 0, 1, 255, 255, 0]


@pytest.mark.filterwarnings("ignore")  # decoders warn of what they then refuse
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_no_mutation_raises_anything_but_the_documented_error(
    tmp_path, as_users_run_it, little_memory, mutate, suffix
):
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(path, **({} if suffix == ".bmp" else {"exif": exif}))
    whole = path.read_bytes()
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(2000):
        path.write_bytes(mutate(whole, rng))
        try:
            load_image(path)
        except FileFormatError as e:
            assert str(path) in str(e)  # noqa: PT017
            refused += 1
    assert 200 < refused < 2000
