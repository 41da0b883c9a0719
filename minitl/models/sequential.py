"""Networks of one layer after another, such as LeNet, described by a list.

    create("sequential", input=[32, 32], layers=[
        {"type": "conv", "channels": 6, "kernel": 5},
        {"type": "relu"},
        {"type": "maxpool", "kernel": 2},
        {"type": "flatten"},
        {"type": "dense", "units": 10},
    ])

`KINDS` has every type of layer with its settings. The last layer is dense and is the head; its output
is taken as logits, so a softmax behind it is left out. Names are those of PyTorch's Sequential:
"0.weight", "0.bias", ... A description may come from a file of unknown origin, so all is checked and
bounded before memory is asked for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minitl import init, nn
from minitl.init import Rng
from minitl.models.classifier import Classifier, Stage, preprocessing
from minitl.models.options import fraction, switch, whole
from minitl.shapes import Padding, Padding2d, same_padding, window_output_shape

MAX_LAYERS = 200
MAX_SIDE = 1024  # pixels of the input
MAX_WIDTH = 1 << 16  # channels or units
MAX_KERNEL = 64
MAX_PARAMETERS = 1 << 30
MAX_VALUES = 1 << 28  # between two layers, for one picture

LENET: list[dict[str, Any]] = [
    {"type": "conv", "channels": 6, "kernel": 5},
    {"type": "relu"},
    {"type": "maxpool", "kernel": 2},
    {"type": "conv", "channels": 16, "kernel": 5},
    {"type": "relu"},
    {"type": "maxpool", "kernel": 2},
    {"type": "flatten"},
    {"type": "dense", "units": 120},
    {"type": "relu"},
    {"type": "dense", "units": 84},
    {"type": "relu"},
    {"type": "dense", "units": 10},
]

Shape = tuple[int, ...]  # of one picture between layers: (H, W, C) or (features,)
Made = tuple[nn.Module, Shape]


def _conv(s: dict[str, Any], shape: Shape, rng: Rng) -> Made:
    h, w, c = _picture(shape)
    kernel, stride, padding = _window(s)
    k = whole(s["channels"], "channels", 1, MAX_WIDTH)
    groups = whole(s["groups"], "groups", 1, MAX_WIDTH)
    if c % groups or k % groups:
        raise ValueError(f"groups={groups} must divide {c} and {k} channels")
    _bound(k * c // groups * math.prod(kernel), MAX_PARAMETERS, "parameters")
    layer = nn.Conv2d(
        c,
        k,
        kernel,
        stride=stride,
        padding=padding,
        groups=groups,
        bias=switch(s["bias"], "bias"),
        rng=rng,
    )
    return layer, (*_size_after(h, w, kernel, stride, padding), k)


def _dense(s: dict[str, Any], shape: Shape, rng: Rng) -> Made:
    if len(shape) != 1:
        raise ValueError("needs a row of features; put a flatten or global_avgpool before it")
    units = whole(s["units"], "units", 1, MAX_WIDTH)
    _bound(units * shape[0], MAX_PARAMETERS, "parameters")
    return nn.Linear(shape[0], units, bias=switch(s["bias"], "bias"), rng=rng), (units,)


def _maxpool(s: dict[str, Any], shape: Shape, rng: Rng) -> Made:
    h, w, c = _picture(shape)
    kernel, stride, padding = _window(s, pooling=True)
    layer = nn.MaxPool2d(kernel, stride, padding)
    return layer, (*_size_after(h, w, kernel, stride, padding), c)


def _avgpool(s: dict[str, Any], shape: Shape, rng: Rng) -> Made:
    h, w, c = _picture(shape)
    kernel, stride, padding = _window(s, pooling=True)
    counted = switch(s["count_include_pad"], "count_include_pad")
    layer = nn.AvgPool2d(kernel, stride, padding, counted)
    return layer, (*_size_after(h, w, kernel, stride, padding), c)


def _batchnorm(s: dict[str, Any], shape: Shape, rng: Rng) -> Made:
    return nn.BatchNorm2d(shape[-1], eps=fraction(s["eps"], "eps")), shape


def _dropout(s: dict[str, Any], shape: Shape, rng: Rng) -> Made:
    seed = None if s["seed"] is None else whole(s["seed"], "seed", 0, 1 << 32)
    return nn.Dropout(fraction(s["p"], "p"), seed=seed), shape


NEEDED = object()  # in place of a setting's usual value: it must be given
_WINDOW = {"kernel": NEEDED, "stride": None, "padding": 0}
# Type of layer: what makes it, and its settings with their usual values. kernel and stride are a number or
# [rows, columns]; padding is "same" (TensorFlow's), a number or [[top, bottom], [left, right]]; a stride of
# null is 1 for a convolution and the kernel for a pooling, a seed of null the number of dropouts before.
KINDS: dict[str, tuple[Callable[[dict[str, Any], Shape, Rng], Made], dict[str, Any]]] = {
    "conv": (_conv, {"channels": NEEDED, **_WINDOW, "groups": 1, "bias": True}),
    "dense": (_dense, {"units": NEEDED, "bias": True}),
    "maxpool": (_maxpool, _WINDOW),
    "avgpool": (_avgpool, _WINDOW | {"count_include_pad": True}),
    "global_avgpool": (lambda s, shape, rng: (nn.GlobalAvgPool2d(), _picture(shape)[2:]), {}),
    "batchnorm": (_batchnorm, {"eps": 1e-5}),
    "dropout": (_dropout, {"p": 0.5, "seed": None}),
    "relu": (lambda s, shape, rng: (nn.ReLU(), shape), {}),
    "flatten": (lambda s, shape, rng: (nn.Flatten(), (math.prod(shape),)), {}),
}


class SequentialCNN(Classifier):
    """Layers one after another.

    input: [height, width] of the pictures, on which the width of a dense layer depends; equal, because
        pictures are prepared as squares.
    layers: a dict for each, with its "type" and settings.

    Raises ValueError, naming the layer, for a description that is not complete or fits no picture.
    """

    def __init__(
        self, num_classes: int | None, seed: int | None, *, input: Any, layers: Any
    ) -> None:
        height, width = _pair(input, "input", MAX_SIDE)
        if height != width:
            raise ValueError(
                f"input must be square, as pictures are prepared; got {height}x{width}"
            )
        if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_LAYERS:
            raise ValueError(f"layers must be a list of 1 to {MAX_LAYERS} layers")
        if not isinstance(layers[-1], Mapping) or layers[-1].get("type") != "dense":
            raise ValueError("the last layer must be dense: it is the head")
        if num_classes is not None:
            layers = [*layers[:-1], {**layers[-1], "units": num_classes}]
        options = {"input": [height, width], "layers": [dict(layer) for layer in layers]}
        super().__init__("sequential", options, preprocessing(height, height))
        self.head_name = str(len(layers) - 1)
        rng = init.generator(seed)
        shape: Shape = (height, width, 3)
        parameters = dropouts = 0
        for number, settings in enumerate(layers):
            try:
                layer, shape = _made(settings, shape, rng)
                parameters += sum(p.data.size for p in layer.parameters())
                _bound(parameters, MAX_PARAMETERS, "parameters")
                _bound(math.prod(shape), MAX_VALUES, "values")
            except ValueError as error:
                raise ValueError(f"layer {number}: {error}") from None
            if isinstance(layer, nn.Dropout):
                if settings.get("seed") is None:
                    layer.seed = dropouts
                dropouts += 1
            setattr(self, str(number), layer)

    def stages(self) -> list[Stage]:
        """Return the layers but the head, from (N, H, W, 3) to (N, F)."""
        return self.stages_of(*(str(number) for number in range(int(self.head_name))))

    def replace_head(
        self, num_classes: int, *, seed: int | None = 0, hidden: Sequence[int] = ()
    ) -> None:
        """Put a freshly initialised head for `num_classes` classes in place of the old one."""
        super().replace_head(num_classes, seed=seed, hidden=hidden)
        self.arch_options["layers"][-1]["units"] = num_classes


def _made(settings: Any, shape: Shape, rng: Rng) -> Made:
    kind = settings.get("type") if isinstance(settings, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"needs a type, one of {', '.join(KINDS)}; got {str(kind)[:40]!r}")
    make, usual = KINDS[kind]
    if unknown := [name for name in settings if name != "type" and name not in usual]:
        raise ValueError(f"{kind} has no setting {str(unknown[0])[:40]!r}; it has {list(usual)}")
    full = {**usual, **{k: v for k, v in settings.items() if k != "type"}}
    if lacking := [name for name, value in full.items() if value is NEEDED]:
        raise ValueError(f"{kind} needs {', '.join(lacking)}")
    return make(full, shape, rng)


def _picture(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError("comes after a flatten, where there are no pictures any more")
    return shape[0], shape[1], shape[2]


def _window(
    s: dict[str, Any], pooling: bool = False
) -> tuple[tuple[int, int], tuple[int, int], nn.AnyPadding]:
    kernel = _pair(s["kernel"], "kernel", MAX_KERNEL)
    usual = kernel if pooling else (1, 1)
    stride = usual if s["stride"] is None else _pair(s["stride"], "stride", MAX_KERNEL)
    padding = s["padding"]
    if padding == "same":
        return kernel, stride, "same"
    if isinstance(padding, list | tuple) and len(padding) == 2:
        (top, bottom), (left, right) = (_pair(side, "padding", MAX_KERNEL, 0) for side in padding)
        around = Padding2d(top, bottom, left, right)
    else:
        around = Padding2d(*[whole(padding, "padding", 0, MAX_KERNEL)] * 4)
    if pooling and (max(around[:2]) >= kernel[0] or max(around[2:]) >= kernel[1]):
        raise ValueError(f"padding {padding} must be smaller than the kernel, {list(kernel)}")
    return kernel, stride, around


def _size_after(
    h: int, w: int, kernel: tuple[int, int], stride: tuple[int, int], padding: Padding | str
) -> tuple[int, int]:
    around = padding if isinstance(padding, Padding2d) else same_padding(h, w, kernel, stride)
    return window_output_shape(h, w, kernel, stride, around)


def _pair(value: Any, name: str, most: int, least: int = 1) -> tuple[int, int]:
    both = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(both) != 2:
        raise ValueError(f"{name} must be a number or two, for rows and columns")
    rows, columns = (whole(v, name, least, most) for v in both)
    return rows, columns


def _bound(count: int, most: int, what: str) -> None:
    if count > most:
        raise ValueError(f"would have {count:,} {what}; the limit is {most:,}")


def sequential(
    num_classes: int | None = None,
    *,
    seed: int | None = 0,
    input: Any = (32, 32),
    layers: Any = LENET,
) -> SequentialCNN:
    """Return a network of layers, He-initialised from `seed` (None: zeros, for weights to be loaded).

    num_classes: None for the last layer's units. input, layers: as `SequentialCNN`; LeNet-5 with ReLU and
    max pooling by default.
    """
    return SequentialCNN(num_classes, seed, input=input, layers=layers)
