"""Differentiable operations on tensors: one file each, forward and backward side by side."""

from minitl.ops.add import add
from minitl.ops.avgpool2d import avgpool2d
from minitl.ops.batchnorm import batchnorm, batchnorm_add_relu, batchnorm_relu
from minitl.ops.concat import concat
from minitl.ops.conv2d import conv2d
from minitl.ops.dropout import dropout
from minitl.ops.flatten import flatten
from minitl.ops.global_avgpool2d import global_avgpool2d
from minitl.ops.linear import linear
from minitl.ops.maxpool2d import maxpool2d
from minitl.ops.relu import relu

__all__ = [
    "add",
    "avgpool2d",
    "batchnorm",
    "batchnorm_add_relu",
    "batchnorm_relu",
    "concat",
    "conv2d",
    "dropout",
    "flatten",
    "global_avgpool2d",
    "linear",
    "maxpool2d",
    "relu",
]
