"""Differentiable operations on tensors: one file each, forward and backward side by side."""

from minitl.ops.adaptive_avgpool2d import adaptive_avgpool2d
from minitl.ops.add import add
from minitl.ops.avgpool2d import avgpool2d
from minitl.ops.batchnorm import batchnorm, batchnorm_add_relu, batchnorm_relu
from minitl.ops.batchnorm_relu_maxpool import batchnorm_relu_maxpool
from minitl.ops.concat import concat
from minitl.ops.conv2d import conv2d
from minitl.ops.conv2d_batchnorm import conv2d_batchnorm
from minitl.ops.dropout import dropout
from minitl.ops.flatten import flatten
from minitl.ops.global_avgpool2d import global_avgpool2d
from minitl.ops.linear import linear
from minitl.ops.maxpool2d import maxpool2d
from minitl.ops.mean_squared_error import mean_squared_error
from minitl.ops.relu import relu
from minitl.ops.scale import scale
from minitl.ops.sigmoid_binary_cross_entropy import sigmoid_binary_cross_entropy
from minitl.ops.softmax_cross_entropy import softmax_cross_entropy
from minitl.ops.take import take
from minitl.ops.to_host import to_host

__all__ = [
    "adaptive_avgpool2d",
    "add",
    "avgpool2d",
    "batchnorm",
    "batchnorm_add_relu",
    "batchnorm_relu",
    "batchnorm_relu_maxpool",
    "concat",
    "conv2d",
    "conv2d_batchnorm",
    "dropout",
    "flatten",
    "global_avgpool2d",
    "linear",
    "maxpool2d",
    "mean_squared_error",
    "relu",
    "scale",
    "sigmoid_binary_cross_entropy",
    "softmax_cross_entropy",
    "take",
    "to_host",
]
