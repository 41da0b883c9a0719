"""ResNet for 32x32 pictures: three stages of basic blocks, 6n + 2 layers.

He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2. Where a stage halves the
map, shortcut "A" takes every second pixel and fills the new channels with zeros (no parameters);
shortcut "B" projects with a 1x1 convolution. Names are those of the widespread implementation by
Y. Idelbayev (akamaster/pytorch_resnet_cifar10).
"""

from collections.abc import Callable

import numpy as np

from minitl import init, nn, ops
from minitl.init import Rng
from minitl.models.classifier import Classifier, Stage, preprocessing
from minitl.models.options import whole
from minitl.models.resnet import Projection, conv
from minitl.tensor import Tensor


class PadShortcut(nn.Module):
    """Every second pixel, with zero channels added in equal parts before and after."""

    def __init__(self, c: int, k: int) -> None:
        # A 1x1 convolution with a fixed 0/1 filter does exactly this, and its backward too.
        select = np.zeros((k, 1, 1, c), np.float32)
        before = (k - c) // 2
        select[np.arange(before, before + c), 0, 0, np.arange(c)] = 1
        self._select = Tensor(select)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H/2, W/2, k)."""
        return ops.conv2d(x, self._select, stride=2)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, c: int, k: int, stride: int, shortcut: str, rng: Rng) -> None:
        self.conv1 = conv(c, k, 3, rng, stride)
        self.bn1 = nn.BatchNorm2d(k)
        self.conv2 = conv(k, k, 3, rng)
        self.bn2 = nn.BatchNorm2d(k)
        self.shortcut: nn.Module | None = None
        if stride != 1 or c != k:
            projection = Projection(conv(c, k, 1, rng, stride), nn.BatchNorm2d(k))
            self.shortcut = PadShortcut(c, k) if shortcut == "A" else projection

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H/stride, W/stride, k)."""
        shortcut = self.shortcut(x) if self.shortcut else x
        y = self.bn1.after(self.conv1, x, relu=True)
        return self.bn2.after(self.conv2, y, residual=shortcut)


class CifarResNet(Classifier):
    """Stem, three stages, global average, one dense layer called `linear`."""

    head_name = "linear"

    def __init__(
        self, arch: str, blocks: int, num_classes: int, seed: int | None, shortcut: str, width: int
    ) -> None:
        options = {"shortcut": shortcut, "width": width}
        super().__init__(arch, options, preprocessing(resize=32, crop=32))
        if shortcut not in ("A", "B"):
            raise ValueError(f"{arch}: shortcut must be 'A' or 'B', not {shortcut!r}")
        whole(width, "width", 1, 1024)
        rng = init.generator(seed)
        self.conv1 = conv(3, width, 3, rng)
        self.bn1 = nn.BatchNorm2d(width)
        c = width
        for stage in range(3):
            k = width << stage
            stage_blocks: list[nn.Module] = []
            for number in range(blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                stage_blocks.append(Block(c, k, stride, shortcut, rng))
                c = k
            setattr(self, f"layer{stage + 1}", nn.Sequential(*stage_blocks))
        self.linear = nn.Linear(c, num_classes, rng=rng)

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def stages(self) -> list[Stage]:
        """Return the steps from (N, H, W, 3) to (N, 4 * width)."""
        return [
            Stage("bn1", self._stem, ("conv1", "bn1")),
            *self.stages_of("layer1", "layer2", "layer3"),  # H, H/2, H/4
            Stage("pool", ops.global_avgpool2d),
        ]

    def _stem(self, x: Tensor) -> Tensor:
        return self.bn1.after(self.conv1, x, relu=True)


def _network(arch: str, blocks: int) -> Callable[..., CifarResNet]:
    def make(
        num_classes: int = 10, *, seed: int | None = 0, shortcut: str = "A", width: int = 16
    ) -> CifarResNet:
        return CifarResNet(arch, blocks, num_classes, seed, shortcut, width)

    make.__name__ = make.__qualname__ = arch
    make.__doc__ = (
        f"Return a {arch}, He-initialised from `seed` (None: zeros, for weights to be loaded)."
    )
    return make


cifar_resnet20 = _network("cifar_resnet20", 3)
cifar_resnet32 = _network("cifar_resnet32", 5)
cifar_resnet44 = _network("cifar_resnet44", 7)
cifar_resnet56 = _network("cifar_resnet56", 9)
cifar_resnet110 = _network("cifar_resnet110", 18)
