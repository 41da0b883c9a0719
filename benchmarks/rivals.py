"""ResNet-18 and ResNet-50 in PyTorch, with torchvision's names, so that our weights load as they are."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Block(nn.Module):
    """Convolutions, each with batch normalisation, around a shortcut; ReLUs in place as in torchvision."""

    def __init__(self, c: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        sizes = [(c, width, 1), (width, width, 3), (width, out, 1)]
        if not bottleneck:
            sizes = [(c, width, 3), (width, out, 3)]
        self.depth = len(sizes)
        strided = 1 if bottleneck else 0  # the first 3x3
        for i, (a, b, size) in enumerate(sizes):
            conv = nn.Conv2d(a, b, size, stride if i == strided else 1, size // 2, bias=False)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(b))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or c != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c, H, W) -> (N, out, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.depth + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            if i < self.depth:
                x = self.relu(x)
        x += shortcut
        result: torch.Tensor = self.relu(x)
        return result


class ResNet(nn.Module):
    """The network of He et al. 2015, striding in the 3x3 of a bottleneck."""

    def __init__(self, bottleneck: bool, depths: tuple[int, ...], classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        c = 64
        for stage, depth in enumerate(depths):
            width, blocks = 64 << stage, []
            for number in range(depth):
                blocks.append(Block(c, width, 2 if stage and not number else 1, bottleneck))
                c = 4 * width if bottleneck else width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


NETWORKS = {"resnet18": (False, (2, 2, 2, 2)), "resnet50": (True, (3, 4, 6, 3))}


def make(name: str) -> ResNet:
    """Return a network by name; raises KeyError for one that has no rival here."""
    return ResNet(*NETWORKS[name])


def fold(network: ResNet) -> ResNet:
    """Merge each batch normalisation into the convolution before it, for inference."""

    def merge(parent: nn.Module, conv: str, norm: str) -> None:
        merged = fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm))
        setattr(parent, conv, merged)
        setattr(parent, norm, nn.Identity())

    network.eval()
    merge(network, "conv1", "bn1")
    for block in [m for m in network.modules() if isinstance(m, Block)]:
        for i in range(1, block.depth + 1):
            merge(block, f"conv{i}", f"bn{i}")
        if block.downsample is not None:
            merge(block.downsample, "0", "1")
    return network
