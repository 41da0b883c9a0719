"""From a picture file to RGB bytes, whatever the file is like.

Every file becomes what a viewer would show on a white page, as an array of unsigned bytes:

    EXIF orientation   applied: phones store the picture sideways and a note which way is up
    1, L, LA, P, PA    gray and palette pictures become RGB
    alpha              composited on white. What lies under transparent pixels is arbitrary, often black,
                       and nobody has seen it; a plain conversion would uncover it. Opaque pictures come
                       out the same either way.
    CMYK               converted without a colour profile; Adobe's inverted JPEGs are turned back
    16 bits            the high byte, as for 16-bit colour (a plain conversion clips at 255); turned over
                       where a TIFF says that white is 0
    animations         the first picture

Large pictures are decoded smaller. A caller who needs `min_side` pixels along the shorter side gets at
least `KEEP` times as many: a JPEG decoder skips work when asked for 1/2, 1/4 or 1/8 of the size, and
what remains, or another format, is averaged over squares. Pictures below 2 * KEEP * min_side are not
touched. A 12-megapixel JPEG for 256 pixels then decodes in 31 ms instead of 82, and the resize that
follows takes 4 instead of 51. The price, measured on photographs resized to 64 pixels, is a mean change
of the final pixels, in levels of 255, for reduction by the decoder and by averaging:

    KEEP = 1   1.6 and 2.5
    KEEP = 2   0.8 and 1.0    chosen
    KEEP = 3   0.5 and 0.6
"""

import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from minitl.data.dataset import Sample
from minitl.errors import UserError

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and a value of it
KEEP = 2
MAX_PIXELS = (
    120_000_000  # the largest phone cameras make 108 million; more is a mistake or an attack
)

# Only these are tried, whatever the file's name: Pillow's other plugins are less watched, and one of
# them starts an external program (EPS). init() here, because it is not meant for several threads.
Image.init()
FORMATS = tuple(
    name
    for name in ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF")
    if name in Image.OPEN
)

_ORIENTATION = 0x0112  # the EXIF tag
# What brings a picture with this tag upright. Rotations are counter-clockwise in Pillow.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError):
    """A picture file that cannot be used.

    path: the file. reason: what is wrong with it, in a few words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; replace the file or remove it")
        self.path = path
        self.reason = reason


def decoder() -> str:
    """Return what turns files into pixels: another release may round otherwise."""
    return ", ".join(
        f"{name} {release}"
        for name, release in (
            ("Pillow", PIL.__version__),
            ("libjpeg-turbo", features.version("libjpeg_turbo")),
            ("libwebp", features.version("webp")),
        )
    )


def decode(path: str | Path, min_side: int | None = None) -> np.ndarray:
    """Read a picture: (height, width, 3) uint8, RGB, read-only.

    min_side: pixels needed along the shorter side; a much larger picture comes back smaller, but with
        at least KEEP times as many. None: the full size.

    Raises ImageError for a file that is missing, truncated, no picture, or unreasonably large.
    """
    return np.asarray(decode_image(path, min_side))


def decode_image(path: str | Path, min_side: int | None = None) -> Image.Image:
    """Read a picture like `decode`, and leave it in Pillow's hands, for a resize that follows."""
    path = Path(path)
    if min_side is not None and min_side < 1:
        raise ValueError(f"min_side must be at least 1, or None for the full size; got {min_side}")
    try:
        with path.open("rb") as file:
            return _read(path, file, min_side)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # A damaged file can make Pillow's parsers raise nearly anything (OSError, ValueError,
        # SyntaxError, struct.error, KeyError ...), and all of it means the same to the user.
        raise ImageError(path, _reason_of_file(path, error)) from error


def decode_bytes(content: bytes, name: str, min_side: int | None = None) -> Image.Image:
    """Read a picture like `decode_image` from memory; `name` stands for the path in errors."""
    path = Path(name)
    try:
        return _read(path, io.BytesIO(content), min_side)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(path, _reason(content[:64], error)) from error


def _read(path: Path, file: object, min_side: int | None) -> Image.Image:
    image: Image.Image = Image.open(file, formats=FORMATS)  # type: ignore[arg-type]
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            path, f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}"
        )
    if min_side is not None:
        image.draft(None, (KEEP * min_side, KEEP * min_side))  # does nothing unless it is a JPEG
    image.load()
    # Asked for only now: TIFF turns itself while loading, PNG may keep the tag behind the pixels.
    orientation = _orientation(image)
    rgb = _to_rgb(path, image)
    if min_side is not None:
        factor = min(rgb.size) // (KEEP * min_side)
        if factor > 1:
            rgb = rgb.reduce(factor)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged note does not spoil the picture
        return 1


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            gray = 255 - gray  # Pillow does so with 8 bits alone
        return Image.fromarray(gray).convert("RGB")
    if image.mode == "I":  # how 16-bit gray arrives from some formats
        low, high = image.getextrema()
        if float(low) < 0 or float(high) > 65535:  # type: ignore[arg-type]
            raise ImageError(path, f"its 32-bit pixels reach from {low} to {high}, not 0 to 65535")
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(path, "its pixels are floats, and nothing says which of them is white")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        page = Image.new("RGB", rgba.size, (255, 255, 255))
        page.paste(rgba, mask=rgba.getchannel("A"))
        return page
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason_of_file(path: Path, error: Exception) -> str:
    """Say what is wrong with a file in words for its owner."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError) or path.is_dir():
        return "this is a folder, not a picture"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    try:
        with path.open("rb") as file:
            return _reason(file.read(64), error)
    except OSError:
        return _reason(b"?", error)


def _reason(head: bytes, error: Exception) -> str:
    """Say what is wrong with a content that begins with `head`."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the limit of {MAX_PIXELS:,}"
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the picture (`git lfs pull` fetches it)"
    if head.lstrip()[:1] in (b"<", b"{"):
        return "text instead of a picture (a web page saved by a failed download?)"
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture in a format read here ({', '.join(FORMATS)})"
    return f"cannot be decoded ({error or type(error).__name__})"


def check_images(
    samples: Sequence[Sample],
    root: str | Path,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[str, str]]:
    """Decode every file and return (path, reason) for each one that fails, in the order of `samples`.

    JPEGs are decoded at an eighth of their size, which still reads every byte. libjpeg repairs some
    damage in the middle of a file without telling; such a file counts as readable here as everywhere.

    workers: threads. progress: called as progress(done, total) now and then, from those threads.
    """
    root = Path(root)
    chunk = 16  # pictures per task: small ones decode faster than a task is handed over
    done = 0
    lock = threading.Lock()

    def check(start: int) -> list[tuple[str, str]]:
        nonlocal done
        part = samples[start : start + chunk]
        bad = []
        for sample in part:
            try:
                decode(root / sample.path, min_side=1)
            except ImageError as error:
                bad.append((sample.path, error.reason))
        with lock:
            done += len(part)
            if progress is not None:
                progress(done, len(samples))
        return bad

    executor = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="minitl-check")
    try:
        parts = list(executor.map(check, range(0, len(samples), chunk)))
    finally:
        executor.shutdown(cancel_futures=True)
    return [bad for part in parts for bad in part]


__all__ = [
    "FORMATS",
    "KEEP",
    "MAX_PIXELS",
    "ImageError",
    "check_images",
    "decode",
    "decode_bytes",
    "decode_image",
    "decoder",
]
