"""ResNet, Wide ResNet and ResNeXt for ImageNet-sized pictures, with torchvision's names.

He et al. 2015, "Deep Residual Learning for Image Recognition"; Zagoruyko and Komodakis 2016, "Wide
Residual Networks"; Xie et al. 2016, "Aggregated Residual Transformations". As in torchvision, a
bottleneck strides in its 3x3 convolution ("v1.5").
"""

from collections.abc import Callable

import numpy as np

from minitl import nn, ops
from minitl.models.classifier import Classifier, preprocessing
from minitl.tensor import Tensor

Rng = np.random.Generator | None


def conv(c: int, k: int, size: int, rng: Rng, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the map's size at stride 1."""
    return nn.Conv2d(
        c, k, size, stride=stride, padding=size // 2, groups=groups, bias=False, rng=rng
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, c: int, width: int, stride: int, groups: int, base: int, rng: Rng) -> None:
        if groups != 1 or base != 64:
            raise ValueError("basic blocks come with groups=1 and 64 channels a group only")
        self.conv1 = conv(c, width, 3, rng, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, rng)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample(c, width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H/stride, W/stride, width)."""
        shortcut = self.downsample(x) if self.downsample else x
        y = self.bn1.after(self.conv1, x, relu=True)
        return self.bn2.after(self.conv2, y, residual=shortcut)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a shortcut."""

    expansion = 4

    def __init__(self, c: int, width: int, stride: int, groups: int, base: int, rng: Rng) -> None:
        inner = width * base // 64 * groups
        self.conv1 = conv(c, inner, 1, rng)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, rng, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, width * 4, 1, rng)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.downsample = downsample(c, width * 4, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H/stride, W/stride, 4 * width)."""
        shortcut = self.downsample(x) if self.downsample else x
        y = self.bn1.after(self.conv1, x, relu=True)
        y = self.bn2.after(self.conv2, y, relu=True)
        return self.bn3.after(self.conv3, y, residual=shortcut)


class Projection(nn.Sequential):
    """The 1x1 convolution and normalisation of a shortcut, named "0" and "1"."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H/stride, W/stride, k)."""
        conv, bn = self
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        return bn.after(conv, x)


def downsample(c: int, k: int, stride: int, rng: Rng) -> Projection | None:
    """Return the projection that a shortcut needs where the shape changes."""
    if stride == 1 and c == k:
        return None
    return Projection(conv(c, k, 1, rng, stride), nn.BatchNorm2d(k))


class ResNet(Classifier):
    """Stem, four stages of residual blocks, global average, one dense layer."""

    def __init__(
        self,
        arch: str,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        seed: int | None,
        *,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__(arch, {}, preprocessing(resize=256, crop=224))
        rng = None if seed is None else np.random.default_rng(seed)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False, rng=rng)
        self.bn1 = nn.BatchNorm2d(64)
        c = 64
        for stage, depth in enumerate(depths):
            width = 64 << stage
            blocks: list[nn.Module] = []
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(c, width, stride, groups, width_per_group, rng))
                c = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(c, num_classes, rng=rng)

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def features(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, 512 * expansion)."""
        x = self.conv1(x)  # H/2
        x = self.bn1(x, relu=True, maxpool=(3, 2, 1))  # H/4
        x = self.layer1(x)
        x = self.layer2(x)  # H/8
        x = self.layer3(x)  # H/16
        x = self.layer4(x)  # H/32
        return ops.global_avgpool2d(x)


def _network(
    arch: str,
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    groups: int = 1,
    width_per_group: int = 64,
) -> Callable[..., ResNet]:
    def make(num_classes: int = 1000, *, seed: int | None = 0) -> ResNet:
        return ResNet(
            arch, block, depths, num_classes, seed, groups=groups, width_per_group=width_per_group
        )

    make.__name__ = make.__qualname__ = arch
    make.__doc__ = (
        f"Return a {arch}, He-initialised from `seed` (None: zeros, for weights to be loaded)."
    )
    return make


resnet18 = _network("resnet18", BasicBlock, (2, 2, 2, 2))
resnet34 = _network("resnet34", BasicBlock, (3, 4, 6, 3))
resnet50 = _network("resnet50", Bottleneck, (3, 4, 6, 3))
resnet101 = _network("resnet101", Bottleneck, (3, 4, 23, 3))
resnet152 = _network("resnet152", Bottleneck, (3, 8, 36, 3))
wide_resnet50_2 = _network("wide_resnet50_2", Bottleneck, (3, 4, 6, 3), width_per_group=128)
wide_resnet101_2 = _network("wide_resnet101_2", Bottleneck, (3, 4, 23, 3), width_per_group=128)
resnext50_32x4d = _network("resnext50_32x4d", Bottleneck, (3, 4, 6, 3), 32, 4)
resnext101_32x8d = _network("resnext101_32x8d", Bottleneck, (3, 4, 23, 3), 32, 8)
