"""The ResNet-8 of MLPerf Tiny, with the names of minitl; pictures of 32x32 alone."""

from torch import nn
from torch.nn import functional as F

from tests.reference.torch_resnet import SameConv2d


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, c, k, stride):
        super().__init__()
        self.conv1 = SameConv2d(c, k, 3, stride)
        self.bn1 = nn.BatchNorm2d(k, 1e-3)
        self.conv2 = SameConv2d(k, k, 3)
        self.bn2 = nn.BatchNorm2d(k, 1e-3)
        if stride == 2:
            self.downsample = nn.Conv2d(c, k, 1, 2)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet8(nn.Module):
    """The network."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = SameConv2d(3, 16, 3)
        self.bn1 = nn.BatchNorm2d(16, 1e-3)
        self.layer1 = Block(16, 16, 1)
        self.layer2 = Block(16, 32, 2)
        self.layer3 = Block(32, 64, 2)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


def make(arch, num_classes=10):
    """Make the network."""
    return ResNet8(num_classes)
