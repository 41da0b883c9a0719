"""Pretrained weights: those that ship with minitl, and where others come from; README.md describes both."""

from pathlib import Path

_HERE = Path(__file__).parent
STROKES = _HERE / "strokes_resnet20.h5"  # a CIFAR ResNet-20, made by pretrain.py
CATALOGUE = _HERE / "catalogue.toml"  # the official sources of weights for ImageNet
IMAGENET_CLASSES = _HERE / "imagenet_classes.txt"  # name of each output of these, in order
