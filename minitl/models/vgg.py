"""VGG with 11 to 19 layers, with and without batch normalisation, with torchvision's names.

Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
configurations A, B, D and E.
"""

from collections.abc import Callable
from typing import Any

from minitl import init, nn, ops
from minitl.models.classifier import Classifier, Stage, preprocessing
from minitl.models.options import changed, fraction, whole
from minitl.tensor import Tensor

# Convolutions in each of the five stages; a max pooling ends a stage.
DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
WIDTHS = (64, 128, 256, 512, 512)
USUAL = {"hidden": 4096, "dropout": 0.5, "bn_eps": 1e-5}


class VGG(Classifier):
    """Five stages of 3x3 convolutions, and three dense layers on a map of 7x7.

    hidden: outputs of the first two dense layers; 0: there are none, and the head follows the map. dropout:
        after each of them, in training.
    """

    head_name = "classifier.6"

    def __init__(
        self,
        arch: str,
        num_classes: int,
        seed: int | None,
        *,
        batch_norm: bool,
        hidden: int,
        dropout: float,
        bn_eps: float,
    ) -> None:
        options = {"hidden": hidden, "dropout": dropout, "bn_eps": bn_eps}
        super().__init__(arch, changed(options, USUAL), preprocessing(resize=256, crop=224))
        whole(hidden, "hidden", 0, 65536)
        fraction(dropout, "dropout")
        fraction(bn_eps, "bn_eps")
        rng = init.generator(seed)
        layers: list[nn.Module] = []
        c = 3
        for depth, width in zip(DEPTHS[arch.removesuffix("_bn")], WIDTHS, strict=True):
            for _ in range(depth):
                layers.append(nn.Conv2d(c, width, 3, padding=1, rng=rng))
                layers += [nn.BatchNorm2d(width, eps=bn_eps)] if batch_norm else []
                layers.append(nn.ReLU())
                c = width
            layers.append(nn.MaxPool2d(2))
        self.features_ = nn.Sequential(*layers)
        self.classifier: nn.Module
        if not hidden:
            self.head_name = "classifier"
            self.classifier = nn.Linear(c * 7 * 7, num_classes, rng=rng)
            return
        self.classifier = nn.Sequential(
            nn.Linear(c * 7 * 7, hidden, rng=rng),
            nn.ReLU(),
            nn.Dropout(dropout, seed=0),
            nn.Linear(hidden, hidden, rng=rng),
            nn.ReLU(),
            nn.Dropout(dropout, seed=1),
            nn.Linear(hidden, num_classes, rng=rng),
        )

    def stages(self) -> list[Stage]:
        """Return the steps from (N, H, W, 3) to (N, hidden)."""
        between = self.head_name != "classifier"
        dense = self.stages_of(*(f"classifier.{n}" for n in range(6))) if between else []
        return [*self._convolutions(), Stage("avgpool", _pool), *dense]

    def flatten_before_head(self) -> None:
        """Leave out the dense layers before the head; it is a new one of zeros then."""
        if self.head_name != "classifier":
            self.classifier = nn.Linear(512 * 7 * 7, self.num_classes, rng="zeros")
            self.head_name = "classifier"
            options = {k: v for k, v in self.arch_options.items() if k != "head"}
            self.arch_options = options | {"hidden": 0}

    def _convolutions(self) -> list[Stage]:
        """Return the layers, each batch normalisation and the ReLU after it as one; H/32 in the end."""
        stages: list[Stage] = []
        previous: nn.Module | None = None
        for number, layer in enumerate(self.features_):
            name = f"features.{number}"
            if isinstance(layer, nn.ReLU) and isinstance(previous, nn.BatchNorm2d):
                stages[-1] = Stage(name, _with_relu(previous), (*stages[-1].modules, name))
            else:
                stages.append(Stage(name, layer, (name,)))
            previous = layer
        return stages


def _pool(x: Tensor) -> Tensor:
    return ops.flatten(ops.adaptive_avgpool2d(x, 7))


def _with_relu(bn: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    return lambda x: bn(x, relu=True)


def _network(arch: str, batch_norm: bool) -> Callable[..., VGG]:
    def make(num_classes: int = 1000, *, seed: int | None = 0, **options: Any) -> VGG:
        return VGG(arch, num_classes, seed, batch_norm=batch_norm, **USUAL | options)

    make.__name__ = make.__qualname__ = arch
    make.__doc__ = (
        f"Return a {arch}, He-initialised from `seed` (None: zeros, for weights to be loaded). "
        "options: hidden, dropout, bn_eps, as `VGG`."
    )
    return make


vgg11 = _network("vgg11", batch_norm=False)
vgg13 = _network("vgg13", batch_norm=False)
vgg16 = _network("vgg16", batch_norm=False)
vgg19 = _network("vgg19", batch_norm=False)
vgg11_bn = _network("vgg11_bn", batch_norm=True)
vgg13_bn = _network("vgg13_bn", batch_norm=True)
vgg16_bn = _network("vgg16_bn", batch_norm=True)
vgg19_bn = _network("vgg19_bn", batch_norm=True)
