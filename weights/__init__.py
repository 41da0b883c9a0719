"""Pretrained weights that ship with minitl; README.md says what they are and what they are worth."""

from pathlib import Path

STROKES = Path(__file__).parent / "strokes_resnet20.h5"  # a CIFAR ResNet-20, made by pretrain.py
