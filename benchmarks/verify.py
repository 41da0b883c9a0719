"""No figure without a check: a result is compared with float64 before anybody times it."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cases import Case, Results

FLOOR = 2e-6  # some roundings of float32


@dataclass(frozen=True)
class Check:
    """Errors as shares of the largest result, the largest over an operation's results."""

    error: float
    rival_error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether our result may be timed."""
        return self.error <= self.bound


def error(results: Results, reference: Results) -> float:
    """Return the largest difference as a share of the largest number expected; infinity for NaN."""
    worst = 0.0
    for result, exact in zip(results, reference, strict=True):
        found = torch.as_tensor(result).detach().double()
        if found.shape != exact.shape:
            return math.inf
        largest = float(exact.abs().max())
        difference = float((found - exact).abs().max())
        share = difference / largest if largest else difference
        worst = max(worst, share if math.isfinite(share) else math.inf)
    return worst


def verify(case: Case) -> Check:
    """Compare ours, and PyTorch's float32, with float64 on the same input.

    Allowed are twice the error of PyTorch's better format and FLOOR, or the bound that the case states.
    """
    reference: Any = tuple(t.detach() for t in case.reference())
    rival_error = min(error(rival(), reference) for rival in case.rivals.values())
    bound = max(case.bound or 0.0, 2 * rival_error + FLOOR)
    return Check(error(case.ours(), reference), rival_error, bound)
