"""VGG as in torchvision, and as in timm, whose first two dense layers are convolutions."""

import torch
from torch import nn
from torch.nn import functional as F

STAGES = {"vgg11": "11222", "vgg13": "22222", "vgg16": "22333", "vgg19": "22444"}


def convolutions(arch, bn_eps=1e-5):
    """Make the convolutional part, the same in both."""
    layers, c = [], 3
    for depth, width in zip(
        STAGES[arch.removesuffix("_bn")], (64, 128, 256, 512, 512), strict=True
    ):
        for _ in range(int(depth)):
            layers.append(nn.Conv2d(c, width, 3, padding=1))
            if arch.endswith("_bn"):
                layers.append(nn.BatchNorm2d(width, bn_eps))
            layers.append(nn.ReLU())
            c = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


class TorchVGG(nn.Module):
    """torchvision's."""

    def __init__(self, arch, num_classes, hidden, dropout):
        super().__init__()
        self.features = convolutions(arch)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 49, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class TimmVGG(nn.Module):
    """timm's."""

    def __init__(self, arch, num_classes, hidden):
        super().__init__()
        self.features = convolutions(arch)
        self.pre_logits = nn.Module()
        self.pre_logits.fc1 = nn.Conv2d(512, hidden, 7)
        self.pre_logits.fc2 = nn.Conv2d(hidden, hidden, 1)
        self.head = nn.Module()
        self.head.fc = nn.Linear(hidden, num_classes)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), 7)
        x = F.relu(self.pre_logits.fc2(F.relu(self.pre_logits.fc1(x))))
        return self.head.fc(x.mean((2, 3)))


def make(arch, num_classes=1000, hidden=4096, dropout=0.5, timm=False):
    """Make a VGG."""
    if timm:
        return TimmVGG(arch, num_classes, hidden)
    return TorchVGG(arch, num_classes, hidden, dropout)
