"""Element-by-element operations in float64, and Philox4x32-10 in Python's integers."""

import numpy as np


def relu(x):
    return np.where(x > 0, x, 0).astype(np.float64)


def relu_dx(dy, x):
    return np.where(x > 0, dy, 0).astype(np.float64)


def philox4x32(counter, key):
    """Return four 32-bit words. As in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def dropout_mask(size, p, seed, offset):
    """Return which of `size` elements are kept."""
    kept = []
    for i in range(offset, offset + size):
        high, low = divmod(i // 4, 2**32)
        word = philox4x32((low, high, 0, 0), (seed % 2**32, seed // 2**32))[i % 4]
        kept.append(word >= round(p * 2**32))
    return np.array(kept)


def dropout(x, p, seed, offset):
    kept = dropout_mask(x.size, p, seed, offset).reshape(x.shape)
    return np.where(kept, x.astype(np.float64) / (1 - p), 0)


def flatten(x):
    """Return x[n, h, w, c] at [n, (c*H + h)*W + w], element by element."""
    n, height, width, channels = x.shape
    y = np.empty((n, channels * height * width))
    for h, w, c in np.ndindex(height, width, channels):
        y[:, (c * height + h) * width + w] = x[:, h, w, c]
    return y
