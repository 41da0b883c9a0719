"""Names that other implementations give to the same weights, one table for both directions.

minitl's names are torchvision's, and timm's where torchvision has no such network. What timm and others
call differently is below. A row says how a name begins there and here; a family's `inside` rows replace
what stands further inside a name. Shapes differ in one way only: a dense layer may be a convolution that
covers its whole input; `convolutions` has the kernels of these.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from minitl.convert.source import StoredArray
from minitl.errors import WeightsFileError
from minitl.text import shown

Rows = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """The names of one implementation.

    title: for the reader. marks: names that this implementation has and no other. archs: the
    beginnings of the architectures it is about. begins, inside: (there, here). convolutions: our name of
    a dense layer -> kernel of the convolution there.
    """

    title: str
    marks: tuple[str, ...]
    archs: tuple[str, ...]
    begins: Rows
    inside: Rows = ()
    convolutions: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def here(self, name: str) -> str:
        """Return our name for theirs."""
        return self._replaced(name, 0)

    def there(self, name: str) -> str:
        """Return their name for ours."""
        return self._replaced(name, 1)

    def _replaced(self, name: str, side: int) -> str:
        for row in self.begins:
            if name.startswith(row[side]):
                rest = f".{name.removeprefix(row[side])}"
                for inner in self.inside:
                    rest = rest.replace(f".{inner[side]}.", f".{inner[1 - side]}.", 1)
                return row[1 - side] + rest[1:]
        return name


TIMM_VGG = Family(
    title="timm's VGG",
    marks=("pre_logits.fc1.weight",),
    archs=("vgg",),
    begins=(
        ("pre_logits.fc1.", "classifier.0."),
        ("pre_logits.fc2.", "classifier.3."),
        ("head.fc.", "classifier.6."),
    ),
    convolutions={"classifier.0.weight": (7, 7), "classifier.3.weight": (1, 1)},
)

TIMM_RESNET_V2 = Family(
    title="timm's pre-activation ResNet",
    marks=("stages.0.blocks.0.norm1.weight", "stem.conv.weight"),
    archs=("resnetv2_",),
    begins=(
        ("stem.conv.", "conv1."),
        *((f"stages.{stage}.blocks.", f"layer{stage + 1}.") for stage in range(4)),
        ("norm.", "bn."),
        ("head.fc.", "fc."),
    ),
    inside=(
        ("norm1", "bn1"),
        ("norm2", "bn2"),
        ("norm3", "bn3"),
        ("downsample.conv", "downsample"),
    ),
    convolutions={"fc.weight": (1, 1)},
)

# As in https://github.com/chenyaofo/pytorch-cifar-models.
CIFAR_AS_TORCHVISION = Family(
    title="a CIFAR ResNet with the names of torchvision's ResNet",
    marks=("layer2.0.downsample.0.weight", "layer3.0.downsample.0.weight", "fc.weight"),
    archs=("cifar_resnet",),
    begins=(
        *((f"layer{stage}.", f"layer{stage}.") for stage in (1, 2, 3)),
        ("fc.", "linear."),
    ),
    inside=(("downsample", "shortcut"),),
)

FAMILIES = (TIMM_VGG, TIMM_RESNET_V2, CIFAR_AS_TORCHVISION)


def family_of(names: Iterable[str]) -> Family | None:
    """Return whose names these are; None for names that need no translation."""
    present = set(names)
    for family in FAMILIES:
        if present.issuperset(family.marks):
            foreign = family is CIFAR_AS_TORCHVISION
            if foreign and any(name.startswith("layer4.") for name in present):
                continue  # a ResNet for larger pictures
            return family
    return None


def to_our_names(
    arrays: Mapping[str, StoredArray], what: str
) -> tuple[dict[str, StoredArray], str | None]:
    """Return the arrays by our names and in our shapes, and the title of the family they had names of.

    Raises WeightsFileError where two arrays would get one name.
    """
    family = family_of(arrays)
    if family is None:
        return dict(arrays), None
    ours: dict[str, StoredArray] = {}
    origin: dict[str, str] = {}
    for name, array in arrays.items():
        new = family.here(name)
        if new in ours:
            raise WeightsFileError(
                f"{what} has two candidates for {shown(new)}: {shown(origin[new])} and {shown(name)}; "
                "remove one"
            )
        kernel = family.convolutions.get(new)
        if kernel is not None and array.shape[2:] == kernel:
            array = array.reshaped((array.shape[0], math.prod(array.shape[1:])))
        ours[new], origin[new] = array, name
    return ours, family.title


def to_their_names(state: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """Return a network's state by a family's names and in its shapes: the way back of `to_our_names`."""
    theirs: dict[str, np.ndarray] = {}
    for name, array in state.items():
        kernel = family.convolutions.get(name)
        if kernel is not None:
            array = array.reshape(len(array), -1, *kernel)
        theirs[family.there(name)] = array
    return theirs


__all__ = ["FAMILIES", "Family", "family_of", "to_our_names", "to_their_names"]
