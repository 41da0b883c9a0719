"""ResNet, Wide ResNet and ResNeXt for ImageNet-sized pictures, with torchvision's and timm's names.

He et al. 2015, "Deep Residual Learning for Image Recognition"; Zagoruyko and Komodakis 2016, "Wide
Residual Networks"; Xie et al. 2016, "Aggregated Residual Transformations"; the variants named with a
"d" are of He et al. 2018, "Bag of Tricks for Image Classification". What implementations do
differently is said by `Style`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from minitl import init, nn, ops
from minitl.init import Rng
from minitl.models.classifier import Classifier, Stage, preprocessing
from minitl.models.options import changed, fraction, switch, whole
from minitl.shapes import Padding, same_padding
from minitl.tensor import Tensor


@dataclass(frozen=True)
class Style:
    """What networks of one paper differ in.

    groups, width_per_group: of the 3x3 convolution of a bottleneck (32 and 4 in a ResNeXt 32x4d).
    stride_in_1x1: a bottleneck strides in its first convolution, as in the paper, Caffe and Keras ("v1");
        otherwise in its 3x3 one, as in torchvision ("v1.5").
    deep_stem: width of a stem of three 3x3 convolutions; 0 for one of 7x7.
    average_down: shortcuts are averaged over 2x2 pixels instead of taking every second one.
    same_padding: TensorFlow's padding "same" instead of half the kernel on each side.
    bn_eps: of every batch normalisation.

    Raises ValueError for values that cannot be.
    """

    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = False
    deep_stem: int = 0
    average_down: bool = False
    same_padding: bool = False
    bn_eps: float = 1e-5

    def __post_init__(self) -> None:
        whole(self.groups, "groups", 1, 256)
        whole(self.width_per_group, "width_per_group", 1, 1024)
        whole(self.deep_stem, "deep_stem", 0, 256)
        for name in ("stride_in_1x1", "average_down", "same_padding"):
            switch(getattr(self, name), name)
        fraction(self.bn_eps, "bn_eps")

    def conv(
        self, c: int, k: int, size: int, rng: Rng, stride: int = 1, groups: int = 1
    ) -> nn.Conv2d:
        """Return a convolution without bias that keeps the map's size at stride 1."""
        return conv(c, k, size, rng, stride, groups, "same" if self.same_padding else size // 2)

    def bn(self, channels: int) -> nn.BatchNorm2d:
        """Return a batch normalisation."""
        return nn.BatchNorm2d(channels, eps=self.bn_eps)

    def downsample(self, c: int, k: int, stride: int, rng: Rng) -> nn.Sequential | None:
        """Return the projection that a shortcut needs where the shape changes."""
        if stride == 1 and c == k:
            return None
        if not self.average_down:
            return Projection(self.conv(c, k, 1, rng, stride), self.bn(k))
        # Of an odd size the last row and column are averaged over what there is of them.
        pool = nn.AvgPool2d(2, 2, ((0, 1), (0, 1)), count_include_pad=False)
        return Projection(
            nn.Identity() if stride == 1 else pool, self.conv(c, k, 1, rng), self.bn(k)
        )


def conv(
    c: int,
    k: int,
    size: int,
    rng: Rng,
    stride: int = 1,
    groups: int = 1,
    padding: nn.AnyPadding | None = None,
) -> nn.Conv2d:
    """Return a convolution without bias; by default its padding keeps the map's size at stride 1."""
    around = size // 2 if padding is None else padding
    return nn.Conv2d(c, k, size, stride=stride, padding=around, groups=groups, bias=False, rng=rng)


def _normalised(conv: nn.Module, bn: nn.Module, x: Tensor, relu: bool = False) -> Tensor:
    """Return [relu](bn(conv(x))) for two layers that follow each other in a list."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(bn, nn.BatchNorm2d)
    return bn.after(conv, x, relu=relu)


class Projection(nn.Sequential):
    """A shortcut's 1x1 convolution and its normalisation, perhaps with a pooling before them."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H/stride, W/stride, k)."""
        *before, conv, bn = self
        for layer in before:
            x = layer(x)
        return _normalised(conv, bn, x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, c: int, width: int, stride: int, style: Style, rng: Rng) -> None:
        if style.groups != 1 or style.width_per_group != 64 or style.stride_in_1x1:
            raise ValueError(
                "basic blocks come with groups=1, width_per_group=64 and no 1x1 convolution to stride in"
            )
        self.conv1 = style.conv(c, width, 3, rng, stride)
        self.bn1 = style.bn(width)
        self.conv2 = style.conv(width, width, 3, rng)
        self.bn2 = style.bn(width)
        self.downsample = style.downsample(c, width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H/stride, W/stride, width)."""
        shortcut = self.downsample(x) if self.downsample else x
        y = self.bn1.after(self.conv1, x, relu=True)
        return self.bn2.after(self.conv2, y, residual=shortcut)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a shortcut."""

    expansion = 4

    def __init__(self, c: int, width: int, stride: int, style: Style, rng: Rng) -> None:
        inner = width * style.width_per_group // 64 * style.groups
        first, second = (stride, 1) if style.stride_in_1x1 else (1, stride)
        self.conv1 = style.conv(c, inner, 1, rng, first)
        self.bn1 = style.bn(inner)
        self.conv2 = style.conv(inner, inner, 3, rng, second, style.groups)
        self.bn2 = style.bn(inner)
        self.conv3 = style.conv(inner, width * 4, 1, rng)
        self.bn3 = style.bn(width * 4)
        self.downsample = style.downsample(c, width * 4, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H/stride, W/stride, 4 * width)."""
        shortcut = self.downsample(x) if self.downsample else x
        y = self.bn1.after(self.conv1, x, relu=True)
        y = self.bn2.after(self.conv2, y, relu=True)
        return self.bn3.after(self.conv3, y, residual=shortcut)


class DeepStem(nn.Sequential):
    """Three 3x3 convolutions in place of one of 7x7; what follows the last is the network's `bn1`."""

    def __init__(self, width: int, style: Style, rng: Rng) -> None:
        super().__init__(
            style.conv(3, width, 3, rng, stride=2),
            style.bn(width),
            nn.ReLU(),
            style.conv(width, width, 3, rng),
            style.bn(width),
            nn.ReLU(),
            style.conv(width, 64, 3, rng),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, H/2, W/2, 64)."""
        conv1, bn1, _, conv2, bn2, _, conv3 = self
        x = _normalised(conv1, bn1, x, relu=True)
        x = _normalised(conv2, bn2, x, relu=True)
        return conv3(x)


class ResNet(Classifier):
    """Stem, four stages of residual blocks, global average, one dense layer."""

    def __init__(
        self,
        arch: str,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        seed: int | None,
        style: Style,
        options: dict[str, Any],
    ) -> None:
        # timm's networks with a deep stem were trained on pictures resized so.
        interpolation = "bicubic" if style.deep_stem else "bilinear"
        super().__init__(arch, options, preprocessing(256, 224, interpolation))
        self.style = style
        rng = init.generator(seed)
        self.conv1: nn.Module = (
            DeepStem(style.deep_stem, style, rng)
            if style.deep_stem
            else style.conv(3, 64, 7, rng, stride=2)
        )
        self.bn1 = style.bn(64)
        c = 64
        for stage, depth in enumerate(depths):
            width = 64 << stage
            blocks: list[nn.Module] = []
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(c, width, stride, style, rng))
                c = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(c, num_classes, rng=rng)

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def stages(self) -> list[Stage]:
        """Return the steps from (N, H, W, 3) to (N, 512 * expansion)."""
        return [
            Stage("bn1", self._stem, ("conv1", "bn1")),
            *self.stages_of("layer1", "layer2", "layer3", "layer4"),  # H/4, H/8, H/16, H/32
            Stage("pool", ops.global_avgpool2d),
        ]

    def _stem(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, H/4, W/4, 64)."""
        x = self.conv1(x)  # H/2
        return self.bn1(x, relu=True, maxpool=(3, 2, self._pool_padding(x)))

    def _pool_padding(self, x: Tensor) -> Padding:
        if not self.style.same_padding:
            return 1
        return same_padding(x.shape[1], x.shape[2], (3, 3), (2, 2))


# The style that each registered name stands for.
USUAL: dict[str, Style] = {}


def _network(
    arch: str,
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    **usual: Any,
) -> Callable[..., ResNet]:
    USUAL[arch] = Style(**usual)

    def make(num_classes: int = 1000, *, seed: int | None = 0, **options: Any) -> ResNet:
        style = Style(**usual | options)
        options = changed(asdict(style), asdict(USUAL[arch]))
        return ResNet(arch, block, depths, num_classes, seed, style, options)

    make.__name__ = make.__qualname__ = arch
    make.__doc__ = (
        f"Return a {arch}, He-initialised from `seed` (None: zeros, for weights to be loaded). "
        "options: as `Style`."
    )
    return make


resnet18 = _network("resnet18", BasicBlock, (2, 2, 2, 2))
resnet34 = _network("resnet34", BasicBlock, (3, 4, 6, 3))
resnet26 = _network("resnet26", Bottleneck, (2, 2, 2, 2))
resnet50 = _network("resnet50", Bottleneck, (3, 4, 6, 3))
resnet101 = _network("resnet101", Bottleneck, (3, 4, 23, 3))
resnet152 = _network("resnet152", Bottleneck, (3, 8, 36, 3))
wide_resnet50_2 = _network("wide_resnet50_2", Bottleneck, (3, 4, 6, 3), width_per_group=128)
wide_resnet101_2 = _network("wide_resnet101_2", Bottleneck, (3, 4, 23, 3), width_per_group=128)

RESNEXT_32X4D: dict[str, Any] = {"groups": 32, "width_per_group": 4}
resnext50_32x4d = _network("resnext50_32x4d", Bottleneck, (3, 4, 6, 3), **RESNEXT_32X4D)
resnext101_32x4d = _network("resnext101_32x4d", Bottleneck, (3, 4, 23, 3), **RESNEXT_32X4D)
resnext101_32x8d = _network(
    "resnext101_32x8d", Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8
)
resnext101_64x4d = _network(
    "resnext101_64x4d", Bottleneck, (3, 4, 23, 3), groups=64, width_per_group=4
)

D: dict[str, Any] = {"deep_stem": 32, "average_down": True}
resnet18d = _network("resnet18d", BasicBlock, (2, 2, 2, 2), **D)
resnet34d = _network("resnet34d", BasicBlock, (3, 4, 6, 3), **D)
resnet26d = _network("resnet26d", Bottleneck, (2, 2, 2, 2), **D)
resnet50d = _network("resnet50d", Bottleneck, (3, 4, 6, 3), **D)
resnet101d = _network("resnet101d", Bottleneck, (3, 4, 23, 3), **D)
resnet152d = _network("resnet152d", Bottleneck, (3, 8, 36, 3), **D)
resnet200d = _network("resnet200d", Bottleneck, (3, 24, 36, 3), **D)
resnext50d_32x4d = _network("resnext50d_32x4d", Bottleneck, (3, 4, 6, 3), **D, **RESNEXT_32X4D)
