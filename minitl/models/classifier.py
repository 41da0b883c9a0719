"""What every network here is: a classifier that knows its architecture and its input."""

from typing import Any

import numpy as np

from minitl import nn
from minitl.tensor import Tensor


class Classifier(nn.Module):
    """A trunk that turns pictures into one feature vector each, and a linear head for the classes.

    arch, arch_options: the registered name and options that `models.create` makes the same network of.
    class_names: the head's classes in order, if known.
    preprocessing: how a picture becomes an input, as stored in weights files; empty if unknown.
    head_name: the attribute that holds the head, named as the original implementation names it.
    """

    head_name = "fc"

    def __init__(self, arch: str, arch_options: dict[str, Any]) -> None:
        self.arch = arch
        self.arch_options = arch_options
        self.class_names: list[str] | None = None
        self.preprocessing: dict[str, Any] = {}

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        head: nn.Linear = getattr(self, self.head_name)
        return head

    @property
    def num_classes(self) -> int:
        """Number of classes the head distinguishes."""
        return self.head.weight.shape[0]

    def features(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, F): what the trunk sees in each picture."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, classes): logits."""
        return self.head(self.features(x))

    def replace_head(self, num_classes: int, *, seed: int = 0) -> None:
        """Put a freshly initialised head for `num_classes` classes in place of the old one."""
        rng = np.random.default_rng(seed)
        new = nn.Linear(self.head.weight.shape[1], num_classes, rng=rng)
        new.training = self.training
        setattr(self, self.head_name, new)
        self.class_names = None
