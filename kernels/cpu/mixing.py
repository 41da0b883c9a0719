"""Mixup and cutmix on the CPU: each picture of a batch with the one that mirrors its place.

x: N, H, W, C, where picture i meets picture N - 1 - i      result: of the same shape
"""

import numpy as np


def mixup_forward(x: np.ndarray, share: float) -> np.ndarray:
    """Return share * x + (1 - share) * x[::-1]."""
    number = x.dtype.type
    mixed: np.ndarray = number(share) * x + number(1 - share) * x[::-1]
    return mixed


def cutmix_forward(x: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Return x with rows top .. bottom - 1 of columns left .. right - 1 from x[::-1]."""
    mixed = x.copy()
    mixed[:, top:bottom, left:right] = x[::-1, top:bottom, left:right]
    return mixed
