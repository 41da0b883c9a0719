"""The same numbers as a PyTorch tensor and as an array of ours, on one GPU without a copy.

PyTorch has bfloat16, and for our arrays it is 16 bits; both see the same memory through a view as int16.
Each works on a stream of its own, so whoever hands memory over waits until what is in it has been computed.
Where PyTorch has no GPU (in the tests) arrays are copied by way of the host.
"""

from typing import Any

import numpy as np
import torch

from minitl.backend import BFLOAT16, Array, to_host
from minitl.device import cupy

TYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def device() -> torch.device:
    """Return where PyTorch's tensors live: the current GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random(*shape: int, precision: str = "float32", seed: int = 0, scale: float = 1.0) -> Any:
    """Return normal random numbers that the precision holds exactly, on the GPU."""
    generator = torch.Generator(device()).manual_seed(seed)
    values = torch.randn(shape, generator=generator, device=device()) * scale
    return values.to(TYPES[precision])


def to_minitl(tensor: torch.Tensor) -> Array:
    """Return a tensor's memory as an array of ours."""
    tensor = tensor.detach().contiguous()
    is_bf16 = tensor.dtype == torch.bfloat16
    plain = tensor.view(torch.int16) if is_bf16 else tensor
    if plain.is_cuda:
        torch.cuda.current_stream().synchronize()
        array = cupy().asarray(plain)  # by __cuda_array_interface__: no copy
    else:
        array = cupy().asarray(plain.numpy())
    return array.view(BFLOAT16) if is_bf16 else array


def to_torch(array: Array) -> torch.Tensor:
    """Return what an array of ours holds as a tensor."""
    is_bf16 = array.dtype == BFLOAT16
    plain = array.view(np.int16) if is_bf16 else array
    if torch.cuda.is_available():
        cupy().cuda.get_current_stream().synchronize()
        tensor = torch.as_tensor(plain, device="cuda")
    else:
        tensor = torch.from_numpy(to_host(plain))
    return tensor.view(torch.bfloat16) if is_bf16 else tensor


def nchw(tensor: torch.Tensor) -> torch.Tensor:
    """View (N, H, W, C) as PyTorch's (N, C, H, W) in channels_last."""
    return tensor.permute(0, 3, 1, 2)


def nhwc(tensor: torch.Tensor) -> torch.Tensor:
    """View PyTorch's (N, C, H, W) as (N, H, W, C)."""
    return tensor.permute(0, 2, 3, 1)
