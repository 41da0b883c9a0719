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
import csv
import dataclasses
import functools
import io
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minitl import hdf5, models, optim, run_files
from minitl.convert.golden import make_golden
from minitl.data.dataset import Dataset
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.device import Device, get_device, parse_device
from minitl.errors import InterruptedRunError, UserError
from minitl.feature_file import FeatureFile
from minitl.files import write_atomically, write_json
from minitl.models import Classifier
from minitl.models.saving import from_weights_file, to_weights_file
from minitl.text import coloured, listed, printable
from minitl.train import extract
from minitl.train.attack import Attack
from minitl.train.averaging import WeightAverage
from minitl.train.batches import Inputs
from minitl.train.checkpoint import Partial, SavingTimer, Writer
from minitl.train.clock import Clock
from minitl.train.config import Config
from minitl.train.console import (
    Progress,
    announce_compilation,
    compiled_seconds,
    duration,
    percent,
    say,
)
from minitl.train.evaluate import check_preprocessing
from minitl.train.evidence import judge, write_evidence
from minitl.train.feature_cache import FeatureCache, open_cache
from minitl.train.features import frozen_stages
from minitl.train.figures import (
    best_of,
    columns,
    history_figures,
    in_words,
    loss_of_guessing,
    main_figure,
    metrics_of,
    tasks_in_words,
)
from minitl.train.forward import Forward, backbone_is_frozen, evaluation_loader
from minitl.train.mixing import mix
from minitl.train.optimisation import (
    class_weights,
    make_optimizer,
    make_schedule,
    resolved,
    stopped_early,
)
from minitl.train.report import Judged
from minitl.train.run_folder import (
    claimed,
    clear_leftovers,
    forget_earlier,
    put_back,
    set_aside,
)
from minitl.train.source import dataset_of, dataset_of_run
from minitl.train.step import TrainingStep
from minitl.train.trained_model import dropouts, make_model, prepare_to_train, say_model
from minitl.train.unfreezing import unfreeze_for
from minitl.train.usable_data import say_data, with_findings, without_bad_images

_WAITING = "of training, validation and features: waiting for decoded pictures"
EXPLODED = 10  # times the loss of guessing: no epoch of a training that learns is so bad


@dataclasses.dataclass
class Run:
    """A run between two steps: everything that goes into last.h5.

    micro_batch: as in the settings, or less where a GPU's memory did not hold it. before: how good the
        network was before the first step, where that is asked for. best_validation: what the best epoch's
        weights said to the validation pictures, if this process has seen that; not saved. writer: what
        writes the files of the folder from the first epoch on.
    """

    config: Config
    folder: Path
    dataset: Dataset
    device: Device
    model: Classifier
    optimizer: optim.Optimizer
    history: list[dict[str, float]]
    clock: Clock
    average: WeightAverage | None = None
    partial: Partial = dataclasses.field(default_factory=Partial)
    micro_batch: int | None = None
    before: dict[str, Any] | None = None
    best_validation: Judged | None = None

    def __post_init__(self) -> None:
        self.writer = Writer(beside=self.device.kind == "cuda")

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def stopped_early(self) -> bool:
        """Whether --patience has run out."""
        return bool(self.history) and stopped_early(self.config, self.history, self.best["epoch"])

    def judged(self) -> contextlib.AbstractContextManager[None]:
        """Within the block the model has the weights that count: the averaged ones, if there are any."""
        return contextlib.nullcontext() if self.average is None else self.average.in_use()

    @property
    def best(self) -> dict[str, float]:
        """The line of the epoch that best.h5 holds."""
        return best_of(self.history)


def finetune(config: Config, folder: Path) -> dict[str, Any]:
    """Carry a run through, from the data folder to summary.json; return what that holds.

    folder: where the run goes, as `prepare_folder` returns it; an earlier run in it is replaced once the
        new one has saved something, and is back in its place if that never happens.

    Raises UserError for anything wrong with the data, the weights, the settings or the folder.
    """
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
        if not _saved(folder):  # nothing to resume from: do not stand in the way of another try
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
            f"continue it there, or train anew from {folder / run_files.BEST} with --weights"
        )
    config = dataclasses.replace(
        config,
        threads=config.threads if threads is None else threads,
        workers=config.workers if workers is None else workers,
        device=config.device if device is None else device,
    )
    with claimed(folder):
        clear_leftovers(folder)
        if not _saved(folder):
            say(f"{folder}: nothing was saved yet; beginning again")
            return _begin(config, folder)
        forget_earlier(folder)
        return _resume_saved(config, folder, accept_changed)


def _resume_saved(config: Config, folder: Path, accept_changed: bool) -> dict[str, Any]:
    device = get_device(config.device)
    if config.features is None:
        dataset = dataset_of_run(folder, config)
        changed = dataset.changed()
    else:
        features = FeatureFile(config.features)
        dataset, changed = extract.dataset_of(features), extract.changed_pictures(features)
    if changed and not accept_changed:
        raise _changed(folder, dataset, changed)
    checkpoint = hdf5.read(folder / run_files.LAST)
    if checkpoint.progress is None or checkpoint.optimizer is None:
        raise UserError(f"{folder / run_files.LAST} holds weights only, no state to resume from")
    model = from_weights_file(checkpoint, str(folder / run_files.LAST))
    check_preprocessing(
        config.preprocessing, model, folder / run_files.LAST, folder / run_files.SETTINGS
    )
    prepare_to_train(model, config)
    if config.lr is None:
        raise UserError(f"{folder / run_files.SETTINGS} does not say the lr; write the run's back")
    optimizer = make_optimizer(model.to(device), resolved(config, model))
    average = WeightAverage(model, config.ema) if config.ema else None
    try:
        optimizer.load_state_dict(checkpoint.optimizer)
        if average is not None:
            average.load_state_dict(checkpoint.progress.get("average", {"averages": {}}))
    except ValueError:
        raise UserError(
            f"{folder / run_files.LAST} does not fit {folder / run_files.SETTINGS}: other parameters train, "
            "or with another optimizer; write the run's own settings back"
        ) from None
    history = checkpoint.progress["history"]
    if history:
        _require_best(folder, history)
    for name, layer in dropouts(model):  # the next masks, not the first ones again
        layer.offset = checkpoint.progress.get("dropout", {}).get(name, 0)
    clock = Clock(checkpoint.progress.get("seconds"))
    partial = Partial(**checkpoint.progress.get("partial", {}))
    clock.add("training", partial.seconds)
    run = Run(config, folder, dataset, device, model, optimizer, history, clock, average, partial)
    run.micro_batch = checkpoint.progress.get("micro_batch", config.micro_batch)
    run.before = checkpoint.progress.get("before")
    step = f", step {partial.steps} of the next" if partial.steps else ""
    say(f"{folder}: continuing after epoch {run.epoch} of {config.epochs}{step}")
    if changed:
        _note_changed(run, changed)
    if history:
        _write_metrics(folder, _metrics(run))  # it may have been killed before that
    return _train(run)


def _changed(folder: Path, dataset: Dataset, changed: list[str]) -> UserError:
    total = len(dataset.train) + len(dataset.val) + len(dataset.test)
    return UserError(
        f"{folder}: {len(changed)} of {total} pictures in {dataset.root} are no longer the files that the "
        f"run began with: {printable(listed(changed))}. Put them back; or go on with these, for example "
        "because they were only copied and their dates alone differ: add --accept-changed. Nothing of the "
        "run is lost"
    )


def _note_changed(run: Run, changed: list[str]) -> None:
    """Say that the run goes on with other files, and keep that in its split, as well as what they are now."""
    note = (
        f"{len(changed)} pictures were no longer the same files when the run was resumed after epoch "
        f"{run.epoch}: {listed(changed)}"
    )
    say(f"  {coloured('warning', 'yellow', sys.stdout)}: {printable(note)}")
    run.dataset = dataclasses.replace(run.dataset, notes=[*run.dataset.notes, note])
    run.dataset.save_split(run.folder / run_files.SPLIT)


def _require_best(folder: Path, history: list[dict[str, float]]) -> None:
    """Raise UserError now rather than at the end of a run, where it lacks what it ends with."""
    path = folder / run_files.BEST
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the weights of epoch {best_of(history)['epoch']:.0f}, the best so far, "
            "which no further training makes again; put the file back, or begin again with --overwrite"
        )
    hdf5.read(path)


def _train(run: Run) -> dict[str, Any]:
    with computing(run):
        return _train_on_device(run)


@contextlib.contextmanager
def computing(run: Run) -> Iterator[None]:
    """Within the block, compute as the run's settings say."""
    config = run.config
    announce_compilation(run.device, training=not backbone_is_frozen(run.model))
    run.device.kernels.set_conv_algorithm(config.conv)
    run.device.kernels.set_threads(config.threads)
    with run.device.computing(config.precision):
        yield


def forwards(run: Run) -> tuple[Forward, Forward]:
    """Return what computes the network on the pictures for training and for validation."""
    config = run.config
    mixes = config.mixup > 0 or config.cutmix > 0
    cut, cache = _front(config, run.model)
    apart = cut if not mixes and (config.cached_views or not config.augment) else 0
    preprocessing = Preprocessing.from_dict(run.model.preprocessing)
    train_loader = Loader(
        run.dataset.train,
        run.dataset.root,
        preprocessing,
        config.batch_size,
        seed=config.seed,
        shuffle=True,
        augment=config.augmentation(),
        workers=config.workers,
        normalise=run.device.kind == "cpu",
        balanced=config.sampler == "balanced",
        targets=run.dataset.targets,
        # A rest of one picture has no batch statistics; kept features need none.
        drop_last=not (apart and backbone_is_frozen(run.model))
        and len(run.dataset.train) % config.batch_size == 1
        and 1 < config.batch_size < len(run.dataset.train),
    )
    where = run.device, config.precision
    train = Forward(
        run.model, train_loader, apart, "train", *where, cache, config.cached_views or 1
    )
    val_loader = evaluation_loader(
        run.model, run.dataset.val, run.dataset, config.workers, run.device
    )
    val = Forward(run.model, val_loader, cut, "validation", *where, cache)
    return train, val


def training_step(run: Run, train: Forward) -> TrainingStep:
    """Return what takes the run's steps."""
    config = run.config
    return TrainingStep(
        train.network,
        run.model,
        run.optimizer,
        run.device,
        label_smoothing=config.label_smoothing,
        micro_batch=run.micro_batch,
        class_weights=class_weights(config, run.dataset),
        clip_norm=config.clip_norm,
        tasks=run.dataset.tasks,
    )


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
            _save(run)
            _say_epoch(run)
        run.writer.finish()
        if run.epoch < config.epochs:
            say(f"stopped early: no better validation for {config.patience} epochs")
        step.release()
        run.device.kernels.release_memory()  # judging takes much less than training did
        return _finish(run)
    except KeyboardInterrupt:
        run.writer.finish()
        if not _saved(run.folder):
            raise InterruptedRunError(
                "interrupted during the first epoch; nothing was saved yet, the run folder is as it was "
                "before"
            ) from None
        ended = run.epoch == config.epochs or run.stopped_early
        when = "after the last epoch" if ended else f"in epoch {run.epoch + 1}"
        raise InterruptedRunError(
            f"interrupted {when}; the state that was last saved is safe in "
            f"{run.folder / run_files.LAST}; continue with: minitl finetune --resume {run.folder}"
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


def _front(config: Config, model: Classifier) -> tuple[int, FeatureCache | None]:
    """Return how many stages are frozen, and where their features are kept."""
    if config.features is None:
        cut = frozen_stages(model)
        return cut, open_cache(config, model, cut)
    rows = extract.FeatureRows(config.features)
    return extract.check_weights(rows.file, model, "the settings say"), rows


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
                run.writer.start(functools.partial(_write_state, run.folder, _state(run)))
    run.micro_batch = step.micro_batch
    accuracy = {} if run.dataset.tasks else {"train_accuracy": part.correct / part.images}
    return {
        "lr": lr * schedule(first + steps - 1),
        "train_loss": float(np.mean(part.losses)),
        **accuracy,
        "images_per_second": part.images / seconds(),
    }


def attacked(inputs: Inputs, run: Run, epoch: int, number: int, step: TrainingStep) -> Inputs:
    """Return a batch changed against the network as it is now, if the settings want that."""
    config = run.config
    if config.adversarial is None:
        return inputs
    seed = np.random.SeedSequence((config.seed, epoch, number)).generate_state(1)[0]
    attack = Attack.parse(config.adversarial, int(seed))
    preprocessing = Preprocessing.from_dict(run.model.preprocessing)

    def attempt() -> Any:
        return attack(run.model, inputs.x, inputs.labels, preprocessing, step.micro_batch)

    return inputs._replace(x=step.within_memory(len(inputs.labels), attempt))


def mixed(inputs: Inputs, config: Config, epoch: int, number: int) -> Inputs:
    """Return a batch as the settings want it mixed, if they do."""
    if not config.mixup and not config.cutmix:
        return inputs
    where = {"seed": config.seed, "epoch": epoch, "batch": number}
    return mix(inputs, config.mixup, config.cutmix, **where)


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


def _save(run: Run) -> None:
    """Write best.h5 if this epoch is the best, then last.h5 and metrics.csv.

    In this order: a run that dies between the two repeats this epoch on resuming, to the same weights.
    """
    best, state, metrics = _best(run), _state(run), _metrics(run)

    def write() -> None:
        if best is not None:
            best.write(run.folder / run_files.BEST)
        _write_state(run.folder, state)
        _write_metrics(run.folder, metrics)

    run.writer.start(write)


def _saved(folder: Path) -> bool:
    """Whether there is something to resume from."""
    return (folder / run_files.LAST).exists()


def _best(run: Run) -> hdf5.Prepared | None:
    """Return what goes into best.h5, if the last epoch is the best."""
    if run.best is not run.history[-1]:
        return None
    with run.judged():
        best = to_weights_file(run.model, source=_source(run))
        best.golden = make_golden(best, str(run.folder / run_files.BEST))
        return hdf5.prepare(best)


def _state(run: Run) -> hdf5.Prepared:
    """Return what goes into last.h5."""
    progress = {
        "epoch": run.epoch,
        "history": run.history,
        "dropout": {name: layer.offset for name, layer in dropouts(run.model)},
        "seconds": run.clock.seconds,
        "average": run.average and run.average.state_dict(),
        "partial": run.partial.state_dict(),
        "micro_batch": run.micro_batch,
        "before": run.before,
    }
    optimizer = run.optimizer.state_dict()
    return hdf5.prepare(to_weights_file(run.model, optimizer=optimizer, progress=progress))


def _write_state(folder: Path, state: hdf5.Prepared) -> None:
    state.write(folder / run_files.LAST)
    forget_earlier(folder)


def _metrics(run: Run) -> bytes:
    """Return what goes into metrics.csv."""
    table = io.StringIO()
    names = columns(run.dataset.tasks)
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{row[name]:.6g}" for name in names} for row in run.history)
    return table.getvalue().encode()


def _write_metrics(folder: Path, metrics: bytes) -> None:
    write_atomically(folder / run_files.METRICS, metrics)


def _source(run: Run) -> str:
    """Return what best.h5 says of its origin: this run, and what it started from."""
    source = f"minitl finetune {run.config.data}"
    if run.config.weights is None or run.config.from_scratch:
        return f"{source}, from scratch"
    return f"{source}, from {run.model.source or run.config.weights}"


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
    front = _front(config, run.model)
    judged = judge(run.model, run.dataset, config.workers, run.device, config.precision, *front)
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
        front = _front(run.config, run.model)
        judged = judge(
            best,
            run.dataset,
            run.config.workers,
            run.device,
            run.config.precision,
            *front,
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
                f"{part}: {in_words(figures)} on {figures['images']} pictures "
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
        say(f"report: {run.folder / run_files.REPORT}")
    return summary
