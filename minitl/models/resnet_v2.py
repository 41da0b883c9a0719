"""ResNet with pre-activation ("v2"): normalisation and ReLU come before each convolution.

He et al. 2016, "Identity Mappings in Deep Residual Networks". Two implementations are widespread, and
options tell them apart:

                   stride_last   zero_pool   conv_bias   bn_eps
    timm           no            no          no          1e-5      a stage's first block strides
    Keras          yes           yes         yes         1.001e-5  a stage's last block strides, and pools
                                                                   its shortcut; the fourth does not stride

Names are this project's, after torchvision's ResNet.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minitl import init, nn, ops
from minitl.init import Rng
from minitl.models.classifier import Classifier, Stage, preprocessing
from minitl.models.options import changed, fraction, switch
from minitl.tensor import Tensor

USUAL = {"stride_last": False, "zero_pool": False, "conv_bias": False, "bn_eps": 1e-5}


class Block(nn.Module):
    """Pre-activated 1x1 down, 3x3, 1x1 up, and a shortcut.

    project: whether the shortcut is a convolution, of the activated input; otherwise it is the input,
    of which a stride takes every second pixel.
    """

    def __init__(
        self, c: int, width: int, stride: int, project: bool, bias: bool, eps: float, rng: Rng
    ) -> None:
        k = width * 4
        self.bn1 = nn.BatchNorm2d(c, eps=eps)
        self.conv1 = nn.Conv2d(c, width, 1, bias=False, rng=rng)
        self.bn2 = nn.BatchNorm2d(width, eps=eps)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False, rng=rng)
        self.bn3 = nn.BatchNorm2d(width, eps=eps)
        self.conv3 = nn.Conv2d(width, k, 1, bias=bias, rng=rng)
        self.downsample = nn.Conv2d(c, k, 1, stride=stride, bias=bias, rng=rng) if project else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H/stride, W/stride, 4 * width)."""
        y = self.bn1(x, relu=True)
        if self.downsample is not None:
            x = self.downsample(y)
        elif self.stride > 1:
            x = ops.maxpool2d(x, 1, self.stride)  # of windows of one pixel
        y = self.bn2.after(self.conv1, y, relu=True)
        y = self.bn3.after(self.conv2, y, relu=True)
        return ops.add(x, self.conv3(y))


class ResNetV2(Classifier):
    """Stem without normalisation, four stages of blocks, a last normalisation, average, dense layer.

    stride_last: a stage strides in its last block and not in its first; the fourth stage not at all.
    zero_pool: the stem's pooling sees zeros around the map, which can be the largest, for no ReLU
        comes before it. conv_bias: the stem, the last 1x1 convolutions and the shortcuts have biases.
    """

    def __init__(
        self,
        arch: str,
        depths: tuple[int, int, int, int],
        num_classes: int,
        seed: int | None,
        *,
        stride_last: bool,
        zero_pool: bool,
        conv_bias: bool,
        bn_eps: float,
    ) -> None:
        options = {
            "stride_last": switch(stride_last, "stride_last"),
            "zero_pool": switch(zero_pool, "zero_pool"),
            "conv_bias": switch(conv_bias, "conv_bias"),
            "bn_eps": fraction(bn_eps, "bn_eps"),
        }
        # Both implementations' weights were trained on pictures from -1 to 1.
        usual = preprocessing(256, 224, "bicubic") | {"mean": [0.5] * 3, "std": [0.5] * 3}
        super().__init__(arch, changed(options, USUAL), usual)
        # A 1x1 convolution of each channel by itself with 1, whose padding is a frame of zeros.
        self._frame = Tensor(np.ones((64, 1, 1, 1), np.float32)) if zero_pool else None
        rng = init.generator(seed)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=conv_bias, rng=rng)
        c = 64
        for stage, depth in enumerate(depths):
            width = 64 << stage
            striding = depth - 1 if stride_last else 0
            strides = 1 if stage == (3 if stride_last else 0) else 2
            blocks: list[nn.Module] = []
            for number in range(depth):
                stride = strides if number == striding else 1
                blocks.append(Block(c, width, stride, number == 0, conv_bias, bn_eps, rng))
                c = width * 4
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(c, eps=bn_eps)
        self.fc = nn.Linear(c, num_classes, rng=rng)

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def stages(self) -> list[Stage]:
        """Return the steps from (N, H, W, 3) to (N, 2048)."""
        return [
            Stage("conv1", self._stem, ("conv1",)),
            *self.stages_of("layer1", "layer2", "layer3", "layer4"),  # to H/32
            Stage("bn", self._end, ("bn",)),
        ]

    def _stem(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, H/4, W/4, 64)."""
        x = self.conv1(x)  # H/2
        if self._frame is not None:
            return ops.maxpool2d(ops.conv2d(x, self._frame, padding=1, groups=64), 3, 2)
        return ops.maxpool2d(x, 3, 2, 1)

    def _end(self, x: Tensor) -> Tensor:
        return ops.global_avgpool2d(self.bn(x, relu=True))


def _network(arch: str, depths: tuple[int, int, int, int]) -> Callable[..., ResNetV2]:
    def make(num_classes: int = 1000, *, seed: int | None = 0, **options: Any) -> ResNetV2:
        return ResNetV2(arch, depths, num_classes, seed, **USUAL | options)

    make.__name__ = make.__qualname__ = arch
    make.__doc__ = (
        f"Return a {arch}, He-initialised from `seed` (None: zeros, for weights to be loaded). "
        "options: stride_last, zero_pool, conv_bias, bn_eps, as `ResNetV2`."
    )
    return make


resnetv2_50 = _network("resnetv2_50", (3, 4, 6, 3))
resnetv2_101 = _network("resnetv2_101", (3, 4, 23, 3))
resnetv2_152 = _network("resnetv2_152", (3, 8, 36, 3))
