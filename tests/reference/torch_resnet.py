"""ResNets in PyTorch, with torchvision's names and structure: the reference for whole networks."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Basic (depth 2) or bottleneck (depth 3) block."""

    def __init__(self, c, width, stride, bottleneck, groups, base, shortcut="projection"):
        super().__init__()
        inner = width * base // 64 * groups
        if bottleneck:
            spec = [
                (c, inner, 1, 1, 1),
                (inner, inner, 3, stride, groups),
                (inner, width * 4, 1, 1, 1),
            ]
        else:
            spec = [(c, width, 3, stride, 1), (width, width, 3, 1, 1)]
        self.depth = len(spec)
        for i, (a, b, size, s, g) in enumerate(spec, 1):
            conv = nn.Conv2d(a, b, size, s, size // 2, groups=g, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        out = spec[-1][1]
        self.out, self.stride, self.kind = out, stride, shortcut
        if (stride != 1 or c != out) and shortcut != "A":
            name = "downsample" if shortcut == "projection" else "shortcut"
            conv = nn.Conv2d(c, out, 1, stride, bias=False)
            self.add_module(name, nn.Sequential(conv, nn.BatchNorm2d(out)))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.depth:
                y = F.relu(y)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif hasattr(self, "shortcut"):
            x = self.shortcut(x)
        elif self.stride != 1 or x.shape[1] != self.out:
            more = (self.out - x.shape[1]) // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
        return F.relu(x + y)


class TorchResNet(nn.Module):
    """ImageNet ResNet, ResNeXt or Wide ResNet."""

    def __init__(self, bottleneck, depths, groups=1, base=64, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        c = 64
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(Block(c, 64 << stage, stride, bottleneck, groups, base))
                c = blocks[-1].out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(c, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class TorchCifarResNet(nn.Module):
    """ResNet for 32x32 pictures with shortcut "A" or "B"."""

    def __init__(self, n, shortcut, width=16, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        c = width
        for stage in range(3):
            blocks = []
            for i in range(n):
                stride = 2 if stage and not i else 1
                blocks.append(Block(c, width << stage, stride, False, 1, 64, shortcut))
                c = blocks[-1].out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(c, num_classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


NETWORKS = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
    "wide_resnet50_2": (True, (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": (True, (3, 4, 23, 3), 1, 128),
    "resnext50_32x4d": (True, (3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": (True, (3, 4, 23, 3), 32, 8),
}


def make(arch, **options):
    """Make the reference of a registered architecture."""
    if arch.startswith("cifar_resnet"):
        return TorchCifarResNet((int(arch.removeprefix("cifar_resnet")) - 2) // 6, **options)
    return TorchResNet(*NETWORKS[arch], **options)


def randomise(network, seed=0):
    """Give every parameter and statistic of a network random values that keep activations tame."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.ndim > 1:
            new = noise * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            new = 1 + 0.2 * noise.abs()
        else:
            new = 0.1 * noise
        value.copy_(new)
    return network
