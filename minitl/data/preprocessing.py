"""From RGB bytes to what a network was trained to see.

`Preprocessing` belongs to the weights: the numbers they were trained with travel in their file. It
repeats torchvision's steps to the pixel, because published accuracies hold for exactly these:

    evaluation    Resize(resize), CenterCrop(crop), then (value * scale - mean) / std
    training      RandomResizedCrop(crop), RandomHorizontalFlip, then the same normalisation

Resizing is Pillow's, which averages over all the pixels that go into one (antialiasing).
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from minitl.data.augment import Augmentation
from minitl.errors import UserError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
LONGEST = 64  # times the shorter side: longer pictures are cut before they are resized
Triple = tuple[float, float, float]
Picture = np.ndarray | Image.Image


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the input of a network.

    resize: pixels along the shorter side after resizing; the longer one keeps the proportion.
    crop: side of the square cut out of the middle; the network's input is (crop, crop, 3).
    interpolation: one of INTERPOLATIONS.
    channel_order: "RGB", or "BGR" for weights that came from Caffe.
    scale, mean, std: the input is (byte * scale - mean) / std; mean and std in `channel_order`.

    Raises UserError, naming the field, for values that make no sense: they come from files.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    channel_order: str = "RGB"
    scale: float = 1 / 255
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("crop", "resize"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 16384:
                _wrong(name, value, "a whole number from 1 to 16384")
        if self.resize < self.crop:
            _wrong("resize", self.resize, f"at least the crop, {self.crop}")
        if self.interpolation not in INTERPOLATIONS:
            _wrong("interpolation", self.interpolation, f"one of {', '.join(INTERPOLATIONS)}")
        if self.channel_order not in ("RGB", "BGR"):
            _wrong("channel_order", self.channel_order, "RGB or BGR")
        if not _is_number(self.scale) or self.scale <= 0:
            _wrong("scale", self.scale, "a number above 0")
        if not _is_numbers(self.mean, 3):
            _wrong("mean", self.mean, "three numbers")
        if not _is_numbers(self.std, 3) or min(self.std) <= 0:
            _wrong("std", self.std, "three numbers above 0")
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Make one of what `to_dict` gave (or JSON made of it); every field must be there, no other.

        Raises UserError naming what is missing, unknown or wrong.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"preprocessing must be a table of fields; got {values!r}")
        names = {f.name for f in fields(cls)}
        missing, unknown = sorted(names - set(values)), sorted(map(str, set(values) - names))
        if missing or unknown:
            problems = [f"lacks {', '.join(missing)}"] if missing else []
            problems += [f"has unknown {', '.join(unknown)}"] if unknown else []
            raise UserError(f"preprocessing {' and '.join(problems)}; it has {sorted(names)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as numbers, strings and lists: ready for JSON and TOML."""
        values = asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std)}

    def evaluation(self, image: Picture) -> np.ndarray:
        """Return the network's input for a picture: (crop, crop, 3) float32.

        image: (height, width, 3) uint8, RGB; or a Pillow picture of mode RGB.
        """
        return self.normalise(self.evaluation_crop(image))

    def training(
        self, image: Picture, rng: np.random.Generator, augmentation: Augmentation | None = None
    ) -> np.ndarray:
        """Return a random variation of a picture as the network's input: (crop, crop, 3) float32.

        image: as for `evaluation`. rng: decides; equal generators give equal results.
        """
        return self.normalise(self.training_crop(image, rng, augmentation))

    def evaluation_crop(self, image: Picture) -> np.ndarray:
        """Resize the shorter side and cut out the middle: (crop, crop, 3) uint8, RGB."""
        return self.evaluation_crops(image)[0]

    def evaluation_crops(self, image: Picture, corners: bool = False) -> list[np.ndarray]:
        """Resize the shorter side and cut out the middle, and with `corners` the four of them too.

        Each is (crop, crop, 3) uint8, RGB. The corners come as torchvision's `five_crop` has them: top left,
        top right, bottom left, bottom right.
        """
        height, width = _height_width(image)
        short, long = min(height, width), LONGEST * min(height, width)
        if max(height, width) > long:  # a strip, of which the middle is all that is needed
            top, left = max(0, height - long) // 2, max(0, width - long) // 2
            height, width = min(height, long), min(width, long)
            image = _part(image, top, left, height, width)
        # As torchvision rounds: down.
        new_width = int(self.resize * width / short)
        new_height = int(self.resize * height / short)
        left = round((new_width - self.crop) / 2.0)
        top = round((new_height - self.crop) / 2.0)
        if (new_height, new_width) != (height, width):
            image = self._resized(image, new_width, new_height)
        places = [(top, left)]
        if corners:
            bottom, right = new_height - self.crop, new_width - self.crop
            places += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        return [np.asarray(_part(image, *place, self.crop, self.crop)) for place in places]

    def training_crop(
        self, image: Picture, rng: np.random.Generator, augmentation: Augmentation | None = None
    ) -> np.ndarray:
        """Cut out a random part, resize it, perhaps mirror and vary it: (crop, crop, 3) uint8, RGB."""
        augmentation = augmentation or Augmentation()
        height, width = _height_width(image)
        mirror = rng.random() < augmentation.flip
        top, left, rows, columns = _random_box(height, width, rng, augmentation)
        image = _part(image, top, left, rows, columns)
        if (rows, columns) != (self.crop, self.crop):
            image = self._resized(image, self.crop, self.crop)
        array = np.asarray(image)
        return augmentation.vary(array[:, ::-1] if mirror else array, rng, self._mean_colour())

    def _mean_colour(self) -> tuple[int, int, int]:
        """Return the RGB bytes that normalisation turns into numbers nearest to 0."""
        red, green, blue = (min(max(round(mean / self.scale), 0), 255) for mean in self.mean)
        return (red, green, blue) if self.channel_order == "RGB" else (blue, green, red)

    def _resized(self, image: Picture, width: int, height: int) -> Image.Image:
        if isinstance(image, np.ndarray):
            image = Image.fromarray(np.ascontiguousarray(image))
        return image.resize((width, height), INTERPOLATIONS[self.interpolation])

    def in_channel_order(self, image: np.ndarray) -> np.ndarray:
        """Return a view of an RGB picture with the network's order of channels."""
        return image[..., ::-1] if self.channel_order == "BGR" else image

    def normalise(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Turn (..., height, width, 3) RGB bytes into the network's numbers, float32 of that shape.

        out: where to put them (C-contiguous); else a new array.

        (byte * scale - mean) / std = byte * (scale / std) + (-mean / std): one multiplication and one
        addition. Both factors are repeated along a row of pixels, because a loop over 3 channels is
        too short to be quick.
        """
        image = np.ascontiguousarray(self.in_channel_order(image))
        std = np.array(self.std)
        factor = np.tile((self.scale / std).astype(np.float32), image.shape[-2])
        offset = np.tile((-np.array(self.mean) / std).astype(np.float32), image.shape[-2])
        if out is None:
            out = np.empty(image.shape, np.float32)
        rows = out.reshape(-1, factor.size)
        np.multiply(image.reshape(rows.shape), factor, out=rows)
        rows += offset
        return out


def _random_box(
    height: int, width: int, rng: np.random.Generator, augmentation: Augmentation
) -> tuple[int, int, int, int]:
    """Return top, left, rows, columns of a random part, drawn as torchvision draws it."""
    low, high = (math.log(r) for r in augmentation.ratio)
    for _ in range(10):
        area = height * width * rng.uniform(*augmentation.scale)
        ratio = math.exp(rng.uniform(low, high))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(rng.integers(0, height - rows, endpoint=True))
            left = int(rng.integers(0, width - columns, endpoint=True))
            return top, left, rows, columns
    # A very long picture: the largest middle part with an allowed proportion.
    columns, rows = width, height
    if width / height < augmentation.ratio[0]:
        rows = min(height, max(1, round(width / augmentation.ratio[0])))
    elif width / height > augmentation.ratio[1]:
        columns = min(width, max(1, round(height * augmentation.ratio[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _part(image: Picture, top: int, left: int, rows: int, columns: int) -> Picture:
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + columns, top + rows))
    return image[top : top + rows, left : left + columns]


def _height_width(image: Picture) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(
                f"a picture must have mode RGB, as decode_image() gives it; got {image.mode}"
            )
        return image.height, image.width
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"a picture must be (height, width, 3) uint8, as decode() gives it; "
            f"got {image.shape} {image.dtype}"
        )
    return image.shape[0], image.shape[1]


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return (
        abs(value) <= sys.float_info.max
    )  # not math.isfinite: a whole number may be beyond float64


def _is_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(map(_is_number, value))


def _wrong(name: str, value: Any, wanted: str) -> None:
    raise UserError(f"preprocessing: {name} must be {wanted}; got {value!r}")


__all__ = ["INTERPOLATIONS", "Preprocessing"]
