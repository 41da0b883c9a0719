"""What a network's inputs are where a checkpoint does not say it: the habit of its family."""

from typing import Any

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def default_preprocessing(arch: str) -> dict[str, Any]:
    """Return the preprocessing with which an architecture's published weights were trained.

    torchvision's training references for ImageNet; akamaster/pytorch_resnet_cifar10 for the CIFAR
    networks, which took over ImageNet's mean and deviation.
    """
    if arch.startswith("cifar_"):
        resize, crop = 32, 32
    elif arch.startswith("inception"):
        resize, crop = 342, 299
    else:
        resize, crop = 256, 224
    return {
        "resize": resize,
        "crop": crop,
        "interpolation": "bilinear",
        "channel_order": "RGB",
        "scale": 1 / 255,
        "mean": list(_IMAGENET["mean"]),
        "std": list(_IMAGENET["std"]),
    }


__all__ = ["default_preprocessing"]
