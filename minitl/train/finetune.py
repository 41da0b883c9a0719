"""The main job: a pretrained network, a folder of labelled pictures, a better classifier.

A run folder holds
    config.toml    every setting, resolved; `minitl finetune --config` repeats the run
    split.json     which picture was used for training and which for validation
    last.h5        the state when it was last saved, after an epoch or within one, with all that resuming
                   needs to come to the same result as without an interruption
    best.h5        the weights of the epoch with the highest validation accuracy (of several tasks: score,
                   see task_metrics.py); of equals, the lowest loss
    metrics.csv    a line for each epoch
    summary.json   the result
    report.html, curves.png, confusion.png, classes.json    the evidence, see evidence.py
"""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minitl import models, run_files
from minitl.device import get_device, parse_device
from minitl.errors import InterruptedRunError, UserError
from minitl.files import write_json
from minitl.text import coloured
from minitl.train.averaging import WeightAverage
from minitl.train.checkpoint import Partial, SavingTimer
from minitl.train.clock import Clock
from minitl.train.config import Config
from minitl.train.console import Progress, compiled_seconds, duration, percent, say
from minitl.train.evidence import judge, write_evidence
from minitl.train.figures import (
    history_figures,
    loss_of_guessing,
    main_figure,
    metrics_in_words,
    metrics_of,
    tasks_in_words,
)
from minitl.train.forward import Forward
from minitl.train.optimisation import make_optimizer, make_schedule, resolved
from minitl.train.report_page import Judged
from minitl.train.run import Run, attacked, computing, forwards, front, mixed, training_step
from minitl.train.run_folder import (
    claimed,
    clear_leftovers,
    forget_earlier,
    put_back,
    refuse_among_classes,
    refuse_to_replace_weights,
    set_aside,
)
from minitl.train.run_state import is_saved, save_epoch, save_within_epoch, saved_run
from minitl.train.source import dataset_of
from minitl.train.step import TrainingStep
from minitl.train.trained_model import make_model, say_model
from minitl.train.unfreezing import unfreeze_for
from minitl.train.usable_data import say_data, with_findings, without_bad_images

_WAITING = "of training, validation and features: waiting for decoded pictures"
EXPLODED = 10  # times the loss of guessing: no epoch of a training that learns is so bad


def finetune(config: Config, folder: Path) -> dict[str, Any]:
    """Carry a run through, from the data folder to summary.json; return what that holds.

    folder: where the run goes, as `prepare_folder` returns it; an earlier run in it is replaced once the
        new one has saved something, and is back in its place if that never happens.

    Raises UserError for anything wrong with the data, the weights, the settings or the folder, also where the
    weights are of the run to be replaced.
    """
    refuse_to_replace_weights(folder, config.weights)
    if config.features is None and config.labels is None and config.label_from_name is None:
        refuse_among_classes(folder, Path(config.data))
    with claimed(folder):
        return _begin(config, folder)


def _begin(config: Config, folder: Path) -> dict[str, Any]:
    device = get_device(config.device)
    dataset = dataset_of(config)
    model = make_model(config, dataset)
    config = dataclasses.replace(resolved(config, model), preprocessing=model.preprocessing)
    say_data(dataset)
    clock = Clock()
    if config.features is None:
        with clock.measure("checking the pictures"):
            dataset = with_findings(without_bad_images(dataset, config))
    make_schedule(config, math.ceil(len(dataset.train) / config.batch_size))
    say_model(model, config)
    set_aside(folder)
    try:
        config.save(folder / run_files.SETTINGS)
        dataset.save_split(folder / run_files.SPLIT)
        model.to(device)
        optimizer = make_optimizer(model, config)
        average = WeightAverage(model, config.ema) if config.ema else None
        run = Run(config, folder, dataset, device, model, optimizer, [], clock, average)
        run.micro_batch = config.micro_batch
        return _train(run)
    except BaseException:
        if not is_saved(folder):  # nothing to resume from: do not stand in the way of another try
            put_back(folder)
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def resume(
    folder: Path,
    *,
    accept_changed: bool = False,
    threads: int | None = None,
    workers: int | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Continue a run where it was last saved, as if it had never stopped.

    accept_changed: go on although pictures are no longer those that it began with. threads, workers, device:
        in place of the run's own, for now; the device must be of the same kind.

    Raises UserError for a folder without a run, or with one that lacks something, for another kind of device,
    and where pictures have changed and that was not accepted.
    """
    config = Config.load(folder / run_files.SETTINGS)
    if device is not None and parse_device(device).kind != parse_device(config.device).kind:
        raise UserError(
            f"--device {device}: this run began on {config.device}, where results have other last bits; "
            f"continue it there, or train anew from {folder / 'best.h5'} with --weights"
        )
    config = dataclasses.replace(
        config,
        threads=config.threads if threads is None else threads,
        workers=config.workers if workers is None else workers,
        device=config.device if device is None else device,
    )
    with claimed(folder):
        clear_leftovers(folder)
        if not is_saved(folder):
            say(f"{folder}: nothing was saved yet; beginning again")
            return _begin(config, folder)
        forget_earlier(folder)
        return _train(saved_run(config, folder, accept_changed))


def _train(run: Run) -> dict[str, Any]:
    with computing(run):
        return _train_on_device(run)


def _train_on_device(run: Run) -> dict[str, Any]:
    config = run.config
    train, val = forwards(run)
    step = training_step(run, train)
    say(f"  run folder: {run.folder}")
    try:
        if config.compare_before and run.before is None:
            run.before = _judge_before(run)
        if val.cut and run.epoch < config.epochs:
            with run.clock.measure("features of the frozen part"), _waiting(run, train, val):
                train.prepare()
                val.prepare()
        while run.epoch < config.epochs and not run.stopped_early:
            started = time.monotonic() - run.partial.seconds
            with run.clock.measure("training"), _waiting(run, train):
                row = {"epoch": run.epoch + 1.0, **_train_epoch(run, train, step)}
            with run.clock.measure("validation"), run.judged(), _waiting(run, val):
                validation = _evaluate(run, val, row["lr"])
            row |= history_figures(validation.metrics)
            row["seconds"] = time.monotonic() - started
            run.history.append(row)
            if run.best is row:
                run.best_validation = validation
            run.partial = Partial()
            save_epoch(run)
            _say_epoch(run)
        run.writer.finish()
        if run.epoch < config.epochs:
            say(f"stopped early: no better validation for {config.patience} epochs")
        step.release()
        run.device.kernels.release_memory()  # judging takes much less than training did
        return _finish(run)
    except KeyboardInterrupt:
        run.writer.finish()
        if not is_saved(run.folder):
            raise InterruptedRunError(
                "interrupted during the first epoch; nothing was saved yet, the run folder is as it was "
                "before"
            ) from None
        ended = run.epoch == config.epochs or run.stopped_early
        when = "after the last epoch" if ended else f"in epoch {run.epoch + 1}"
        raise InterruptedRunError(
            f"interrupted {when}; the state that was last saved is safe in "
            f"{run.folder / 'last.h5'}; continue with: minitl finetune --resume {run.folder}"
        ) from None
    finally:
        run.writer.finish()


@contextlib.contextmanager
def _waiting(run: Run, *forwards: Forward) -> Iterator[None]:
    """Count how long the block waits for pictures: what computing more quickly would not shorten."""
    before = [forward.loader.wait_seconds for forward in forwards]
    yield
    waited = sum(f.loader.wait_seconds for f in forwards) - sum(before)
    run.clock.add(_WAITING, waited)


def _train_epoch(run: Run, forward: Forward, step: TrainingStep) -> dict[str, float]:
    config = run.config
    assert config.lr is not None
    lr = config.lr
    if config.unfreeze_schedule:
        unfreeze_for(run.model, config.unfreeze_schedule, run.epoch)
    run.model.train()
    steps = len(forward.loader)
    schedule = make_schedule(config, steps, [row["val_loss"] for row in run.history])
    first = run.epoch * steps
    part, timer = run.partial, SavingTimer(config.save_every)
    started, compiled = time.monotonic() - part.seconds, compiled_seconds()

    def seconds() -> float:
        """How long the epoch has taken so far, without compiling."""
        return time.monotonic() - started - (compiled_seconds() - compiled)

    with Progress(f"epoch {run.epoch + 1}/{config.epochs}", len(run.dataset.train)) as progress:
        progress.update(part.images)
        for number, inputs in enumerate(forward.inputs(run.epoch, part.steps), part.steps):
            run.optimizer.lr_factor = schedule(first + number)
            inputs = attacked(inputs, run, run.epoch, number, step)
            step(mixed(inputs, config, run.epoch, number))
            if run.average is not None:
                run.average.update()
            last = number == steps - 1
            save = not last and timer.due(number + 1)
            for result in step.results() if step.due or save or last else ():
                part.losses.append(result.loss)
                if not math.isfinite(result.loss):
                    what = f"the loss became {result.loss} in epoch {run.epoch + 1}, step {part.steps},"
                    raise _diverged(run, what, lr * schedule(first + part.steps - 1))
                part.correct += result.correct
                part.images += result.images
                recent = np.mean(part.losses[-20:])
                figures = f"loss {recent:.3f}"
                if not run.dataset.tasks:
                    figures += f", accuracy {percent(part.correct / part.images)}"
                progress.update(result.images, figures)
            if save:
                part.seconds = seconds()
                run.micro_batch = step.micro_batch
                save_within_epoch(run)
    run.micro_batch = step.micro_batch
    accuracy = {} if run.dataset.tasks else {"train_accuracy": part.correct / part.images}
    return {
        "lr": lr * schedule(first + steps - 1),
        "train_loss": float(np.mean(part.losses)),
        **accuracy,
        "images_per_second": part.images / seconds(),
    }


def _diverged(run: Run, what: str, lr: float) -> UserError:
    """Return the error for a training that has come apart. lr: at that time."""
    assert run.config.lr is not None
    saved = f"; the state after epoch {run.epoch} is in last.h5" if run.epoch else ""
    return UserError(
        f"{what} at learning rate {lr:g}; try a lower --lr, for example {run.config.lr / 10:g}{saved}"
    )


def _evaluate(run: Run, forward: Forward, lr: float) -> Judged:
    """Judge the network on validation after an epoch. lr: its last learning rate."""
    dataset = run.dataset
    with Progress(forward.label, len(forward.loader.samples)) as progress:
        logits, labels = forward.logits(progress.update)
    if not np.isfinite(logits).all():  # the last step may break what its loss did not see
        what = f"the network's outputs are not numbers in the validation of epoch {run.epoch + 1},"
        raise _diverged(run, what, lr)
    return Judged("val", list(dataset.val), logits, metrics_of(dataset, logits, labels))


def _say_epoch(run: Run) -> None:
    row = run.history[-1]
    accuracy = {
        part: "" if run.dataset.tasks else f"  accuracy {percent(row[f'{part}_accuracy'])}"
        for part in ("train", "val")
    }
    tasks = f"  {tasks_in_words(row, run.dataset.tasks)}" if run.dataset.tasks else ""
    say(
        f"epoch {run.epoch:3d}/{run.config.epochs}  "
        f"train loss {row['train_loss']:.4f}{accuracy['train']}   "
        f"val loss {row['val_loss']:.4f}{accuracy['val']}{tasks}   "
        f"{row['images_per_second']:.0f} img/s  {duration(row['seconds'])}"
        f"{coloured('   best so far', 'green', sys.stdout) if run.best is row else ''}"
    )
    assert run.config.lr is not None
    guessing = loss_of_guessing(run.dataset)
    if row["train_loss"] > EXPLODED * guessing:
        say(
            f"  {coloured('warning', 'yellow', sys.stdout)}: a training loss of {row['train_loss']:.3g} is "
            f"{row['train_loss'] / guessing:.0f} times that of guessing, so the steps are too large; try a "
            f"lower --lr, for example {run.config.lr / 10:g}"
        )


def _judge_before(run: Run) -> dict[str, Any]:
    """Return how good the network is now, on the test part or else on the validation part."""
    config = run.config
    place = front(config, run.model)
    judged = judge(run.model, run.dataset, config.workers, run.device, config.precision, *place)
    metrics = judged[-1].metrics
    names = ("score", "loss") if run.dataset.tasks else ("accuracy", "macro_f1", "loss")
    return {"part": judged[-1].part, **{name: metrics[name] for name in names}}


def _finish(run: Run) -> dict[str, Any]:
    """Judge the best epoch's weights, on the test part too where there is one."""
    best = models.load_model(run.folder / run_files.BEST).to(run.device)
    summary: dict[str, Any] = {
        "model": best.arch,
        "device": run.config.device,
        "precision": run.config.precision,
        "classes": run.dataset.classes,
        **({"tasks": [t.to_dict() for t in run.dataset.tasks]} if run.dataset.tasks else {}),
        "epochs": run.epoch,
        "best_epoch": int(run.best["epoch"]),
        "seconds": round(sum(row["seconds"] for row in run.history), 3),
        "train_images": len(run.dataset.train),
    }
    with run.clock.measure("judging the best epoch"):
        # The best weights are those of the run's model before the cut: nothing there has trained.
        place = front(run.config, run.model)
        judged = judge(
            best,
            run.dataset,
            run.config.workers,
            run.device,
            run.config.precision,
            *place,
            validation=run.best_validation,
        )
    summary |= {one.part: dict(one.metrics) for one in judged}
    if run.before is not None:
        summary["before"] = run.before
    seconds = sorted(
        run.clock.seconds.items(), key=lambda item: item[0] == _WAITING
    )  # it comes last
    summary["timing"] = {name: round(value, 3) for name, value in seconds}
    write_json(run.folder / run_files.SUMMARY, summary)
    for part in ("val", "test"):
        if part in summary:
            figures = summary[part]
            say(
                f"{part}: {metrics_in_words(figures)} on {figures['images']} pictures "
                f"(epoch {summary['best_epoch']})"
            )
    if run.before is not None:
        part = run.before["part"]
        name = main_figure(run.before)
        before, after = run.before[name], summary[part][name]
        say(
            f"{part}, before and after: {name} {percent(before)} -> {percent(after)} "
            f"({100 * (after - before):+.1f} points)"
        )
    if run.config.report:
        write_evidence(run.folder, run.dataset, run.history, judged, summary["timing"], run.before)
        say(f"report: {run.folder / 'report.html'}")
    return summary


__all__ = ["finetune", "resume"]
