"""Adversarial pictures: how little must change for the network to be wrong?

    FGSM    one step of the full size along the sign of the loss's gradient (Goodfellow et al. 2014,
            "Explaining and Harnessing Adversarial Examples")
    PGD     several smaller steps, each followed by a return into the allowed box, from a random start
            (Madry et al. 2017, "Towards Deep Learning Models Resistant to Adversarial Attacks")

A change is allowed up to `epsilon` levels of 255 for each value, and values stay those of a picture, 0
to 255. Both hold for the prepared input, where a level of a channel is `scale / std`.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from minitl import ops
from minitl.backend import Array, array_module, assign, kernels_for
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.models import Classifier
from minitl.tensor import Tensor
from minitl.train.batches import parts_of

ATTACKS = ("fgsm", "pgd")
JUDGING_STEPS, TRAINING_STEPS = 10, 7  # of PGD; the latter as Madry et al. train


@dataclass(frozen=True)
class Attack:
    """One way to disturb pictures.

    kind: "fgsm" or "pgd". epsilon: the largest change of a value, in levels of 255. steps, step_size:
    of PGD; the default size reaches two and a half times as far as the box. seed: of PGD's start.
    """

    kind: str = "pgd"
    epsilon: float = 2.0
    steps: int = JUDGING_STEPS
    step_size: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ATTACKS:
            raise ValueError(f"no attack {self.kind!r}; choose one of {', '.join(ATTACKS)}")
        if not 0 < self.epsilon <= 255:
            raise ValueError(
                f"the largest change must be above 0 and at most 255; got {self.epsilon:g}"
            )
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be above 0; got {self.step_size}")

    @classmethod
    def parse(
        cls, text: str, seed: int = 0, *, option: str = "--adversarial", steps: int = TRAINING_STEPS
    ) -> Self:
        """Read "pgd:2" or "fgsm:4", a kind and its epsilon, as `--adversarial` and `--attack` have them.

        steps: of PGD. Raises UserError for anything else, naming the option.
        """
        kind, colon, epsilon = text.partition(":")
        try:
            return cls(kind, float(epsilon) if colon else 2.0, steps=steps, seed=seed)
        except ValueError as error:
            raise UserError(
                f"{option} cannot be {text!r} ({error}); write pgd:2 or fgsm:4, the kind and the largest "
                "change of 255"
            ) from None

    def __call__(
        self,
        model: Classifier,
        images: Array,
        labels: Array,
        preprocessing: Preprocessing,
        at_once: int | None = None,
    ) -> Array:
        """Return pictures near `images` that raise the loss, of the same shape and type.

        images: (N, H, W, 3), prepared as for the network, where the model is. labels: (N,) integers, there
        as well. at_once: pictures that the network sees at a time, at most; that changes nothing but
        roundings. The model is used in evaluation mode and left in the mode it was in; its gradients are not
        touched. On a GPU nothing here waits for it.
        """
        level = preprocessing.scale / np.array(preprocessing.std)
        darkest = -np.array(preprocessing.mean) / preprocessing.std
        limits = self.epsilon * level, darkest, darkest + 255 * level
        was_training, kernels = model.training, kernels_for(images)

        def moved(x: Array, by: float) -> Array:
            gradient = _gradient(model, x, labels, at_once)
            return kernels.attack_step(x, gradient, images, by * level, *limits)

        model.eval()
        try:
            if self.kind == "fgsm":
                return moved(images, self.epsilon)
            x = kernels.attack_start(images, *limits, self.seed)
            for _ in range(self.steps):
                x = moved(x, self.step_size or 2.5 * self.epsilon / self.steps)
            return x
        finally:
            model.train(was_training)


def _gradient(model: Classifier, images: Array, labels: Array, at_once: int | None) -> Array:
    """Return the loss's gradient with respect to the pictures; of parts, each as if it were alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:  # only the pictures' gradient is asked for
        parameter.requires_grad = False
    try:
        parts = parts_of(len(images), at_once)
        gradient = array_module(images).empty(images.shape, images.dtype) if parts[1:] else None
        for start, end in parts:
            x = Tensor(images[start:end], requires_grad=True)
            ops.softmax_cross_entropy(model(x), labels[start:end]).backward()
            assert x.grad is not None
            if gradient is None:
                return x.grad
            assign(gradient[start:end], x.grad)
        return gradient
    finally:
        for parameter in trained:
            parameter.requires_grad = True


__all__ = ["ATTACKS", "JUDGING_STEPS", "TRAINING_STEPS", "Attack"]
