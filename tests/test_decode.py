"""Picture files of every kind come out as the RGB bytes a viewer shows."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minitl.data import decode as module
from minitl.data.dataset import Sample
from minitl.data.decode import KEEP, ImageError, check_images, decode
from minitl.data.scanner import list_pictures

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "images"


def colours(height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth shapes, which JPEG keeps well."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = (np.sin(7 * x + 3 * y), np.cos(5 * y - 2 * x), np.sin(9 * x * y))
    return np.stack([(127.5 + 120 * c).astype(np.uint8) for c in channels], axis=-1)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """Make a PNG by hand: for what Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)),
         chunk(b"IEND", b"")]
    )  # fmt: skip


# Modes


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_rgb_is_exact(tmp_path: Path, suffix: str) -> None:
    image = colours()
    Image.fromarray(image).save(tmp_path / f"x.{suffix}", lossless=True)
    result = decode(tmp_path / f"x.{suffix}")
    assert result.dtype == np.uint8 and not result.flags.writeable
    np.testing.assert_array_equal(result, image)


def test_jpeg(tmp_path: Path) -> None:
    image = photograph(50, 70)
    Image.fromarray(image).save(tmp_path / "x.jpg", quality=95)
    np.testing.assert_array_equal(
        decode(tmp_path / "x.jpg"), np.asarray(Image.open(tmp_path / "x.jpg"))
    )


def test_picture_with_a_second_one_inside(tmp_path: Path) -> None:
    """MPO: what some phones and stereo cameras write under the name .jpg."""
    first, second = (Image.fromarray(photograph(64, 80) // n) for n in (1, 3))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert np.abs(decode(tmp_path / "x.jpg").astype(int) - photograph(64, 80)).mean() < 2
    assert decode(tmp_path / "x.jpg", min_side=8).shape == (16, 20, 3)


@pytest.mark.skipif("AVIF" not in module.FORMATS, reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path) -> None:
    Image.fromarray(photograph(64, 80)).save(tmp_path / "x.avif", quality=95)
    assert np.abs(decode(tmp_path / "x.avif").astype(int) - photograph(64, 80)).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_gray(tmp_path: Path, suffix: str) -> None:
    values = photograph(16, 16)[..., 0]
    Image.fromarray(values).save(tmp_path / f"x.{suffix}", quality=100)
    result = decode(str(tmp_path / f"x.{suffix}"))
    assert np.abs(result.astype(int) - gray(values)).max() <= (3 if suffix == "jpg" else 0)
    assert (result[..., 0] == result[..., 2]).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_one_bit(tmp_path: Path, suffix: str) -> None:
    bits = colours()[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(
        decode(tmp_path / f"x.{suffix}"), gray(bits.astype(np.uint8) * 255)
    )


def test_palette(tmp_path: Path) -> None:
    table = colours(1, 5)[0]
    places = np.array([[0, 1, 2], [3, 4, 0]], np.uint8)
    image = Image.fromarray(places)
    image.putpalette(table.tobytes())
    for name in ("x.png", "x.gif", "x.bmp"):
        image.save(tmp_path / name)
        np.testing.assert_array_equal(decode(tmp_path / name), table[places])


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_with_a_transparent_colour(tmp_path: Path, suffix: str) -> None:
    table = colours(1, 3)[0]
    places = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(places)
    image.putpalette(table.tobytes())
    image.save(tmp_path / f"x.{suffix}", transparency=1)
    shown = table.copy()
    shown[1] = 255
    np.testing.assert_array_equal(decode(tmp_path / f"x.{suffix}"), shown[places])


def test_palette_with_several_levels_of_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette(bytes([200, 100, 0] * 3))
    image.save(tmp_path / "x.png", transparency=bytes([255, 0, 51]))
    expected = [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_alpha_is_laid_on_white(tmp_path: Path, suffix: str) -> None:
    image = np.dstack([colours(), np.array([0, 51, 255], np.uint8).repeat(18).reshape(6, 9)])
    Image.fromarray(image).save(tmp_path / f"x.{suffix}", lossless=True, exact=True)
    alpha = image[..., 3:] / 255
    expected = image[..., :3] * alpha + 255 * (1 - alpha)
    result = decode(tmp_path / f"x.{suffix}").astype(float)
    assert np.abs(result - expected).max() <= 0.51
    opaque = image[..., 3] == 255
    np.testing.assert_array_equal(result[opaque], image[opaque][:, :3])


def test_gray_with_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA").save(tmp_path / "x.png")
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), [[[10] * 3, [255] * 3]])


def test_transparent_colour_without_palette(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(
        tmp_path / "x.png", transparency=(1, 2, 3)
    )
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), [[[255] * 3, [4, 5, 6]]])


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    """Pure inks; Pillow writes CMYK JPEGs inverted, as Adobe does."""
    inks = {(255, 0, 0, 0): (0, 255, 255), (0, 255, 0, 0): (255, 0, 255), (0, 0, 0, 0): (255,) * 3}
    for number, (ink, expected) in enumerate(inks.items()):
        path = tmp_path / f"{number}.{suffix}"
        Image.new("CMYK", (16, 16), ink).save(path)
        assert np.abs(decode(path).astype(int) - expected).max() <= 3


def test_adobe_cmyk_bytes_are_inverted(tmp_path: Path) -> None:
    """The marker and the inverted inks are really in the file that the test above reads."""
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    assert b"Adobe" in content


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 256, 257, 32768, 65279, 65280, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(
        decode(tmp_path / f"x.{suffix}"), gray((values >> 8).astype(np.uint8))
    )


def test_16_bit_gray_ppm_and_big_endian_tiff(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 40000, 65535]], np.uint16)
    expected = gray((values >> 8).astype(np.uint8))
    (tmp_path / "x.pgm").write_bytes(b"P5 4 1 65535\n" + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(tmp_path / "x.pgm"), expected)
    tags = [
        (256, 4),
        (257, 1),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 8),
    ]
    directory = b"".join(struct.pack(">HHII", t, 4, 1, v) for t, v in tags)
    tiff = b"MM\0*" + struct.pack(">I", 16) + values.astype(">u2").tobytes()
    tiff += struct.pack(">H", len(tags)) + directory + bytes(4)
    (tmp_path / "x.tif").write_bytes(tiff)
    np.testing.assert_array_equal(decode(tmp_path / "x.tif"), expected)


def test_16_bit_gray_tiff_in_which_white_is_0(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 40000, 65535]], np.uint16)
    tags = {256: 4, 257: 1, 258: 16, 259: 1, 262: 0, 273: 8, 277: 1, 278: 1, 279: 8}
    directory = b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags.items())
    tiff = b"II*\0" + struct.pack("<I", 16) + values.astype("<u2").tobytes()
    tiff += struct.pack("<H", len(tags)) + directory + bytes(4)
    (tmp_path / "x.tif").write_bytes(tiff)
    expected = gray(255 - (values >> 8).astype(np.uint8))
    np.testing.assert_array_equal(decode(tmp_path / "x.tif"), expected)


def test_16_bit_colour(tmp_path: Path) -> None:
    values = np.array([[[0, 256, 65535], [40000, 257, 511]]], ">u2")
    (tmp_path / "x.png").write_bytes(png(2, 1, 16, 2, b"\0" + values.tobytes()))
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), (values >> 8).astype(np.uint8))


def test_numbers_without_a_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "int.tif")
    with pytest.raises(ImageError, match="from 0 to 70000"):
        decode(tmp_path / "int.tif")
    Image.fromarray(np.array([[0.5]], np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match="floats"):
        decode(tmp_path / "float.tif")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_picture_of_an_animation(tmp_path: Path, suffix: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    first.save(
        tmp_path / f"x.{suffix}", save_all=True, append_images=[second], duration=50, lossless=True
    )
    np.testing.assert_array_equal(decode(tmp_path / f"x.{suffix}"), np.full((8, 8, 3), [255, 0, 0]))


# EXIF orientation: for each value, how the stored pixels follow from the upright picture.

STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),  # the camera's top is the picture's right side
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = colours()
    save_stored(tmp_path / f"x.{suffix}", upright, orientation)
    np.testing.assert_array_equal(decode(tmp_path / f"x.{suffix}"), upright)


@pytest.mark.parametrize("orientation", STORED)
def test_orientation_of_a_reduced_jpeg(tmp_path: Path, orientation: int) -> None:
    upright = photograph(96, 160)
    save_stored(tmp_path / "x.jpg", upright, orientation)
    result = decode(tmp_path / "x.jpg", min_side=12)
    assert result.shape == (24, 40, 3)
    blocks = upright.reshape(24, 4, 40, 4, 3).mean(axis=(1, 3))
    assert np.abs(result - blocks).max() < 8


def save_stored(path: Path, upright: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.save(path, exif=exif, lossless=True, quality=95)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_senseless_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    image = colours()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), image)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    image = photograph(16, 16)
    Image.fromarray(image).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert decode(tmp_path / "x.jpg").shape == image.shape


# Smaller decoding


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(
    ("size", "min_side", "expected"),
    [
        ((640, 480), 256, (640, 480)),  # not twice what is kept: untouched
        ((640, 480), 121, (640, 480)),
        ((640, 480), 120, (320, 240)),
        ((480, 640), 120, (240, 320)),
        ((640, 480), 60, (160, 120)),
        ((645, 483), 60, (162, 121)),  # rounded up
        ((2000, 20), 10, (2000, 20)),
        ((640, 480), None, (640, 480)),
    ],
)
def test_reduced_size(tmp_path: Path, suffix, size, min_side, expected) -> None:
    Image.fromarray(photograph(size[1], size[0])).save(tmp_path / f"x.{suffix}")
    result = decode(tmp_path / f"x.{suffix}", min_side)
    assert result.shape == (expected[1], expected[0], 3)


def test_reduced_pictures_keep_their_promise(tmp_path: Path) -> None:
    for side in (30, 63, 64, 65, 100, 255, 257):
        for suffix in ("jpg", "png"):
            path = tmp_path / f"x.{suffix}"
            Image.fromarray(photograph(side, side + 11)).save(path)
            for min_side in (1, 5, 8, 13, 16, 32):
                short = min(decode(path, min_side).shape[:2])
                assert short >= min(side, KEEP * min_side)
                assert short < 2 * KEEP * min_side + 1 or short == side


def test_a_reduced_picture_resizes_to_nearly_the_same(tmp_path: Path) -> None:
    """Few levels of difference after the final resize, with noise that punishes any shortcut."""
    noise = np.random.default_rng(0).integers(-20, 21, (800, 800, 1))
    image = np.clip(photograph(800, 800) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "x.jpg", quality=95)
    Image.fromarray(image).save(tmp_path / "x.png")
    for name in ("x.jpg", "x.png"):
        full, small = decode(tmp_path / name), decode(tmp_path / name, min_side=100)
        assert small.shape[0] in (200, 400) and full.shape[0] == 800
        a, b = (
            np.asarray(Image.fromarray(x).resize((100, 100), Image.Resampling.BILINEAR), float)
            for x in (full, small)
        )
        assert np.abs(a - b).mean() < 1 and np.abs(a - b).max() < 6


def test_min_side_is_checked() -> None:
    with pytest.raises(ValueError, match="min_side"):
        decode("x.jpg", min_side=0)


# What cannot be read


def message(path: Path, **options) -> str:
    with pytest.raises(ImageError) as caught:
        decode(path, **options)
    assert str(path) in str(caught.value) and caught.value.path == path
    assert caught.value.reason in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "ppm"])
@pytest.mark.parametrize("min_side", [None, 1])
def test_truncated(tmp_path: Path, suffix: str, min_side: int | None) -> None:
    stream = tmp_path / f"whole.{suffix}"
    Image.fromarray(colours(64, 64)).save(stream)
    content = stream.read_bytes()
    path = tmp_path / f"x.{suffix}"
    for keep in (0.9, 0.5, 0.1):
        path.write_bytes(content[: int(len(content) * keep)])
        assert "cannot be decoded" in message(path, min_side=min_side) or keep == 0.1


def test_damaged_anywhere_never_crashes(tmp_path: Path) -> None:
    """Bytes changed at random: a picture or an ImageError, and nothing else."""
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "gif", "tif", "webp", "bmp"):
        buffer = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        Image.fromarray(colours(12, 12)).save(buffer, kind)
        for _ in range(60):
            content = bytearray(buffer.getvalue())
            for place in rng.integers(0, min(len(content), 200), 4):
                content[place] = rng.integers(0, 256)
            path = tmp_path / f"x.{suffix}"
            path.write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on damaged tags
                try:
                    assert decode(path, min_side=4).shape[2] == 3
                except ImageError as error:
                    assert error.reason


def test_no_picture_at_all(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "a folder" in message(tmp_path / "folder.jpg")
    for name, content, reason in [
        ("empty.jpg", b"", "empty"),
        ("page.jpg", b"\n<!DOCTYPE html><html>404</html>", "web page"),
        ("lfs.png", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("noise.png", b"\x01\x02\x03" * 50, "not a picture in a format read here (JPEG"),
        ("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert reason in message(tmp_path / name)


def test_the_format_is_found_by_content(tmp_path: Path) -> None:
    Image.fromarray(colours()).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    np.testing.assert_array_equal(decode(tmp_path / "x.jpg"), colours())


def test_bombs(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "bomb.png").write_bytes(png(60000, 60000, 1, 0, b"\0" * 100))
    assert "limit" in message(tmp_path / "bomb.png")
    monkeypatch.setattr(module, "MAX_PIXELS", 50)
    Image.fromarray(colours(6, 9)).save(tmp_path / "x.png")
    assert "9 x 6 pixels are more than the limit of 50" in message(tmp_path / "x.png")


# Checking many


def test_check_images(tmp_path: Path) -> None:
    samples = []
    for number in range(50):
        name = f"{number}.jpg"
        Image.fromarray(photograph(20, 20)).save(tmp_path / name)
        samples.append(Sample(name, 0))
    whole = (tmp_path / "7.jpg").read_bytes()
    (tmp_path / "7.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "42.jpg").unlink()
    for workers in (0, 1, 4):
        calls: list[tuple[int, int]] = []
        bad = check_images(samples, tmp_path, workers, lambda *counts, to=calls: to.append(counts))
        assert [path for path, _ in bad] == ["7.jpg", "42.jpg"]
        assert bad[1][1] == "there is no such file"
        assert calls[-1] == (50, 50) and calls == sorted(calls)
    assert check_images([], tmp_path) == []


@pytest.mark.real_data
def test_real_pictures() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    for name, count in (("signdigits", 600), ("bccd_wbc", 348), ("imagenet_samples", 100)):
        files = list_pictures(DATA / name)
        samples = [Sample(file.relative_to(DATA).as_posix(), 0) for file in files]
        assert len(samples) == count
        assert check_images(samples, DATA, workers=2) == []
