"""Batch normalisation in float64, step by step as in the paper (Ioffe and Szegedy, 2015, section 3)."""

import numpy as np


def statistics(x):
    """Return mean and biased variance of each channel."""
    pixels = x.reshape(-1, x.shape[-1]).astype(np.float64)
    mean = pixels.mean(0)
    return mean, ((pixels - mean) ** 2).mean(0)


def forward(x, weight, bias, mean, var, eps, residual=None, relu=False):
    """Return [relu](weight * (x - mean) / sqrt(var + eps) + bias [+ residual])."""
    y = (x.astype(np.float64) - mean) / np.sqrt(var + eps) * weight + bias
    if residual is not None:
        y = y + residual
    return np.maximum(y, 0) if relu else y


def gradients(dy, y, x, weight, mean, var, eps, relu, training):
    """Return dx, dweight, dbias, dresidual; y, the forward's result, says where a ReLU passes."""
    dz = np.where(y > 0, dy, 0) if relu else dy
    dz, x = dz.astype(np.float64), x.astype(np.float64)
    over = tuple(range(x.ndim - 1))
    m = x.size // x.shape[-1]
    xhat = (x - mean) / np.sqrt(var + eps)
    dxhat = dz * weight
    dx = dxhat / np.sqrt(var + eps)
    if training:
        dvar = (dxhat * (x - mean) * -0.5 * (var + eps) ** -1.5).sum(over)
        dmean = -(dxhat / np.sqrt(var + eps)).sum(over) + dvar * (-2 * (x - mean)).sum(over) / m
        dx = dx + dvar * 2 * (x - mean) / m + dmean / m
    return dx, (dz * xhat).sum(over), dz.sum(over), dz
