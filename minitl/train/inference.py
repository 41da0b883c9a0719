"""A network's results for batches that are only looked at: without gradients, and on a GPU as a graph.

Batches of one shape are the rule, so after a few the forward pass is recorded and replayed (recording.py).
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from minitl.backend import Array
from minitl.device import Device, is_out_of_memory
from minitl.tensor import Tensor, no_grad
from minitl.train.recording import NO_MEMORY, Outputs, Recorder


class Inference:
    """Computes what a network gives for batch after batch, within a `with` block for one pass over the data.

    network: in evaluation mode. Within a block its parameters and statistics may not change place: what is
    recorded has their addresses. The block's end gives the recording's memory back. device: where the network
    is; `Device.computing` is around all that is done here.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], device: Device) -> None:
        self._network = network
        self._recorder = Recorder(self._compute) if device.kind == "cuda" else None

    @no_grad()
    def __call__(self, x: Array) -> Tensor:
        """Return the network's result for a batch; nobody waits for it."""
        if self._recorder is None:
            return self._network(Tensor(x))
        key = x.shape, str(x.dtype)
        try:
            return Tensor(self._recorder.step(key, x)[0][0])
        except Exception as error:
            problem = self._recorder.problem(error)
            if (
                problem is None and self._recorder.allowed
            ):  # in memory that is for the recording alone
                problem = NO_MEMORY if is_out_of_memory(error) else None
            if problem is None:
                raise
        self._recorder.stay_with_code(problem)
        return Tensor(self._recorder.step(key, x)[0][0])

    def _compute(self, x: Array) -> Outputs:
        return [(self._network(Tensor(x)).data,)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._recorder is not None:
            self._recorder.forget(self._recorder.allowed)


__all__ = ["Inference"]
