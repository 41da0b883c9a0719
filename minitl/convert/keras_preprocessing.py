"""How pictures must be prepared for a network of Keras: the file seldom says, and all depends on it.

What the network does to its input itself (a Rescaling layer) is known. Else the application that it is
takes its input in a certain way, if its head is the application's too. Else it has to be said: a guess
could cost half of the accuracy.
"""

from collections.abc import Mapping
from typing import Any

from minitl.convert.keras_graph import Affine
from minitl.convert.presets import preset, preset_names
from minitl.errors import UserError
from minitl.models import Classifier
from minitl.models.inception import InceptionV3
from minitl.models.mlperf_resnet8 import MLPerfResNet8
from minitl.models.resnet import ResNet
from minitl.models.resnet_v2 import ResNetV2
from minitl.models.vgg import VGG

Fields = dict[str, Any]
_BYTES = {"scale", "mean", "std", "channel_order"}  # the fields about what is done to bytes


def preprocessing_of(
    model: Classifier,
    side: int | None,
    inside: Affine | None,
    mode: str | None,
    classes: int | None,
    asked: str | Mapping[str, Any] | None,
    what: str,
) -> tuple[Fields, str]:
    """Return the fields of the preprocessing, and in words where they came from.

    side: pixels of the network's input, None if it takes any. inside: what the network does to its input
    first. mode: the preset that the application takes, None for no application. classes: of the file's
    head, None if it has none: a head of other classes was trained by somebody, on input that only they
    know. asked: what the user says,
    which goes before the result later. what: the file, for errors.

    Raises UserError where the user must say it, or must not.
    """
    fields = dict(model.preprocessing)
    given = asked if isinstance(asked, str) else _BYTES & set(asked or ())
    if side is not None and side != fields["crop"]:
        fields |= {"resize": side, "crop": side}
    if inside is not None:
        if given:
            raise UserError(
                f"{what} scales its input itself, by {inside.scale[0]:g}; leave --preprocessing out"
            )
        return fields | _of(inside), "as the network's own first layers do it"
    if isinstance(given, str) or given == _BYTES:
        return fields, ""
    original = 10 if isinstance(model, MLPerfResNet8) else 1000
    if mode is None or classes not in (None, original):
        if given:
            raise UserError(
                f"{what} does not say how pictures were prepared for it; --preprocessing must say "
                f"{', '.join(sorted(_BYTES - given))} as well"
            )
        hint = f" (the application takes {mode})" if mode else ""
        raise UserError(
            f"{what} does not say how pictures were prepared for it; give --preprocessing, one of: "
            f"{preset_names()}{hint}; or JSON with {', '.join(sorted(_BYTES))}"
        )
    meaning, values = preset(mode)
    return (
        fields | values,
        f"ASSUMED {mode} ({meaning}), as the original; else give --preprocessing",
    )


def mode_of(model: Classifier) -> str | None:
    """Return the preset of Keras' application of this architecture; None if there is no such one."""
    options = model.arch_options
    if isinstance(model, ResNet) and model.arch in ("resnet50", "resnet101", "resnet152"):
        ours = options.get("stride_in_1x1") and not options.get("same_padding")
        return "caffe" if ours else None
    if isinstance(model, ResNetV2):
        return "tf" if options.get("stride_last") else None
    if isinstance(model, InceptionV3):
        return "tf" if options.get("count_include_pad") is False else None
    if isinstance(model, VGG):
        return "caffe" if model.arch in ("vgg16", "vgg19") else None
    return "raw" if isinstance(model, MLPerfResNet8) else None


def _of(inside: Affine) -> Fields:
    """Return byte * a + b, for each channel, as (byte * scale - mean) / std."""
    order = "BGR" if inside.reverse else "RGB"
    if len(set(inside.scale)) == 1:
        mean = [0.0 - b for b in inside.offset]
        return {"channel_order": order, "scale": inside.scale[0], "mean": mean, "std": [1.0] * 3}
    pairs = list(zip(inside.scale, inside.offset, strict=True))
    return {
        "channel_order": order,
        "scale": 1.0,
        "mean": [-b / a for a, b in pairs],
        "std": [1 / a for a, _ in pairs],
    }


__all__ = ["mode_of", "preprocessing_of"]
