"""minitl: a small CNN engine for transfer learning on images."""

from minitl.models.saving import load_model, save_model
from minitl.tensor import Tensor, detect_anomaly, no_grad, tensor

__version__ = "0.1.0"
__all__ = [
    "Tensor",
    "detect_anomaly",
    "load_model",
    "no_grad",
    "save_model",
    "tensor",
]
