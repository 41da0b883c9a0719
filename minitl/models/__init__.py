"""Networks, each file a description of its architecture, and the register of their names."""

from collections.abc import Callable
from typing import Any

from minitl.models.cifar_resnet import (
    CifarResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
)
from minitl.models.classifier import Classifier
from minitl.models.resnet import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from minitl.models.saving import load_model, save_model

ARCHITECTURES: dict[str, Callable[..., Classifier]] = {
    make.__name__: make
    for make in (
        resnet18,
        resnet34,
        resnet50,
        resnet101,
        resnet152,
        wide_resnet50_2,
        wide_resnet101_2,
        resnext50_32x4d,
        resnext101_32x8d,
        cifar_resnet20,
        cifar_resnet32,
        cifar_resnet44,
        cifar_resnet56,
    )
}


def create(
    arch: str, *, num_classes: int | None = None, seed: int | None = 0, **options: Any
) -> Classifier:
    """Make the network registered as `arch`.

    num_classes: None for the architecture's usual number. seed: of the initial weights; None leaves
    zeros, for weights that are to be loaded. options: the architecture's own (`arch_options`).

    Raises ValueError for an unknown name or option.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}; known are: {', '.join(ARCHITECTURES)}")
    if num_classes is not None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1; got {num_classes}")
        options["num_classes"] = num_classes
    try:
        return ARCHITECTURES[arch](seed=seed, **options)
    except TypeError as error:
        raise ValueError(f"{arch} does not take these options: {options} ({error})") from None


__all__ = [
    "ARCHITECTURES",
    "CifarResNet",
    "Classifier",
    "ResNet",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "create",
    "load_model",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "save_model",
    "wide_resnet50_2",
    "wide_resnet101_2",
]
