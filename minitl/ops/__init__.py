"""Differentiable operations on tensors: one file each, forward and backward side by side."""

from minitl.ops.conv2d import conv2d

__all__ = ["conv2d"]
