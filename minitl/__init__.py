"""minitl: a small CNN engine for transfer learning on images."""

from minitl.tensor import Tensor, detect_anomaly, no_grad, tensor

__version__ = "0.1.0"
__all__ = ["Tensor", "detect_anomaly", "no_grad", "tensor"]
