"""Pre-activation ResNets: timm's with timm's names, and Keras's structure with minitl's names."""

from torch import nn
from torch.nn import functional as F

DEPTHS = {"resnetv2_50": (3, 4, 6, 3), "resnetv2_101": (3, 4, 23, 3), "resnetv2_152": (3, 8, 36, 3)}


class TimmBlock(nn.Module):
    """Pre-activated bottleneck."""

    def __init__(self, c, width, stride, project):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c)
        self.conv1 = nn.Conv2d(c, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        if project:
            self.downsample = nn.Module()
            self.downsample.conv = nn.Conv2d(c, width * 4, 1, stride, bias=False)

    def forward(self, x):
        y = F.relu(self.norm1(x))
        shortcut = self.downsample.conv(y) if hasattr(self, "downsample") else x
        y = self.conv2(F.relu(self.norm2(self.conv1(y))))
        return shortcut + self.conv3(F.relu(self.norm3(y)))


class TimmResNetV2(nn.Module):
    """timm's, whose head is a 1x1 convolution."""

    def __init__(self, depths, num_classes):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        stages, c = [], 64
        for i, depth in enumerate(depths):
            stage = nn.Module()
            width = 64 << i
            blocks = []
            for j in range(depth):
                blocks.append(TimmBlock(c, width, 2 if i and not j else 1, j == 0))
                c = width * 4
            stage.blocks = nn.Sequential(*blocks)
            stages.append(stage)
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm2d(c)
        self.head = nn.Module()
        self.head.fc = nn.Conv2d(c, num_classes, 1)

    def forward(self, x):
        x = F.max_pool2d(self.stem.conv(x), 3, 2, 1)
        for stage in self.stages:
            x = stage.blocks(x)
        x = F.relu(self.norm(x)).mean((2, 3), keepdim=True)
        return self.head.fc(x).flatten(1)


class KerasBlock(nn.Module):
    """As in keras.applications: the last block of a stack strides, and takes every second pixel."""

    def __init__(self, c, width, stride, project, eps):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c, eps)
        self.conv1 = nn.Conv2d(c, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width, eps)
        self.conv3 = nn.Conv2d(width, width * 4, 1)
        self.stride = stride
        if project:
            self.downsample = nn.Conv2d(c, width * 4, 1, stride)

    def forward(self, x):
        y = F.relu(self.bn1(x))
        if hasattr(self, "downsample"):
            x = self.downsample(y)
        else:
            x = x[:, :, :: self.stride, :: self.stride]
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return x + self.conv3(F.relu(self.bn3(y)))


class KerasResNetV2(nn.Module):
    """Structure of keras.applications.resnet_v2."""

    def __init__(self, depths, num_classes, eps):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        c = 64
        for i, depth in enumerate(depths):
            width, blocks = 64 << i, []
            for j in range(depth):
                stride = 2 if j == depth - 1 and i < 3 else 1
                blocks.append(KerasBlock(c, width, stride, j == 0, eps))
                c = width * 4
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(c, eps)
        self.fc = nn.Linear(c, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.pad(self.conv1(x), (1, 1, 1, 1)), 3, 2)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


def make(arch, num_classes=1000, keras=False, bn_eps=1.001e-5):
    """Make timm's network, or Keras's."""
    if keras:
        return KerasResNetV2(DEPTHS[arch], num_classes, bn_eps)
    return TimmResNetV2(DEPTHS[arch], num_classes)
