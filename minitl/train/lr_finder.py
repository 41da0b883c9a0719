"""Which learning rate? A few steps at a rate that rises from far too small to far too large.

The loss stays where it is at first, falls, and explodes. Where the smoothed loss falls most steeply in
the logarithm of the rate is a good choice to begin with. (Smith: "Cyclical learning rates for training
neural networks", 2015.)
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minitl.device import get_device
from minitl.errors import UserError
from minitl.files import write_atomically
from minitl.train import plots
from minitl.train.batches import Inputs
from minitl.train.clock import Clock
from minitl.train.config import Config
from minitl.train.console import Progress, say
from minitl.train.finetune import Run, computing, forwards, make_model, mixed, training_step
from minitl.train.forward import Forward
from minitl.train.optimisation import make_optimizer, resolved
from minitl.train.source import dataset_of

SMOOTHING = 0.9  # of the losses: the share of what came before
EXPLODED = 4.0  # times the lowest smoothed loss
FEWEST = 10  # steps, to have a slope


class Ramp(NamedTuple):
    """What a rising rate did: a rate, loss and smoothed loss of each step, and the rate to begin with."""

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    suggestion: float


def find_lr(
    config: Config, out: Path, steps: int = 100, lowest: float = 1e-6, highest: float = 10.0
) -> Ramp:
    """Take steps as a run with these settings would, at a rising rate; draw the losses to a PNG.

    Nothing but that file is written, and the weights are left as they were. The rate is --lr; that of parts
    with one of their own rises in proportion.

    Raises UserError for bad data, weights or settings, and where the loss explodes at once.
    """
    if steps < FEWEST or not 0 < lowest < highest < math.inf:
        raise UserError(
            f"lr-find needs at least {FEWEST} steps and rates 0 < lowest < highest; got {steps} steps from "
            f"{lowest:g} to {highest:g}"
        )
    dataset = dataset_of(config)
    model = make_model(config, dataset)
    config = resolved(dataclasses.replace(config, lr=lowest), model)
    device = get_device(config.device)
    optimizer = make_optimizer(model.to(device), config)
    run = Run(config, out.parent, dataset, device, model, optimizer, [], Clock())
    run.micro_batch = config.micro_batch
    rates = np.geomspace(lowest, highest, steps).tolist()
    with computing(run):
        losses = _losses(run, rates)
    ramp = judge_ramp(rates[: len(losses)], losses)
    write_atomically(out, plots.learning_rates(*ramp))
    say(
        f"{out}: the loss over the learning rate; a good one to begin with: --lr {ramp.suggestion:.1g}"
    )
    return ramp


def _losses(run: Run, rates: list[float]) -> list[float]:
    """Return the loss of each step, up to where it has exploded."""
    train, _ = forwards(run)
    step = training_step(run, train)
    run.model.train()
    losses: list[float] = []
    lowest = math.inf
    with Progress("rising learning rate", len(rates)) as progress:
        for rate, inputs in zip(rates, _batches(run, train), strict=False):
            run.optimizer.lr_factor = rate / rates[0]
            step(inputs)
            loss = step.results()[0].loss
            if not math.isfinite(loss):
                break
            losses.append(loss)
            smooth = smoothed(losses)[-1]
            lowest = min(smooth, lowest)
            progress.update(1, f"rate {rate:.1e}, loss {loss:.3f}")
            if len(losses) > FEWEST and smooth > EXPLODED * lowest:
                break
    if len(losses) < FEWEST:
        raise UserError(
            f"the loss exploded after {len(losses)} steps, at learning rate {rates[len(losses)]:.1e}; "
            "begin with a lower --lowest"
        )
    return losses


def _batches(run: Run, train: Forward) -> Iterator[Inputs]:
    """Yield the batches of one epoch after the other."""
    for epoch in itertools.count():
        for number, inputs in enumerate(train.inputs(epoch)):
            yield mixed(inputs, run.config, epoch, number)


def smoothed(losses: list[float]) -> list[float]:
    """Return a moving average that does not favour the first value."""
    average, result = 0.0, []
    for number, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        result.append(average / (1 - SMOOTHING**number))
    return result


def judge_ramp(rates: list[float], losses: list[float]) -> Ramp:
    """Suggest the rate at which the smoothed loss falls most steeply, before its lowest value."""
    smooth = smoothed(losses)
    end = max(int(np.argmin(smooth)) + 1, 3)
    slopes = np.gradient(np.array(smooth[:end]), np.log(rates[:end]))
    return Ramp(rates, losses, smooth, float(rates[int(slopes.argmin())]))


__all__ = ["Ramp", "find_lr", "judge_ramp", "smoothed"]
