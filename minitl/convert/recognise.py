"""Which network is it? Told from the names and shapes of its weights.

What shapes cannot tell is assumed to be as in PyTorch's libraries, and said so.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minitl.convert.report import Shape
from minitl.errors import WeightsFileError
from minitl.text import shown

Shapes = Mapping[str, Shape]
Depths = Mapping[tuple[int, ...], str]

# The numbers of blocks in the four stages, by the kind of block.
_BASIC: Depths = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
_BOTTLENECK: Depths = {
    (2, 2, 2, 2): "resnet26",
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
    (3, 24, 36, 3): "resnet200d",
}
_PREACTIVATED: Depths = {
    (3, 4, 6, 3): "resnetv2_50",
    (3, 4, 23, 3): "resnetv2_101",
    (3, 8, 36, 3): "resnetv2_152",
}
_VGG = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}

# What is assumed of an option, in words.
_V15 = {"stride_in_1x1": "bottlenecks stride in their 3x3 convolution (v1.5)"}
_EPS = {"bn_eps": "batch normalisation adds 1e-05 to the variance"}


@dataclass(frozen=True)
class Network:
    """What was recognised: arch and options as for `models.create`, and what was assumed of others."""

    arch: str
    options: dict[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, str] = field(default_factory=dict)


def recognise(shapes: Shapes, what: str) -> Network:
    """Return the network that has weights of these names and shapes.

    shapes: by minitl's names, see `names.to_our_names`. what: the file, for errors.

    Raises WeightsFileError, saying what was seen, for a network that is none of minitl's or not to be
    told from the shapes. That all weights fit is not checked here.
    """
    found = [network for family in _FAMILIES if (network := family(shapes)) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(network.arch for network in found)
        raise WeightsFileError(f"{what} could be {names}; say which with --arch")
    raise WeightsFileError(
        f"{what} holds no network that is recognised by its weights; seen: {_seen(shapes)}. "
        f"If minitl has it, name it with --arch{_hint(shapes)}"
    )


def _resnet(shapes: Shapes) -> Network | None:
    deep, plain = shapes.get("conv1.0.weight"), shapes.get("conv1.weight")
    if "bn1.weight" not in shapes or (deep or plain) is None:
        return None
    bottleneck = "layer1.0.conv3.weight" in shapes
    arch = (_BOTTLENECK if bottleneck else _BASIC).get(_depths(shapes))
    inner = shapes.get("layer1.0.conv2.weight", ())
    if arch is None or len(inner) != 4 or 0 in inner or inner[0] % inner[1]:
        return None
    style: dict[str, Any] = {
        "deep_stem": deep[0] if deep else 0,
        "average_down": len(shapes.get("layer2.0.downsample.1.weight", ())) == 4,
    }
    if bottleneck:
        groups = inner[0] // inner[1]
        style |= {"groups": groups, "width_per_group": inner[0] // groups}
    return Network(*_named(arch, style), _V15 | _EPS if bottleneck else _EPS)


def _named(arch: str, style: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the registered name that needs the fewest options to say the style, and those options."""
    from dataclasses import asdict

    from minitl.models import resnet

    depth = re.sub(r"\D", "", arch)
    candidates = [
        name
        for name in resnet.USUAL
        if re.fullmatch(rf"(resnet|resnext|wide_resnet){depth}(d|_.*|d_.*)?", name)
    ]
    best: tuple[str, dict[str, Any]] | None = None
    for name in candidates:
        usual = asdict(resnet.USUAL[name])
        options = {k: v for k, v in style.items() if v != usual[k]}
        if best is None or len(options) < len(best[1]):
            best = name, options
    assert best is not None
    return best


def _preactivated(shapes: Shapes) -> Network | None:
    arch = _PREACTIVATED.get(_depths(shapes))
    if arch is None or "bn.weight" not in shapes or "layer1.0.downsample.weight" not in shapes:
        return None
    options = {"conv_bias": True} if "conv1.bias" in shapes else {}
    assumed = {
        "stride_last": "the first block of a stage strides, as in timm",
        "zero_pool": "the stem's pooling leaves padding out, as in timm",
    }
    return Network(arch, options, assumed | _EPS)


def _cifar_resnet(shapes: Shapes) -> Network | None:
    from minitl.models import ARCHITECTURES

    depths = _depths(shapes)
    arch = f"cifar_resnet{6 * depths[0] + 2}" if depths else ""
    stem = shapes.get("conv1.weight", ())
    if len(depths) != 3 or arch not in ARCHITECTURES or len(stem) != 4:
        return None
    if "linear.weight" not in shapes and "fc.weight" in shapes:
        return None
    if len(set(depths)) != 1 or "layer1.0.conv2.weight" not in shapes:
        return None
    projected = "layer2.0.shortcut.0.weight" in shapes
    options: dict[str, Any] = {"shortcut": "B"} if projected else {}
    options |= {"width": stem[0]} if stem[0] != 16 else {}
    return Network(arch, options)


def _mlperf_resnet8(shapes: Shapes) -> Network | None:
    return Network("mlperf_resnet8") if "layer3.downsample.weight" in shapes else None


def _vgg(shapes: Shapes) -> Network | None:
    hidden = shapes.get("classifier.0.weight", ())
    convolutions = sum(
        name.startswith("features.") and len(shape) == 4 for name, shape in shapes.items()
    )
    arch = _VGG.get(convolutions)
    if arch is None or len(hidden) != 2 or hidden[1] != 512 * 7 * 7:
        return None
    normalised = "features.1.running_mean" in shapes
    options = {"hidden": hidden[0]} if hidden[0] != 4096 else {}
    return Network(arch + "_bn" * normalised, options, _EPS if normalised else {})


def _inception_v3(shapes: Shapes) -> Network | None:
    if (
        "Mixed_7c.branch_pool.conv.weight" not in shapes
        or "Mixed_5b.branch1x1.conv.weight" not in shapes
    ):
        return None
    options = {"auxiliary": True} if "AuxLogits.fc.weight" in shapes else {}
    assumed = {
        "count_include_pad": "average poolings count their padding, as in torchvision",
        "bn_eps": "batch normalisation adds 0.001 to the variance",
    }
    return Network("inception_v3", options, assumed)


_FAMILIES: tuple[Callable[[Shapes], Network | None], ...] = (
    _resnet,
    _preactivated,
    _cifar_resnet,
    _mlperf_resnet8,
    _vgg,
    _inception_v3,
)


def _depths(shapes: Shapes) -> tuple[int, ...]:
    """Return the number of blocks of layer1, layer2, ..."""
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        if match := re.match(r"layer(\d{1,2})\.(\d{1,3})\.", name, re.ASCII):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    return tuple(len(blocks[stage]) for stage in sorted(blocks))


def _seen(shapes: Shapes) -> str:
    first = ", ".join(f"{shown(name)} {shape}" for name, shape in list(shapes.items())[:4])
    last = list(shapes.items())[-1:] if len(shapes) > 4 else []
    more = "".join(f", ..., {shown(name)} {shape}" for name, shape in last)
    depths = _depths(shapes)
    stages = f", stages of {', '.join(map(str, depths))} blocks" if depths else ""
    return f"{len(shapes)} arrays ({first}{more}){stages}"


def _hint(shapes: Shapes) -> str:
    if all(name.split(".")[0].isdigit() for name in shapes):
        return (
            "; for a torch.nn.Sequential: --arch sequential --arch-option input=[32,32] "
            "--arch-option layers=[...], with the layers as in minitl/models/sequential.py"
        )
    return ""


__all__ = ["Network", "recognise"]
