"""How training pictures are varied: random crops and flips, geometry, colour, erasing, policies.

A variation is drawn from a generator that the loader makes of (seed, epoch, picture), so neither the
number of decoding threads nor a resumed run changes it. What is switched off draws nothing: settings
that were there before keep their pictures when others are added.

Everything works on bytes, in this order: a random part, mirrored, turned and sheared, a policy's
operations, colour, erased rectangles. Sources of the forms and ranges: random crops as in Szegedy et
al. 2014, "Going deeper with convolutions"; shear and zoom as users of Keras know them; policies as in
Cubuk et al. 2019, "RandAugment", with torchvision's ranges; erasing as in Zhong et al. 2017, "Random
Erasing Data Augmentation".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from minitl.errors import UserError

# What a user calls the fields; ratio and the probability of flip have no option of their own.
_OPTIONS = {
    "scale": "--crop-scale",
    **{name: f"--color-jitter: {name}" for name in ("brightness", "contrast", "saturation", "hue")},
    **{name: f"--{name}" for name in ("rotation", "shear", "zoom", "erase", "policy")},
}
POLICY_LEVELS = 30  # a policy's magnitude goes from 0 to this


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied. Zero switches a variation off.

    scale: the share of the picture's area that a random crop keeps. From (0.35, 1) by default, where
        training on ImageNet from nothing uses (0.08, 1): that needs a million pictures and many epochs
        to pay off. With a few hundred and a network that has seen much already, a crop of a twelfth
        often shows none of the object, and teaches the label on background.
    ratio: the crop's width divided by its height.
    flip, vertical_flip: probability of mirroring left and right, top and bottom. 0 where sides matter:
        digits, letters, hands.
    rotation, shear: up to so many degrees either way.
    zoom: each axis is stretched by a factor from 1 - zoom to 1 + zoom. What comes into view at the
        border by these three is the picture, mirrored.
    brightness, contrast, saturation: a factor from 1 - value (at least 0) to 1 + value.
    hue: up to this part of the colour circle either way, at most 0.5.
    erase: probability that a rectangle is painted over with the mean colour.
    policy: (operations, magnitude): so many operations drawn from POLICY, at a magnitude from 0 to 30.

    Raises UserError for values that make no sense.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0
    rotation: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erase: float = 0.0
    policy: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for name, upper in (("scale", 1.0), ("ratio", math.inf)):
            value = getattr(self, name)
            if not _is_pair(value) or not 0 < value[0] <= value[1] <= upper:
                limit = " up to 1" if upper == 1 else ""
                _wrong(name, value, f"two rising numbers above 0{limit}")
            object.__setattr__(self, name, tuple(float(v) for v in value))
        ranges = {
            "a probability, 0 to 1": (("flip", "vertical_flip", "erase"), 1.0),
            "degrees from 0 to 180": (("rotation",), 180.0),
            "degrees from 0 to 80": (("shear",), 80.0),
            "a number from 0 to 0.9": (("zoom",), 0.9),
            "a number from 0 to 10": (("brightness", "contrast", "saturation"), 10.0),
            "a number from 0 to 0.5": (("hue",), 0.5),
        }
        for wanted, (names, most) in ranges.items():
            for name in names:
                value = getattr(self, name)
                if not _is_number(value) or not 0 <= value <= most:
                    _wrong(name, value, wanted)
        if not _is_pair(self.policy) or not all(isinstance(v, int) and v >= 0 for v in self.policy):
            _wrong("policy", self.policy, "a number of operations and a magnitude")
        if self.policy[0] > 10 or self.policy[1] > POLICY_LEVELS:
            _wrong("policy", self.policy, "at most 10 operations, magnitude at most 30")
        object.__setattr__(self, "policy", tuple(self.policy))

    def vary(
        self, image: np.ndarray, rng: np.random.Generator, mean_colour: tuple[int, int, int]
    ) -> np.ndarray:
        """Apply what follows crop and flip to (height, width, 3) uint8; same shape.

        mean_colour: RGB bytes that erased parts get.
        """
        if self.vertical_flip and rng.random() < self.vertical_flip:
            image = image[::-1]
        if self.rotation or self.shear or self.zoom:
            image = warp(image, *self._draw_geometry(rng))
        for _ in range(self.policy[0]):
            image = _policy_operation(image, rng, self.policy[1])
        if self.brightness or self.contrast or self.saturation or self.hue:
            image = self._jitter(image, rng)
        if self.erase and rng.random() < self.erase:
            image = _erased(image, rng, mean_colour)
        return image

    def _draw_geometry(self, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """Draw an angle and a shear in degrees, and a factor for each axis."""
        return (
            rng.uniform(-self.rotation, self.rotation),
            rng.uniform(-self.shear, self.shear),
            rng.uniform(1 - self.zoom, 1 + self.zoom),
            rng.uniform(1 - self.zoom, 1 + self.zoom),
        )

    def _jitter(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change brightness, contrast, saturation and hue, in a random order."""
        picture = Image.fromarray(np.ascontiguousarray(image))
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        amounts = (self.brightness, self.contrast, self.saturation, self.hue)
        for which in rng.permutation(4):
            amount = amounts[which]
            if not amount:
                continue
            if which == 3:
                picture = _turned_hue(picture, rng.uniform(-amount, amount))
            else:
                factor = rng.uniform(max(0.0, 1 - amount), 1 + amount)
                picture = enhancers[which](picture).enhance(factor)
        return np.asarray(picture)


def warp(
    image: np.ndarray, degrees: float, shear: float, zoom_y: float, zoom_x: float
) -> np.ndarray:
    """Turn counter-clockwise, shear along the rows, and stretch around the middle; same shape.

    image: (height, width, 3) uint8. shear: degrees that columns lean over. Bilinear.
    """
    height, width = image.shape[:2]
    # Pillow asks where each pixel of the result comes from: the inverse map, around the middle.
    # Forward, for (x, y) from the middle with y down: stretch, then shear, then turn.
    turn, lean = math.radians(degrees), math.tan(math.radians(shear))
    cos, sin = math.cos(turn), math.sin(turn)
    forward = np.array([[cos, sin], [-sin, cos]]) @ [[1, -lean], [0, 1]] @ np.diag([zoom_x, zoom_y])
    inverse = np.linalg.inv(forward)
    # Corners of the result in the source say how much must be mirrored around it.
    half = np.array([width / 2, height / 2])
    corners = inverse @ (np.array([[1, 1, -1, -1], [1, -1, 1, -1]]) * half[:, None])
    margin = np.maximum(np.ceil(np.abs(corners).max(axis=1) - half), 0).astype(int) + 1
    around = ((margin[1], margin[1]), (margin[0], margin[0]), (0, 0))
    padded = Image.fromarray(np.pad(image, around, "symmetric"))
    offset = half + margin - inverse @ half
    (a, b), (d, e) = inverse
    data = (a, b, offset[0], d, e, offset[1])
    moved = padded.transform(
        (width, height), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def _turned_hue(picture: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    shifted = (np.asarray(hue).astype(np.int16) + round(turn * 256)) % 256
    channels = (Image.fromarray(shifted.astype(np.uint8)), saturation, value)
    return Image.merge("HSV", channels).convert("RGB")


def _erased(
    image: np.ndarray, rng: np.random.Generator, colour: tuple[int, int, int]
) -> np.ndarray:
    """Paint a rectangle of 2 to 33 % of the area, at most 3.3 times as long as wide."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 0.33)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < rows < height and 0 < columns < width:
            top = int(rng.integers(0, height - rows, endpoint=True))
            left = int(rng.integers(0, width - columns, endpoint=True))
            image = image.copy()
            image[top : top + rows, left : left + columns] = colour
            break
    return image


def _shear_x(picture: Image.Image, amount: float) -> Image.Image:
    return _warped(picture, shear=math.degrees(math.atan(amount)))


def _shear_y(picture: Image.Image, amount: float) -> Image.Image:
    sideways = picture.transpose(Image.Transpose.TRANSPOSE)
    return _shear_x(sideways, amount).transpose(Image.Transpose.TRANSPOSE)


def _warped(picture: Image.Image, degrees: float = 0.0, shear: float = 0.0) -> Image.Image:
    return Image.fromarray(warp(np.asarray(picture), degrees, shear, 1.0, 1.0))


def _shifted(picture: Image.Image, share: float, axis: int) -> Image.Image:
    """Move by a share of the side; what leaves on one side is mirrored in on the other."""
    array = np.asarray(picture)
    pixels = round(share * array.shape[axis])
    around = [(0, 0)] * 3
    around[axis] = (max(pixels, 0), max(-pixels, 0))
    start = [slice(None)] * 3
    start[axis] = slice(max(-pixels, 0), max(-pixels, 0) + array.shape[axis])
    return Image.fromarray(np.pad(array, around, "symmetric")[tuple(start)])


def _enhanced(enhancer: Any) -> Callable[[Image.Image, float], Image.Image]:
    return lambda picture, amount: enhancer(picture).enhance(1 + amount)


# A policy's operations: (function, amount at magnitude 30, whether it goes either way).
POLICY: dict[str, tuple[Callable[[Image.Image, float], Image.Image], float, bool]] = {
    "identity": (lambda picture, _: picture, 0.0, False),
    "shear_x": (_shear_x, 0.3, True),
    "shear_y": (_shear_y, 0.3, True),
    "shift_x": (lambda picture, amount: _shifted(picture, amount, 1), 0.45, True),
    "shift_y": (lambda picture, amount: _shifted(picture, amount, 0), 0.45, True),
    "rotate": (lambda picture, amount: _warped(picture, degrees=amount), 30.0, True),
    "brightness": (_enhanced(ImageEnhance.Brightness), 0.9, True),
    "saturation": (_enhanced(ImageEnhance.Color), 0.9, True),
    "contrast": (_enhanced(ImageEnhance.Contrast), 0.9, True),
    "sharpness": (_enhanced(ImageEnhance.Sharpness), 0.9, True),
    "posterize": (lambda picture, amount: ImageOps.posterize(picture, 8 - round(amount)), 4, False),
    "solarize": (
        lambda picture, amount: ImageOps.solarize(picture, 255 - round(amount)),
        255,
        False,
    ),
    "autocontrast": (lambda picture, _: ImageOps.autocontrast(picture), 0.0, False),
    "equalize": (lambda picture, _: ImageOps.equalize(picture), 0.0, False),
}


def _policy_operation(image: np.ndarray, rng: np.random.Generator, magnitude: int) -> np.ndarray:
    function, most, either_way = list(POLICY.values())[rng.integers(len(POLICY))]
    amount = most * magnitude / POLICY_LEVELS
    if either_way and rng.random() < 0.5:
        amount = -amount
    return np.asarray(function(Image.fromarray(np.ascontiguousarray(image)), amount))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


def _wrong(name: str, value: Any, wanted: str) -> None:
    what = _OPTIONS.get(name, f"augmentation: {name}")
    raise UserError(f"{what} must be {wanted}; got {value!r}")


__all__ = ["POLICY", "POLICY_LEVELS", "Augmentation", "warp"]
