"""Networks in PyTorch as their publishers wrote them down, by the names of `minitl.models`.

They are made of torch.nn alone and import nothing of minitl. Structure and names are those of torchvision
and timm; what those libraries do not have is named as in minitl.
"""

from tests.reference import torch_resnet
from tests.reference.torch_resnet import randomise
from tests.reference_models import inception, resnet8, resnet_v2, vgg


def make(arch, **options):
    """Make the reference of a registered architecture."""
    for prefix, module in {
        "vgg": vgg,
        "inception": inception,
        "resnetv2": resnet_v2,
        "mlperf": resnet8,
    }.items():
        if arch.startswith(prefix):
            return module.make(arch, **options)
    return torch_resnet.make(arch, **options)


__all__ = ["make", "randomise"]
