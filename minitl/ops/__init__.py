"""Differentiable operations on tensors: one file each, forward and backward side by side."""

from minitl.ops.add import add
from minitl.ops.batchnorm import batchnorm, batchnorm_add_relu, batchnorm_relu
from minitl.ops.concat import concat
from minitl.ops.conv2d import conv2d
from minitl.ops.dropout import dropout
from minitl.ops.flatten import flatten
from minitl.ops.linear import linear
from minitl.ops.relu import relu

__all__ = [
    "add",
    "batchnorm",
    "batchnorm_add_relu",
    "batchnorm_relu",
    "concat",
    "conv2d",
    "dropout",
    "flatten",
    "linear",
    "relu",
]
