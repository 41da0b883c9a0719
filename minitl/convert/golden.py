"""The self-test of a weights file: a picture that a formula draws, and what the network says of it.

Whoever makes a weights file computes the logits with the network at hand and stores both. Whoever reads it,
on another machine, device or version, can compute them again: the picture goes the whole way, preprocessing
included. The picture is no photograph: waves that get finer to the right and downwards, other ones in each
colour, so resizing, cropping, channel order and scaling all show in the logits.
"""

from dataclasses import dataclass

import numpy as np

from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.hdf5 import Golden, WeightsFile
from minitl.models.saving import from_weights_file
from minitl.tensor import Tensor, no_grad

# Of the largest logit. In a ResNet-18 trained on ImageNet other orders of sums and Winograd's algorithm made
# 1e-6; dividing bytes by 256 instead of 255 made 0.005, another resizing, crop or channel order 0.1 and more.
TOLERANCE = 1e-3


def golden_picture() -> np.ndarray:
    """Return the picture: (64, 80, 3) uint8, RGB."""
    y, x, c = np.ogrid[:64, :80, :3]
    picture: np.ndarray = ((x * x + 2 * y * y + (c + 1) * x * y) // 16 % 256).astype(np.uint8)
    return picture


def make_golden(contents: WeightsFile, what: str) -> Golden | None:
    """Return the golden part for a weights file; None where it does not say its preprocessing.

    what: names the file in errors. Raises UserError where the network cannot compute on pictures
    prepared so.
    """
    if not contents.preprocessing:
        return None
    picture = golden_picture()
    logits = golden_logits(contents, picture, what)
    return Golden(picture, logits) if np.isfinite(logits).all() else None


def golden_logits(contents: WeightsFile, picture: np.ndarray, what: str) -> np.ndarray:
    """Return the logits of a picture, (classes,) float32, computed on the CPU.

    picture: (height, width, 3) uint8, RGB, of any size. what: names the file in errors.

    Raises UserError for weights that do not fit their architecture, or pictures it cannot take.
    """
    preprocessing = Preprocessing.from_dict(contents.preprocessing)
    model = from_weights_file(contents, what).eval()
    x = Tensor(preprocessing.evaluation(picture)[None])
    try:
        with no_grad(), np.errstate(all="ignore"):
            logits: np.ndarray = model(x).numpy()[0]
    except ValueError as error:
        raise UserError(
            f"{what}: {contents.arch} cannot take pictures of {preprocessing.crop} pixels ({error})"
        ) from None
    return logits


@dataclass(frozen=True)
class SelfTest:
    """What a self-test found. difference: the largest of the logits, as a share of the largest logit."""

    difference: float
    stored_class: int
    computed_class: int

    @property
    def passed(self) -> bool:
        """Whether the network computes what it did when the file was made."""
        return self.difference <= TOLERANCE


def self_test(contents: WeightsFile, what: str) -> SelfTest:
    """Compute the golden logits again. Raises UserError for a file without them, or that does not fit."""
    golden = contents.golden
    if golden is None:
        raise UserError(f"{what} holds no picture and logits to test with; convert it again")
    computed = golden_logits(contents, golden.picture, what)
    if computed.shape != golden.logits.shape:
        raise UserError(
            f"{what} holds {len(golden.logits)} logits to test with, its network has {len(computed)}"
        )
    largest = float(np.abs(golden.logits).max())
    difference = float(np.abs(computed - golden.logits).max())
    return SelfTest(
        difference=difference / largest if largest > 0 else difference,
        stored_class=int(golden.logits.argmax()),
        computed_class=int(computed.argmax()),
    )


__all__ = ["TOLERANCE", "SelfTest", "golden_logits", "golden_picture", "make_golden", "self_test"]
