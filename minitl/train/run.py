"""A run: its settings, its pictures, its network; and what computes it, in training and beforehand."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minitl import optim
from minitl.data.dataset import Dataset
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.device import Device
from minitl.models import Classifier
from minitl.train import feature_runs
from minitl.train.attack import Attack
from minitl.train.averaging import WeightAverage
from minitl.train.batches import Inputs
from minitl.train.checkpoint import Partial, Writer
from minitl.train.clock import Clock
from minitl.train.computing import prepare_device
from minitl.train.config import Config
from minitl.train.feature_cache import FeatureCache, open_cache
from minitl.train.features import frozen_stages
from minitl.train.figures import best_of
from minitl.train.forward import Forward, backbone_is_frozen, evaluation_loader
from minitl.train.mixing import mix
from minitl.train.optimisation import class_weights, stopped_early
from minitl.train.report_page import Judged
from minitl.train.step import TrainingStep


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


@contextlib.contextmanager
def computing(run: Run) -> Iterator[None]:
    """Within the block, compute as the run's settings say."""
    config = run.config
    training = not backbone_is_frozen(run.model)
    prepare_device(run.device, config.precision, config.threads, training=training)
    run.device.kernels.set_conv_algorithm(config.conv)
    with run.device.computing(config.precision):
        yield


def front(config: Config, model: Classifier) -> tuple[int, FeatureCache | None]:
    """Return how many stages are frozen, and where their features are kept."""
    if config.features is None:
        cut = frozen_stages(model)
        return cut, open_cache(config, model, cut)
    rows = feature_runs.FeatureRows(config.features)
    return feature_runs.check_weights(rows.file, model, "the settings say"), rows


def forwards(run: Run) -> tuple[Forward, Forward]:
    """Return what computes the network on the pictures for training and for validation."""
    config = run.config
    mixes = config.mixup > 0 or config.cutmix > 0
    cut, cache = front(config, run.model)
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


__all__ = ["Run", "attacked", "computing", "forwards", "front", "mixed", "training_step"]
