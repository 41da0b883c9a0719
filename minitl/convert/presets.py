"""What programs usually do to the bytes of a picture, by name."""

from collections.abc import Sequence
from typing import Any

from minitl.errors import UserError
from minitl.models.classifier import IMAGENET_MEAN, IMAGENET_STD

Fields = dict[str, Any]


def _fields(order: str, scale: float, mean: Sequence[float], std: Sequence[float]) -> Fields:
    return {"channel_order": order, "scale": scale, "mean": list(mean), "std": list(std)}


# Name: what it means, and the fields of the preprocessing that it sets. The last three are the modes of
# Keras' preprocess_input.
PRESETS: dict[str, tuple[str, Fields]] = {
    "raw": ("bytes as they are", _fields("RGB", 1.0, [0.0] * 3, [1.0] * 3)),
    "unit": ("bytes / 255", _fields("RGB", 1 / 255, [0.0] * 3, [1.0] * 3)),
    "tf": ("bytes / 127.5 - 1", _fields("RGB", 1 / 127.5, [1.0] * 3, [1.0] * 3)),
    "torch": (
        "bytes / 255, ImageNet's mean and deviation",
        _fields("RGB", 1 / 255, IMAGENET_MEAN, IMAGENET_STD),
    ),
    "caffe": (
        "BGR minus ImageNet's mean, not scaled",
        _fields("BGR", 1.0, [103.939, 116.779, 123.68], [1.0] * 3),
    ),
}


def preset(name: str) -> tuple[str, Fields]:
    """Return what a preset means, and its fields. Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"unknown preprocessing {name!r}; known are: {preset_names()}")
    return PRESETS[name]


def preset_names() -> str:
    """Return all presets with their meanings, as text for messages."""
    return ", ".join(f"{name} ({meaning})" for name, (meaning, _) in PRESETS.items())


__all__ = ["PRESETS", "preset", "preset_names"]
