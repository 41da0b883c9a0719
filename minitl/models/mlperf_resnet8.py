"""The ResNet-8 of MLPerf Tiny, for 32x32 pictures.

Banbury et al. 2021, "MLPerf Tiny Benchmark": the reference of its image classification. Convolutions
have biases, strides come with TensorFlow's padding "same", shortcuts are a 1x1 convolution without
normalisation. Names are this project's, after torchvision's ResNet.
"""

from typing import Any

from minitl import init, nn, ops
from minitl.init import Rng
from minitl.models.classifier import Classifier, Stage
from minitl.tensor import Tensor

BN_EPS = 1e-3


def conv(c: int, k: int, size: int, rng: Rng, stride: int = 1) -> nn.Conv2d:
    """Return a convolution with bias and padding "same"."""
    return nn.Conv2d(c, k, size, stride=stride, padding="same", rng=rng)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, c: int, k: int, stride: int, rng: Rng) -> None:
        self.conv1 = conv(c, k, 3, rng, stride)
        self.bn1 = nn.BatchNorm2d(k, eps=BN_EPS)
        self.conv2 = conv(k, k, 3, rng)
        self.bn2 = nn.BatchNorm2d(k, eps=BN_EPS)
        self.downsample = conv(c, k, 1, rng, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, c) -> (N, H/stride, W/stride, k)."""
        shortcut = self.downsample(x) if self.downsample else x
        y = self.bn1.after(self.conv1, x, relu=True)
        return self.bn2.after(self.conv2, y, residual=shortcut)


class MLPerfResNet8(Classifier):
    """Stem, three blocks, global average, one dense layer."""

    def __init__(self, num_classes: int, seed: int | None) -> None:
        # The reference takes bytes as they are.
        raw: dict[str, Any] = {"scale": 1.0, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
        usual = {"resize": 32, "crop": 32, "interpolation": "bilinear", "channel_order": "RGB"}
        super().__init__("mlperf_resnet8", {}, usual | raw)
        rng = init.generator(seed)
        self.conv1 = conv(3, 16, 3, rng)
        self.bn1 = nn.BatchNorm2d(16, eps=BN_EPS)
        self.layer1 = Block(16, 16, 1, rng)
        self.layer2 = Block(16, 32, 2, rng)
        self.layer3 = Block(32, 64, 2, rng)
        self.fc = nn.Linear(64, num_classes, rng=rng)

    def stages(self) -> list[Stage]:
        """Return the steps from (N, H, W, 3) to (N, 64)."""
        return [
            Stage("bn1", self._stem, ("conv1", "bn1")),
            *self.stages_of("layer1", "layer2", "layer3"),  # H, H/2, H/4
            Stage("pool", ops.global_avgpool2d),
        ]

    def _stem(self, x: Tensor) -> Tensor:
        return self.bn1.after(self.conv1, x, relu=True)


def mlperf_resnet8(num_classes: int = 10, *, seed: int | None = 0) -> MLPerfResNet8:
    """Return a ResNet-8, He-initialised from `seed` (None: zeros, for weights to be loaded)."""
    return MLPerfResNet8(num_classes, seed)
