"""A moving average of the weights (EMA): often better than the last ones, as it smooths the steps' noise.

After each step, average += (1 - d) * (weights - average), with d = min(decay, (1 + t) / (10 + t)) after t
steps: at the beginning the average follows quickly, so that it forgets the untrained head. The
statistics of batch normalisations that train are averaged as well. What is frozen stays as it is, to the
bit. (Polyak, Juditsky: "Acceleration of stochastic approximation by averaging", 1992.)
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minitl import nn
from minitl.backend import Array, assign, copied, kernels_for, like, to_host
from minitl.models import Classifier


class WeightAverage:
    """The average of all that trains in a model when this is made.

    model: after its optimizer was made, with all parameters unfrozen that ever train. decay: 0 to 1.
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        self.decay, self._steps = decay, 0
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._statistics = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d) and not module.frozen
        }
        self._average = {name: copied(array) for name, array in self._live()}

    def _live(self) -> Iterator[tuple[str, Array]]:
        """Yield (name, array) of the model's own values."""
        for name, parameter in self._parameters.items():
            yield name, parameter.data
        for name, module in self._statistics.items():
            yield f"{name}.running_mean", module.running_mean
            yield f"{name}.running_var", module.running_var

    def update(self) -> None:
        """Take the model's values in, after a step."""
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        for name, array in self._live():
            kernels_for(array).average_step(self._average[name], array, 1 - decay)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block the model has the averaged values; its own come back afterwards."""
        own = {name: copied(array) for name, array in self._live()}
        try:
            for name, array in self._live():
                assign(array, self._average[name])
            yield
        finally:
            for name, array in self._live():
                assign(array, own[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the averages, as NumPy arrays laid out as in memory."""
        averages = {name: np.array(to_host(array)) for name, array in self._average.items()}
        return {"steps": self._steps, "averages": averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`. Raises ValueError where it is of other parameters."""
        if state["averages"].keys() != self._average.keys():
            raise ValueError("the averages are of other parameters")
        for name, average in self._average.items():
            assign(average, like(average, state["averages"][name]))
        self._steps = state["steps"]


__all__ = ["WeightAverage"]
