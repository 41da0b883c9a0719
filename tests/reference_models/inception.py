"""Inception v3 as in torchvision."""

import torch
from torch import nn
from torch.nn import functional as F


class Conv(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, c, k, size, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(c, k, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(k, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side: name -> layers; a name that begins with "_" has no weights."""

    def __init__(self, layers, branches):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.branches = branches

    def forward(self, x):
        return torch.cat([self.run(x, branch) for branch in self.branches], 1)

    def run(self, x, branch):
        for step in branch:
            if callable(step):
                x = step(x)
            elif isinstance(step, tuple):  # two at once
                x = torch.cat([getattr(self, name)(x) for name in step], 1)
            else:
                x = getattr(self, step)(x)
        return x


ROW, COLUMN = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))


def maximum(x):
    return F.max_pool2d(x, 3, 2)


def block_a(c, pool, mean):
    layers = {
        "branch1x1": Conv(c, 64, 1),
        "branch5x5_1": Conv(c, 48, 1),
        "branch5x5_2": Conv(48, 64, 5, 1, 2),
        "branch3x3dbl_1": Conv(c, 64, 1),
        "branch3x3dbl_2": Conv(64, 96, 3, 1, 1),
        "branch3x3dbl_3": Conv(96, 96, 3, 1, 1),
        "branch_pool": Conv(c, pool, 1),
    }
    branches = [
        ["branch1x1"],
        ["branch5x5_1", "branch5x5_2"],
        [f"branch3x3dbl_{i}" for i in (1, 2, 3)],
        [mean, "branch_pool"],
    ]
    return Mixed(layers, branches)


def block_b(c):
    layers = {
        "branch3x3": Conv(c, 384, 3, 2),
        "branch3x3dbl_1": Conv(c, 64, 1),
        "branch3x3dbl_2": Conv(64, 96, 3, 1, 1),
        "branch3x3dbl_3": Conv(96, 96, 3, 2),
    }
    return Mixed(layers, [["branch3x3"], [f"branch3x3dbl_{i}" for i in (1, 2, 3)], [maximum]])


def block_c(c, c7, mean):
    layers = {
        "branch1x1": Conv(c, 192, 1),
        "branch7x7_1": Conv(c, c7, 1),
        "branch7x7_2": Conv(c7, c7, *ROW),
        "branch7x7_3": Conv(c7, 192, *COLUMN),
        "branch7x7dbl_1": Conv(c, c7, 1),
        "branch7x7dbl_2": Conv(c7, c7, *COLUMN),
        "branch7x7dbl_3": Conv(c7, c7, *ROW),
        "branch7x7dbl_4": Conv(c7, c7, *COLUMN),
        "branch7x7dbl_5": Conv(c7, 192, *ROW),
        "branch_pool": Conv(c, 192, 1),
    }
    branches = [
        ["branch1x1"],
        [f"branch7x7_{i}" for i in (1, 2, 3)],
        [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)],
        [mean, "branch_pool"],
    ]
    return Mixed(layers, branches)


def block_d(c):
    layers = {
        "branch3x3_1": Conv(c, 192, 1),
        "branch3x3_2": Conv(192, 320, 3, 2),
        "branch7x7x3_1": Conv(c, 192, 1),
        "branch7x7x3_2": Conv(192, 192, *ROW),
        "branch7x7x3_3": Conv(192, 192, *COLUMN),
        "branch7x7x3_4": Conv(192, 192, 3, 2),
    }
    branches = [
        ["branch3x3_1", "branch3x3_2"],
        [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)],
        [maximum],
    ]
    return Mixed(layers, branches)


def block_e(c, mean):
    row, column = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
    layers = {
        "branch1x1": Conv(c, 320, 1),
        "branch3x3_1": Conv(c, 384, 1),
        "branch3x3_2a": Conv(384, 384, *row),
        "branch3x3_2b": Conv(384, 384, *column),
        "branch3x3dbl_1": Conv(c, 448, 1),
        "branch3x3dbl_2": Conv(448, 384, 3, 1, 1),
        "branch3x3dbl_3a": Conv(384, 384, *row),
        "branch3x3dbl_3b": Conv(384, 384, *column),
        "branch_pool": Conv(c, 192, 1),
    }
    branches = [
        ["branch1x1"],
        ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
        ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
        [mean, "branch_pool"],
    ]
    return Mixed(layers, branches)


class Auxiliary(nn.Module):
    """The second head."""

    def __init__(self, c, num_classes):
        super().__init__()
        self.conv0 = Conv(c, 128, 1)
        self.conv1 = Conv(128, 768, 5)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x):
        return self.fc(self.conv1(self.conv0(F.avg_pool2d(x, 5, 3))).mean((2, 3)))


class InceptionV3(nn.Module):
    """The network; gives the second head's logits as well where it has one and is in training mode."""

    def __init__(self, num_classes, auxiliary, count_include_pad, dropout):
        super().__init__()

        def mean(x):
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=count_include_pad)

        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = block_a(192, 32, mean)
        self.Mixed_5c = block_a(256, 64, mean)
        self.Mixed_5d = block_a(288, 64, mean)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b = block_c(768, 128, mean)
        self.Mixed_6c = block_c(768, 160, mean)
        self.Mixed_6d = block_c(768, 160, mean)
        self.Mixed_6e = block_c(768, 192, mean)
        if auxiliary:
            self.AuxLogits = Auxiliary(768, num_classes)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b = block_e(1280, mean)
        self.Mixed_7c = block_e(2048, mean)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        second = self.AuxLogits(x) if self.training and hasattr(self, "AuxLogits") else None
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        logits = self.fc(self.dropout(x.mean((2, 3))))
        return logits if second is None else (logits, second)


def make(arch, num_classes=1000, auxiliary=False, count_include_pad=True, dropout=0.5):
    """Make the network."""
    return InceptionV3(num_classes, auxiliary, count_include_pad, dropout)
