"""The network that a run trains: loaded or fresh, with its new head, its dropout and what is frozen."""

import numpy as np

from minitl import models, nn
from minitl.convert.locate import find_weights
from minitl.data.dataset import Dataset
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.models import Classifier
from minitl.train.config import Config
from minitl.train.console import say
from minitl.train.features import frozen_stages
from minitl.train.forward import backbone_is_frozen
from minitl.train.freezing import apply_freeze, parts_table, refuse_untrained_head
from minitl.train.heads import replace_head
from minitl.train.options import as_given
from minitl.train.prepared_pictures import check_preprocessing, load_with_preprocessing
from minitl.train.rates import own_rates, parse_rates
from minitl.train.step import statistics_note
from minitl.train.unfreezing import parse_unfreezing, unfreeze_for

_DROPOUT = 3  # what a random stream is for, see data/loader.py


def make_model(config: Config, dataset: Dataset) -> Classifier:
    """Return the network that a run with these settings trains; what never trains is frozen."""
    classes = len(dataset.classes)
    if config.weights is None:
        if config.arch is None:
            raise UserError("give --weights FILE.h5, or --arch NAME to train from scratch")
        try:
            model = models.create(config.arch, num_classes=classes, seed=config.seed)
        except ValueError as error:
            raise UserError(f"--arch: {error}") from None
        if config.preprocessing is not None:
            model.preprocessing = Preprocessing.from_dict(config.preprocessing).to_dict()
        say(f"{model.arch}, from scratch (seed {config.seed})")
        replace_head(model, config.head, classes, config.seed, fresh=True)
    else:
        model = _load(config.weights, config.arch)
        check_preprocessing(config.preprocessing, model, config.weights, "the settings")
        if config.from_scratch:
            preprocessing = model.preprocessing
            options = {n: v for n, v in model.arch_options.items() if n != "tasks"}
            model = models.create(model.arch, num_classes=classes, seed=config.seed, **options)
            model.preprocessing = preprocessing
            replace_head(model, config.head, classes, config.seed, fresh=True)
            say(f"{model.arch} as in {config.weights}, but from scratch (seed {config.seed})")
        else:
            say(
                f"{model.arch} from {config.weights}; its head for {model.num_classes} classes is "
                f"replaced by a new one for {f'{len(dataset.tasks)} tasks' if dataset.tasks else classes} "
                f"(seed {config.seed})"
            )
            replace_head(model, config.head, classes, config.seed)
    model.class_names = list(dataset.classes)
    if dataset.tasks:
        model.set_tasks(dataset.tasks)
    prepare_to_train(model, config)
    refuse_untrained_head(model)
    _refuse_idle_here(model, config)
    return model


def _refuse_idle_here(model: Classifier, config: Config) -> None:
    """Raise UserError for a setting that would have no effect with what trains in this network."""
    if config.layer_decay != 1 and backbone_is_frozen(model):
        raise UserError("--layer-decay has no effect here: only the head trains; see --lr")
    own_rates(model, config.lr_for)
    if not frozen_stages(model):
        for name in ("cached_views", "feature_cache"):
            value = getattr(config, name)
            if value != getattr(Config, name):
                raise UserError(
                    f"{as_given(name, value)} has no effect here: it needs frozen layers at the front, as by "
                    "--freeze backbone or --freeze-until"
                )


def prepare_to_train(model: Classifier, config: Config) -> None:
    """Add dropout before the head, seed all dropout, and freeze what never trains."""
    if config.dropout:
        model.drop_before_head(config.dropout)
    for number, (_, layer) in enumerate(dropouts(model)):
        # Streams of their own: with equal seeds, layers of equal size would drop the same places.
        sequence = np.random.SeedSequence(config.seed, spawn_key=(_DROPOUT, number))
        layer.seed = int(sequence.generate_state(1, np.uint64)[0])
    if config.unfreeze_schedule:
        late = [
            f"{p}:{e}" for p, e in parse_unfreezing(config.unfreeze_schedule) if e >= config.epochs
        ]
        if late:
            raise UserError(
                f"--unfreeze-schedule: {', '.join(late)} would never happen in {config.epochs} epochs "
                "(they are counted from 0); leave it out, or give more --epochs"
            )
        unfreeze_for(model, config.unfreeze_schedule, config.epochs)
    else:
        apply_freeze(model, config.freeze, config.freeze_until)


def _load(weights: str, arch: str | None) -> Classifier:
    model = load_with_preprocessing(find_weights(weights, say))
    if arch is not None and arch != model.arch:
        raise UserError(f"{weights} holds a {model.arch}, not a {arch}; leave out --arch")
    return model


def dropouts(model: Classifier) -> list[tuple[str, nn.Dropout]]:
    """Return the layers that draw random numbers in training."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Dropout)]


def say_model(model: Classifier, config: Config) -> None:
    """Say what trains, how, and where."""
    trained = sum(p.data.size for p in model.parameters() if p.requires_grad)
    total = sum(p.data.size for p in model.parameters())
    say(f"  training {trained:,} of {total:,} parameters")
    if config.unfreeze_schedule:
        say(f"  beginning in epoch (from 0): {', '.join(config.unfreeze_schedule)}")
    for line in parts_table(model) if trained < total else ():
        say(f"  {line}")
    how = f"momentum {config.momentum:g}" if config.optimizer == "sgd" else config.optimizer
    say(
        f"  {config.epochs} epochs, batch {config.batch_size}, learning rate {config.lr:g} "
        f"({config.schedule}), {how}, weight decay {config.weight_decay:g}"
    )
    if config.lr_for:
        own = (f"{part} {rate:g}" for part, rate in parse_rates(config.lr_for))
        say(f"  learning rates of their own: {', '.join(own)}")
    if config.micro_batch is not None and config.micro_batch < config.batch_size:
        say(f"  at most {config.micro_batch} pictures at a time{statistics_note(model)}")
    if config.device != "cpu":
        say(f"  computing on {config.device} in {config.precision}")
