"""Which learning rate? A few steps at a rate that rises from far too small to far too large.

The loss stays where it is at first, falls, and explodes. Where half of the fall is done is a good choice to
begin with: the network learns quickly there, and what follows shows that it could learn more quickly still.
(After Smith: "Cyclical learning rates for training neural networks", 2015. The steepest place, which others
take, is a matter of chance where batches are small.)

At the rates of the first steps nothing is learned. So they show where the loss begins and how much it varies
from batch to batch, and a fall counts only beyond that.
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
from minitl.train.forward import Forward
from minitl.train.optimisation import make_optimizer, resolved
from minitl.train.run import Run, attacked, computing, forwards, mixed, training_step
from minitl.train.source import dataset_of
from minitl.train.step import TrainingStep
from minitl.train.trained_model import make_model
from minitl.train.unfreezing import parse_unfreezing, unfreeze_for
from minitl.train.usable_data import without_bad_images

SMOOTHING = 0.9  # of the losses: the share of what came before
EXPLODED = 4.0  # times the lowest smoothed loss
FEWEST = 10  # steps, to have a beginning
BEGINNING = 0.2  # share of the steps whose losses show where it begins
# Standard deviations that a fall must have. Without any, 100 steps seem to fall so far one time in ten.
CLEAR = 2.5


class Ramp(NamedTuple):
    """What a rising rate did: a rate, loss and smoothed loss of each step, and the rate to begin with.

    suggestion: None where the loss does not clearly fall: by `fall`, which varies by `noise` without a cause.
    """

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    suggestion: float | None
    fall: float
    noise: float


def find_lr(
    config: Config, out: Path, steps: int = 100, lowest: float = 1e-6, highest: float = 10.0
) -> Ramp:
    """Take steps as a run with these settings would, at a rising rate; draw the losses to a PNG.

    Nothing else is written, except that what frozen layers compute goes to the feature cache as in a run,
    which then finds it there; the weights are left as they were. The rate is --lr; that of parts with one of
    their own rises in proportion. Of a schedule of unfreezing, what begins in epoch 0 trains.

    Raises UserError for bad data, weights or settings, and where the loss explodes at once.
    """
    if steps < FEWEST or not 0 < lowest < highest < math.inf:
        raise UserError(
            f"lr-find needs at least {FEWEST} steps and rates 0 < lowest < highest; got {steps} steps from "
            f"{lowest:g} to {highest:g}"
        )
    if config.unfreeze_schedule:  # how many epochs there will be is not known yet
        latest = max(epoch for _, epoch in parse_unfreezing(config.unfreeze_schedule))
        config = dataclasses.replace(config, epochs=max(config.epochs, latest + 1))
    dataset = dataset_of(config)
    if config.features is None:
        dataset = without_bad_images(dataset, config)
    model = make_model(config, dataset)
    config = resolved(config, model)
    device = get_device(config.device)
    optimizer = make_optimizer(model.to(device), config)
    run = Run(config, out.parent, dataset, device, model, optimizer, [], Clock())
    run.micro_batch = config.micro_batch
    rates = np.geomspace(lowest, highest, steps).tolist()
    with computing(run):
        losses = _losses(run, rates)
    ramp = judge_ramp(rates[: len(losses)], losses)
    drawing = plots.learning_rates(ramp.rates, ramp.losses, ramp.smooth, ramp.suggestion)
    write_atomically(out, drawing)
    if ramp.suggestion is None:
        say(
            f"{out}: the loss over the learning rate; no clear rate: it falls by {max(ramp.fall, 0):.2g}, "
            f"and varies by {ramp.noise:.2g} by chance. Try --steps {3 * steps}, or a larger --batch-size"
        )
    else:
        say(
            f"{out}: the loss over the learning rate; a good one to begin with: --lr {ramp.suggestion:.1g}"
        )
    return ramp


def _losses(run: Run, rates: list[float]) -> list[float]:
    """Return the loss of each step, up to where it has exploded."""
    train, _ = forwards(run)
    step = training_step(run, train)
    if run.config.unfreeze_schedule:
        unfreeze_for(run.model, run.config.unfreeze_schedule, 0)
    run.model.train()
    losses: list[float] = []
    lowest = math.inf
    assert run.config.lr is not None
    with Progress("rising learning rate", len(rates), unit="step") as progress:
        for rate, inputs in zip(rates, _batches(run, train, step), strict=False):
            run.optimizer.lr_factor = rate / run.config.lr
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


def _batches(run: Run, train: Forward, step: TrainingStep) -> Iterator[Inputs]:
    """Yield the batches of one epoch after the other, attacked and mixed as the settings want."""
    for epoch in itertools.count():
        for number, inputs in enumerate(train.inputs(epoch)):
            inputs = attacked(inputs, run, epoch, number, step)
            yield mixed(inputs, run.config, epoch, number)


def smoothed(losses: list[float]) -> list[float]:
    """Return a moving average that does not favour the first value."""
    average, result = 0.0, []
    for number, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        result.append(average / (1 - SMOOTHING**number))
    return result


def judge_ramp(rates: list[float], losses: list[float]) -> Ramp:
    """Suggest the rate at which half of the smoothed loss's fall is done, for the last time."""
    smooth = smoothed(losses)
    beginning = max(FEWEST, math.ceil(BEGINNING * len(losses)))
    start, deviation = np.mean(losses[:beginning]), np.std(losses[:beginning])
    # The variances of a moving average of many losses, and of the mean that it is compared with.
    noise = float(deviation * math.sqrt((1 - SMOOTHING) / (1 + SMOOTHING) + 1 / beginning))
    rest = smooth[beginning:]
    if not rest:
        return Ramp(rates, losses, smooth, None, 0.0, noise)
    lowest = int(np.argmin(rest))
    fall = float(start - rest[lowest])
    suggestion = None
    if fall > CLEAR * noise:
        above = [n for n, loss in enumerate(rest[:lowest]) if loss >= start - fall / 2]
        suggestion = float(rates[beginning + (above[-1] if above else 0)])
    return Ramp(rates, losses, smooth, suggestion, fall, noise)


__all__ = ["Ramp", "find_lr", "judge_ramp", "smoothed"]
