"""The loss of several tasks, as the weighted sum of each one's own.

    L = sum over tasks of weight * mean over what is known of the task's loss

classes: softmax cross-entropy; labels: binary cross-entropy, the mean over the labels; number: squared
error in standard deviations. What is not known takes no part: neither in a sum nor in what divides it.

The outputs are few, and how many answers are known differs from batch to batch: so this is computed on the
CPU, also where the network is on a GPU, which waits for it in each step.
"""

from collections.abc import Sequence

import numpy as np

from minitl import ops
from minitl.backend import Array, to_host
from minitl.tasks import Task, output_slices, target_slices
from minitl.tensor import Tensor


class TaskLoss:
    """Computes the loss of a batch, in one piece or in parts.

    label_smoothing: of the tasks with classes.
    """

    def __init__(self, tasks: Sequence[Task], label_smoothing: float = 0.0) -> None:
        self._tasks, self._label_smoothing = tasks, label_smoothing
        self._shares: list[float] = []

    def begin(self, targets: Array) -> None:
        """Look at the targets of a whole batch, before `__call__` for each part of it."""
        self._shares = self._known_shares(to_host(targets))

    # A part with m of n pictures counts m / n in its batch. Its mean over k known answers must count k / K,
    # of the K that are known in the batch: so it is multiplied by (k / K) / (m / n) = (k / m) / (K / n).
    def __call__(self, outputs: Tensor, targets: Array) -> Tensor:
        """Return the loss of a part, which counts in the batch by its share of the pictures.

        outputs: (n, outputs of all tasks). targets: (n, columns of all tasks), NaN where nothing is known.
        """
        outputs, targets = ops.to_host(outputs), to_host(targets)
        losses = [
            ops.scale(
                self._loss(task, outputs, own, targets[:, columns]), task.weight * here / whole
            )
            for task, own, columns, here, whole in zip(
                self._tasks,
                output_slices(self._tasks),
                target_slices(self._tasks),
                self._known_shares(targets),
                self._shares,
                strict=True,
            )
            if here
        ]
        total = losses[0]
        for loss in losses[1:]:
            total = ops.add(total, loss)
        return total

    def _known_shares(self, targets: np.ndarray) -> list[float]:
        """Return of how many pictures each task's answer is known, as a share of all."""
        firsts = [columns.start for columns in target_slices(self._tasks)]
        shares: list[float] = (~np.isnan(targets[:, firsts])).mean(axis=0).tolist()
        return shares

    def _loss(self, task: Task, outputs: Tensor, own: slice, targets: np.ndarray) -> Tensor:
        known = np.flatnonzero(~np.isnan(targets[:, 0]))
        outputs, targets = ops.take(outputs, known, own), targets[known]
        if task.kind == "classes":
            labels = targets[:, 0].astype(np.int64)
            return ops.softmax_cross_entropy(outputs, labels, label_smoothing=self._label_smoothing)
        if task.kind == "labels":
            return ops.sigmoid_binary_cross_entropy(outputs, targets)
        deviations = (targets - task.mean) / task.std
        return ops.mean_squared_error(ops.scale(outputs, task.unit / task.std), deviations)


__all__ = ["TaskLoss"]
