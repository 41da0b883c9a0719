"""Networks of Keras' applications, recognised by the names and shapes of their layers.

For files of weights alone, which do not describe their network. Names are those of the present releases
(conv2_block1_1_conv) or of the first ones (res2a_branch2a); Inception v3 has numbered names, in the order in
which its layers were made (conv2d, conv2d_1, ...).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minitl.models import Classifier

# How the releases that gave the layers their present names set up their networks.
_V1 = {"stride_in_1x1": True, "bn_eps": 1.001e-5}
_V2 = {"stride_last": True, "zero_pool": True, "conv_bias": True, "bn_eps": 1.001e-5}
# The first ResNet-50 left the epsilon of its normalisations at what Keras usually takes.
_FIRST = {"stride_in_1x1": True, "bn_eps": 1e-3}

Modules = Sequence[str]
Pairs = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Application:
    """A network as Keras' applications build it.

    arch, options: the same network here. names: yields (module of minitl, layer of Keras) for the
    modules with weights; None for numbered names. known_by: a layer that only this family has.
    bn_scale: whether its normalisations have a scale. assumed: what names and shapes do not tell.
    """

    arch: str
    options: dict[str, Any] = field(default_factory=dict)
    names: Callable[[Modules], Pairs] | None = None
    known_by: str = ""
    bn_scale: bool = True
    assumed: str = ""


def _resnet(modules: Modules) -> Pairs:
    for module in modules:
        if found := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)", module):
            stage, block, kind, number = found.groups()
            yield module, f"conv{int(stage) + 1}_block{int(block) + 1}_{number}_{kind}"
        elif found := re.fullmatch(r"layer(\d)\.0\.downsample\.(\d)", module):
            kind = ("conv", "bn")[int(found[2])]
            yield module, f"conv{int(found[1]) + 1}_block1_0_{kind}"
        else:
            yield module, {"conv1": "conv1_conv", "bn1": "conv1_bn"}.get(module, "")


def _first_resnet(modules: Modules) -> Pairs:
    for module in modules:
        if found := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)", module):
            stage, block, kind, number = found.groups()
            place = f"{int(stage) + 1}{chr(ord('a') + int(block))}"
            branch = f"branch2{chr(ord('a') + int(number) - 1)}"
            yield module, f"{'res' if kind == 'conv' else 'bn'}{place}_{branch}"
        elif found := re.fullmatch(r"layer(\d)\.0\.downsample\.(\d)", module):
            kind = ("res", "bn")[int(found[2])]
            yield module, f"{kind}{int(found[1]) + 1}a_branch1"
        else:
            yield module, {"conv1": "conv1", "bn1": "bn_conv1"}.get(module, "")


def _resnet_v2(modules: Modules) -> Pairs:
    bns = {"bn1": "preact_bn", "bn2": "1_bn", "bn3": "2_bn"}
    for module in modules:
        if found := re.fullmatch(r"layer(\d)\.(\d+)\.(\w+)", module):
            stage, block, inner = found.groups()
            kind = bns.get(inner) or {"downsample": "0_conv"}.get(inner, f"{inner[4:]}_conv")
            yield module, f"conv{int(stage) + 1}_block{int(block) + 1}_{kind}"
        else:
            yield module, {"conv1": "conv1_conv", "bn": "post_bn"}.get(module, "")


def _vgg(modules: Modules) -> Pairs:
    depths = {8: (1, 1, 2, 2, 2), 10: (2, 2, 2, 2, 2), 13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}
    filters = [module for module in modules if module.startswith("features.")]
    blocks = enumerate(depths.get(len(filters), ()), 1)
    layers = [f"block{block}_conv{i + 1}" for block, depth in blocks for i in range(depth)]
    yield from zip(filters, layers, strict=False)
    yield "classifier.0", "fc1"
    yield "classifier.3", "fc2"
    yield "classifier.6", ""


APPLICATIONS = (
    Application("resnet50", _V1, _resnet, "conv2_block1_1_bn"),
    Application("resnet101", _V1, _resnet, "conv2_block1_1_bn"),
    Application("resnet152", _V1, _resnet, "conv2_block1_1_bn"),
    Application(
        "resnet50",
        _FIRST,
        _first_resnet,
        "res2a_branch2a",
        assumed="epsilon 1e-3 and a padded first pooling, as in Keras 2.2 (else --arch-option bn_eps=...)",
    ),
    Application("resnetv2_50", _V2, _resnet_v2, "conv2_block1_preact_bn"),
    Application("resnetv2_101", _V2, _resnet_v2, "conv2_block1_preact_bn"),
    Application("resnetv2_152", _V2, _resnet_v2, "conv2_block1_preact_bn"),
    Application("vgg16", {}, _vgg, "block1_conv1"),
    Application("vgg19", {}, _vgg, "block1_conv1"),
    Application("inception_v3", {"count_include_pad": False}, bn_scale=False),
    Application(
        "mlperf_resnet8", assumed="MLPerf's strides and padding: its names are any network's"
    ),
)


def layers_of(
    application: Application, model: Classifier, names: Iterable[str]
) -> dict[str, str] | None:
    """Return the layer of Keras for each module of `model` with weights.

    names: the file's layers with weights. None where they are not those of the application; a head that
    the file lacks is left out.
    """
    names = list(names)
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in model.state_dict()))
    if application.names is None:
        return _numbered(model, modules, names)
    found = dict(application.names(modules))
    if any(layer not in names for layer in found.values() if layer and layer not in ("fc1", "fc2")):
        return None
    found = {module: layer for module, layer in found.items() if layer in names}
    # The head has had many names. It is what is left over, if that is one layer.
    rest = [name for name in names if name not in found.values()]
    if len(rest) == 1:
        found[model.head_name] = rest[0]
    return found if len(rest) <= 1 else None


def _numbered(model: Classifier, modules: Modules, names: list[str]) -> dict[str, str] | None:
    """Assign layers with numbered names in the order in which both sides made them."""
    state = model.state_dict()
    kinds: dict[str, list[str]] = {"conv": [], "bn": []}
    for module in modules:
        if module != model.head_name:
            kinds["conv" if state[f"{module}.weight"].ndim == 4 else "bn"].append(module)
    convs, rest = _counted(names, r"(?:conv2d|convolution2d)(?:_(\d+))?")
    bns, rest = _counted(rest, r"(?:batch_normalization|batchnormalization)(?:_(\d+))?")
    if len(convs) != len(kinds["conv"]) or len(bns) != len(kinds["bn"]) or len(rest) > 1:
        return None
    found = dict(zip([*kinds["conv"], *kinds["bn"]], [*convs, *bns], strict=True))
    return found | dict.fromkeys([model.head_name] if rest else [], "".join(rest))


def _counted(names: Sequence[str], pattern: str) -> tuple[list[str], list[str]]:
    """Return the names that fit, by number, and the others."""
    numbers = {}
    for name in names:
        if found := re.fullmatch(pattern, name, re.ASCII):
            numbers[name] = int(found[1] or 0)
    return sorted(numbers, key=numbers.__getitem__), [n for n in names if n not in numbers]


__all__ = ["APPLICATIONS", "Application", "layers_of"]
