"""ResNets in PyTorch, with torchvision's names and structure: the reference for whole networks."""

import torch
from torch import nn
from torch.nn import functional as F


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding "same"."""

    def forward(self, x):
        needed = []
        for size, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            needed.append(max((-(-size // s) - 1) * s + k - size, 0))
        (rows, columns) = needed
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class Block(nn.Module):
    """Basic (depth 2) or bottleneck (depth 3) block."""

    def __init__(
        self,
        c,
        width,
        stride,
        bottleneck,
        groups,
        base,
        shortcut="projection",
        *,
        stride_in_1x1=False,
        average_down=False,
        same_padding=False,
        bn_eps=1e-5,
    ):
        super().__init__()
        kind = SameConv2d if same_padding else nn.Conv2d
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        inner = width * base // 64 * groups
        if bottleneck:
            spec = [
                (c, inner, 1, first, 1),
                (inner, inner, 3, second, groups),
                (inner, width * 4, 1, 1, 1),
            ]
        else:
            spec = [(c, width, 3, stride, 1), (width, width, 3, 1, 1)]
        self.depth = len(spec)
        for i, (a, b, size, s, g) in enumerate(spec, 1):
            conv = kind(a, b, size, s, size // 2, groups=g, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(b, bn_eps))
        out = spec[-1][1]
        self.out, self.stride, self.kind = out, stride, shortcut
        if (stride != 1 or c != out) and shortcut != "A":
            name = "downsample" if shortcut == "projection" else "shortcut"
            layers = [kind(c, out, 1, stride, bias=False), nn.BatchNorm2d(out, bn_eps)]
            if average_down:
                pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
                layers[0] = nn.Conv2d(c, out, 1, bias=False)
                layers.insert(0, pool if stride > 1 else nn.Identity())
            self.add_module(name, nn.Sequential(*layers))

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
    """ImageNet ResNet, ResNeXt or Wide ResNet, torchvision's or (with a deep stem) timm's."""

    def __init__(
        self, bottleneck, depths, groups=1, base=64, num_classes=1000, deep_stem=0, **style
    ):
        super().__init__()
        eps, w = style.get("bn_eps", 1e-5), deep_stem
        self.same = style.get("same_padding", False)
        kind = SameConv2d if self.same else nn.Conv2d
        if deep_stem:
            self.conv1 = nn.Sequential(
                kind(3, w, 3, 2, 1, bias=False),
                nn.BatchNorm2d(w, eps),
                nn.ReLU(),
                kind(w, w, 3, 1, 1, bias=False),
                nn.BatchNorm2d(w, eps),
                nn.ReLU(),
                kind(w, 64, 3, 1, 1, bias=False),
            )
        else:
            self.conv1 = kind(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps)
        c = 64
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(Block(c, 64 << stage, stride, bottleneck, groups, base, **style))
                c = blocks[-1].out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(c, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.same:  # what is padded is at most what ReLU leaves; sizes in the tests are even
            x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)
        else:
            x = F.max_pool2d(x, 3, 2, 1)
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
    "resnet26": (True, (2, 2, 2, 2)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
    "wide_resnet50_2": (True, (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": (True, (3, 4, 23, 3), 1, 128),
    "resnext50_32x4d": (True, (3, 4, 6, 3), 32, 4),
    "resnext101_32x4d": (True, (3, 4, 23, 3), 32, 4),
    "resnext101_32x8d": (True, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": (True, (3, 4, 23, 3), 64, 4),
    "resnet200d": (True, (3, 24, 36, 3)),
}
# timm's variants with a deep stem and averaging shortcuts.
NETWORKS |= {
    f"{arch}d": NETWORKS[arch]
    for arch in ("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152")
} | {"resnext50d_32x4d": NETWORKS["resnext50_32x4d"]}


def make(arch, **options):
    """Make the reference of a registered architecture."""
    if arch.startswith("cifar_resnet"):
        return TorchCifarResNet((int(arch.removeprefix("cifar_resnet")) - 2) // 6, **options)
    if arch.split("_")[0].endswith("d"):
        options = {"deep_stem": 32, "average_down": True} | options
    return TorchResNet(*NETWORKS[arch], **options)


def randomise(network, seed=0):
    """Give every parameter and statistic of a network random values that keep activations tame."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            new = noise * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            new = 1 + 0.2 * noise.abs()
        else:
            new = 0.1 * noise
        value.copy_(new)
    return network
