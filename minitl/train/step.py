"""One step of training: forward, loss, backward, update; the same on the CPU and on a GPU.

A batch may be taken in parts, one after the other, whose gradients are added before the update. Each
part's loss counts by its share of the pictures, or of what their classes weigh, so the sum is the mean over
the whole batch and the step is the same up to rounding, except that batch statistics are those of a part.
That takes the memory of a part; where a GPU has less, parts are halved until they fit.

On a GPU nothing here waits for it: losses stay there until somebody reads them.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from minitl import nn, ops, optim
from minitl.backend import BFLOAT16, Array, assign, copied, like, to_host, widen
from minitl.changing_numbers import in_memory
from minitl.device import Device, cupy, is_out_of_memory
from minitl.errors import UserError
from minitl.models import Classifier
from minitl.tasks import Task
from minitl.tensor import Tensor
from minitl.train.batches import Inputs, parts_of
from minitl.train.console import say
from minitl.train.recording import Outputs, Recorder
from minitl.train.task_loss import TaskLoss

UNREAD = 32  # steps at most whose results are still on the device
SECONDS = 1.0  # and how long they may be

Result = TypeVar("Result")


class _Other(NamedTuple):
    """What else is in mixed pictures: these labels; how much their own ones count, and these."""

    labels: Array
    own_share: Any
    share: Any


_OWN, _OTHERS = 0, 1  # whose labels: a picture's, or those of what is mixed into it


class StepResult(NamedTuple):
    """What a step said of its batch: the mean loss, and how many of its pictures it got right."""

    loss: float
    correct: int
    images: int


class TrainingStep:
    """Takes training steps with a network and an optimizer.

    network: what computes logits from inputs, the model or a part of it. model: owns the parameters.
    micro_batch: pictures at a time, at most; None for whole batches.
    tasks: where there are several; labels are then targets, see task_loss.py.
    class_weights: (K,), as in `softmax_cross_entropy`, but all above 0. clip_norm: the most that the norm
        of all gradients together may be.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        model: nn.Module,
        optimizer: optim.Optimizer,
        device: Device,
        *,
        label_smoothing: float = 0.0,
        micro_batch: int | None = None,
        class_weights: np.ndarray | None = None,
        clip_norm: float | None = None,
        tasks: Sequence[Task] = (),
    ) -> None:
        self.micro_batch = micro_batch
        self._network, self._model, self._optimizer = network, model, optimizer
        self._label_smoothing, self._clip_norm = label_smoothing, clip_norm
        self._class_weights = None if class_weights is None else device.array(class_weights)
        self._host_weights = class_weights
        self._factors: list[list[float]] = []  # of each part's loss, by _OWN and _OTHERS
        self._tasks = TaskLoss(tasks, label_smoothing) if tasks else None
        self._seeds: dict[float, Array] = {}
        self._share = 1.0  # of a mixed batch's own pictures
        self._unread: list[tuple[Outputs, np.ndarray]] = []
        self._last_reading = time.monotonic()
        self._recorder: Recorder | None = None
        if device.kind == "cuda":
            self._recorder = Recorder(self._compute)
            optimizer.allocate()  # now, outside of any step's memory
            if tasks:  # part of a step is on the CPU, see task_loss.py
                self._recorder.forget(record_again=False)

    def __call__(self, inputs: Inputs) -> None:
        """Take a step. Raises UserError where a GPU's memory does not even hold one picture's."""
        outputs = self.within_memory(len(inputs.labels), lambda: self._attempt(inputs))
        self._unread.append((outputs, inputs.host_labels))

    def within_memory(self, n: int, attempt: Callable[[], Result]) -> Result:
        """Return what `attempt` gives; where it runs out of a GPU's memory, once more with less.

        It takes `micro_batch` pictures of n at a time, which becomes smaller until that fits. A step that
        cannot be recorded is taken once more as code. Raises UserError where not even a single picture fits.
        """
        while True:
            # Out of the block before going on: the error holds on to the arrays of the failed attempt.
            try:
                return attempt()
            except Exception as error:
                problem = self._recorder.problem(error) if self._recorder else None
                if problem is None and (self._recorder is None or not is_out_of_memory(error)):
                    raise
            if problem is not None:
                assert self._recorder is not None
                self._recorder.stay_with_code(problem)
            else:
                self._take_less_memory(n)
            cupy().get_default_memory_pool().free_all_blocks()

    @property
    def due(self) -> bool:
        """Whether it is time to read results. On the CPU always: they are there."""
        late = time.monotonic() - self._last_reading > SECONDS
        return self._recorder is None or late or len(self._unread) >= UNREAD

    def results(self) -> list[StepResult]:
        """Return the results of the steps since the last call, in order; waits for them."""
        unread, self._unread = self._unread, []
        results = [_result(outputs, labels) for outputs, labels in unread]
        self._last_reading = time.monotonic()
        return results

    def release(self) -> None:
        """Give the memory of a recorded step back; further steps make it again."""
        if self._recorder is not None:
            self._recorder.forget()

    def _attempt(self, inputs: Inputs) -> Outputs:
        arrays: tuple[Array, ...] = (inputs.x, inputs.labels)
        if inputs.mixed is not None:
            arrays, self._share = (*arrays, inputs.mixed.labels), inputs.mixed.share
        if self._host_weights is not None:
            self._weigh_parts(inputs)
        if self._recorder is None:
            return self._compute(*arrays)
        key = self._key(inputs)
        if self._recorder.replays(key):
            return self._recorder.step(key, *arrays)
        with self._undone_on_failure(), self._optimizer.counts_undone_on_failure():
            return self._recorder.step(key, *arrays)

    def _compute(self, x: Array, labels: Array, others: Array | None = None) -> Outputs:
        """Do all that a step does; return the loss and the logits of each part.

        others: of mixed pictures the other labels, which count for what `_share` leaves.
        """
        n = len(labels)
        if self._tasks is not None:
            self._tasks.begin(labels)
        outputs: Outputs = []
        if others is not None:
            shares = (
                in_memory(lambda: self._share, np.float32),
                in_memory(lambda: 1 - self._share, np.float32),
            )
        for part, (start, end) in enumerate(parts_of(n, self.micro_batch)):
            other = None if others is None else _Other(others[start:end], *shares)
            logits, loss = self._forward(Tensor(x[start:end]), labels[start:end], part, other)
            loss.backward(self._seed((end - start) / n, loss.data))
            outputs.append((loss.data, logits.data))
        if self._clip_norm is not None:
            self._optimizer.clip_norm(self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return outputs

    def _forward(
        self, x: Tensor, labels: Array, part: int, other: _Other | None
    ) -> tuple[Tensor, Tensor]:
        """Return logits and loss of a part; a second head's loss is in it."""

        def loss_of(logits: Tensor) -> Tensor:
            own = self._loss(logits, labels, part, _OWN)
            if other is None:
                return own
            theirs = ops.scale(self._loss(logits, other.labels, part, _OTHERS), other.share)
            return ops.add(ops.scale(own, other.own_share), theirs)

        network = self._network
        if not isinstance(network, Classifier):
            logits = network(x)
            return logits, loss_of(logits)
        logits, second = network.outputs(x)
        loss = loss_of(logits)
        if second is not None:
            share = ops.scale(loss_of(second), network.second_head_weight)
            loss = ops.add(loss, share)
        return logits, loss

    def _loss(self, logits: Tensor, labels: Array, part: int, whose: int) -> Tensor:
        if self._tasks is not None:
            return self._tasks(logits, labels)
        loss = ops.softmax_cross_entropy(
            logits,
            labels,
            label_smoothing=self._label_smoothing,
            class_weights=self._class_weights,
        )
        if self._class_weights is None or len(self._factors[whose]) == 1:
            return loss
        return ops.scale(loss, in_memory(lambda: self._factors[whose][part], np.float32))

    # A part with m of n pictures counts m / n in its batch. Its mean is divided by what its labels weigh, w,
    # and must count w / W, of what all labels weigh: so it is multiplied by (w / W) / (m / n).
    def _weigh_parts(self, inputs: Inputs) -> None:
        """Find what each part's loss is multiplied by, where classes have weights."""
        assert self._host_weights is not None
        sets = [inputs.host_labels] + ([] if inputs.mixed is None else [inputs.mixed.host_labels])
        n = len(inputs.host_labels)
        parts = parts_of(n, self.micro_batch)
        self._factors = []
        for labels in sets:
            weights = self._host_weights[labels].astype(np.float64)
            means = [weights[start:end].mean() for start, end in parts]
            self._factors.append([float(mean / weights.mean()) for mean in means])

    def _seed(self, share: float, loss: Array) -> Array:
        """Return a part's share of its batch, as the gradient of its loss."""
        if share not in self._seeds:
            self._seeds[share] = like(loss, np.array(share, loss.dtype))
        return self._seeds[share]

    def _key(self, inputs: Inputs) -> tuple[Any, ...]:
        """Return all that a recorded step depends on."""
        options = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for group in self._optimizer.param_groups
        ]
        trained = tuple(p.requires_grad for p in self._model.parameters())
        return (
            *(inputs.x.shape, str(inputs.x.dtype), inputs.mixed is None),
            *(self.micro_batch, trained, repr(options)),
        )

    @contextlib.contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Put back what a forward pass changes if the block fails; parameters change at the very end."""
        saved = [(array, copied(array)) for _, array in self._model.named_buffers()]
        dropouts = [m for _, m in self._model.named_modules() if isinstance(m, nn.Dropout)]
        offsets = [module.offset for module in dropouts]
        try:
            yield
        except BaseException:
            for array, value in saved:
                assign(array, value)
            for module, offset in zip(dropouts, offsets, strict=True):
                module.offset = offset
            self._optimizer.zero_grad()
            raise

    def _take_less_memory(self, n: int) -> None:
        """After running out of memory: do without what is recorded, or take smaller parts."""
        assert self._recorder is not None
        if not self._recorder.recorded:
            self._halve(n)
        # Else this was a step of another shape, which runs as code; the recording is made again.
        self._seeds.clear()  # small pieces of large blocks, which a pool cannot give back before
        self._recorder.forget()

    def _halve(self, n: int) -> None:
        before = min(self.micro_batch or n, n)
        if before == 1:
            raise UserError(
                "the GPU's memory does not hold the training of this network with a single picture; free "
                "memory that other programs use, or choose a smaller network or --precision bf16"
            )
        self.micro_batch = math.ceil(before / 2)
        say(
            f"  the GPU's memory does not hold a step with {before} pictures; going on with at most "
            f"{self.micro_batch} at a time and the same batch{statistics_note(self._model)}"
        )


def statistics_note(model: nn.Module) -> str:
    """Say what taking batches in parts changes where batch normalisation is trained, if it is."""
    trained = any(
        isinstance(module, nn.BatchNorm2d) and not module.frozen
        for _, module in model.named_modules()
    )
    return "; batch statistics are then those of so many pictures" if trained else ""


def _result(outputs: Outputs, labels: np.ndarray) -> StepResult:
    loss, correct, start = 0.0, 0, 0
    for part_loss, part_logits in outputs:
        logits = to_host(part_logits)
        if logits.dtype == BFLOAT16:
            logits = widen(logits)
        end = start + len(logits)
        loss += float(to_host(part_loss)) * ((end - start) / len(labels))
        if labels.ndim == 1:  # of several tasks there is no such number
            correct += int((logits.argmax(axis=1) == labels[start:end]).sum())
        start = end
    return StepResult(loss, correct, len(labels))
