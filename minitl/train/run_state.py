"""What a run writes into its folder as it goes on, and how it is read back to continue."""

import csv
import dataclasses
import functools
import io
import sys
from pathlib import Path

from minitl import hdf5, run_files
from minitl.convert.golden import make_golden
from minitl.data.dataset import Dataset, load_split
from minitl.data.parts import PARTS
from minitl.device import get_device
from minitl.errors import UserError
from minitl.feature_file import FeatureFile
from minitl.files import write_atomically
from minitl.models.saving import from_weights_file, to_weights_file
from minitl.text import coloured, listed, printable
from minitl.train import feature_runs
from minitl.train.averaging import WeightAverage
from minitl.train.checkpoint import Partial
from minitl.train.clock import Clock
from minitl.train.config import Config
from minitl.train.console import say
from minitl.train.figures import best_of, columns
from minitl.train.optimisation import make_optimizer, resolved
from minitl.train.prepared_pictures import check_preprocessing
from minitl.train.run import Run
from minitl.train.run_folder import forget_earlier
from minitl.train.source import dataset_of_run
from minitl.train.trained_model import dropouts, prepare_to_train


def is_saved(folder: Path) -> bool:
    """Whether there is something to resume from."""
    return (folder / run_files.LAST).exists()


def save_epoch(run: Run) -> None:
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


def save_within_epoch(run: Run) -> None:
    """Write last.h5 in the middle of an epoch."""
    run.writer.start(functools.partial(_write_state, run.folder, _state(run)))


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


def saved_run(config: Config, folder: Path, accept_changed: bool) -> Run:
    """Return the run that a folder's last.h5 holds, as it was then; say where it continues.

    Raises UserError as `finetune.resume`.
    """
    device = get_device(config.device)
    if config.features is None:
        dataset = dataset_of_run(folder, config)
        changed = dataset.changed()
    else:
        features = FeatureFile(config.features)
        dataset = feature_runs.dataset_from_features(features)
        _require_split(folder, features, dataset)
        changed = feature_runs.changed_pictures(features)
    if changed and not accept_changed:
        raise _changed(folder, dataset, changed)
    checkpoint = hdf5.read(folder / run_files.LAST)
    if checkpoint.progress is None or checkpoint.optimizer is None:
        raise UserError(f"{folder / 'last.h5'} holds weights only, no state to resume from")
    model = from_weights_file(checkpoint, str(folder / run_files.LAST))
    check_preprocessing(
        config.preprocessing, model, folder / run_files.LAST, folder / run_files.SETTINGS
    )
    prepare_to_train(model, config)
    if config.lr is None:
        raise UserError(f"{folder / 'config.toml'} does not say the lr; write the run's back")
    optimizer = make_optimizer(model.to(device), resolved(config, model))
    average = WeightAverage(model, config.ema) if config.ema else None
    try:
        optimizer.load_state_dict(checkpoint.optimizer)
        if average is not None:
            average.load_state_dict(checkpoint.progress.get("average", {"averages": {}}))
    except ValueError:
        raise UserError(
            f"{folder / 'last.h5'} does not fit {folder / 'config.toml'}: other parameters train, or "
            "with another optimizer; write the run's own settings back"
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
    return run


def _require_split(folder: Path, features: FeatureFile, dataset: Dataset) -> None:
    """Raise UserError where a file of features, which may be another by now, has not the run's own split."""
    split = load_split(folder / run_files.SPLIT, dataset.root, missing_ok=True)
    then, now = (
        {s.path: (part, one.classes[s.label]) for part in PARTS for s in getattr(one, part)}
        for one in (split, dataset)
    )
    differing = sorted(path for path in then.keys() | now.keys() if then.get(path) != now.get(path))
    if differing or split.classes != dataset.classes:
        what = f"pictures ({listed(differing)})" if differing else "classes"
        raise UserError(
            f"{features.path} has {printable(what)} in other parts or with other labels than {folder} began "
            "with, so training would see what it is judged by; make it again with minitl features and the "
            "--seed, fractions and labels that it had, or begin anew with --overwrite"
        )


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


__all__ = ["is_saved", "save_epoch", "save_within_epoch", "saved_run"]
