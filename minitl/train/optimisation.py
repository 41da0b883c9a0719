"""How a run's parameters are updated: which optimizer, at what rate for which part, along which schedule."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from minitl import nn, optim
from minitl.data.dataset import Dataset
from minitl.errors import UserError
from minitl.models import Classifier
from minitl.tensor import Tensor
from minitl.train.config import Config
from minitl.train.forward import backbone_is_frozen
from minitl.train.rates import own_rates

# (all layers together, the head alone). All together: more destroys what pretraining learned.
LR = {"sgd": (0.001, 0.01), "adam": (1e-4, 1e-3), "adamw": (1e-4, 1e-3)}
WEIGHT_DECAY = {"sgd": 1e-4, "adam": 0.0, "adamw": 0.01}  # the last two: PyTorch's
GAMMA = {"step": 0.1, "exponential": 0.9, "plateau": 0.1}


def resolved(config: Config, model: Classifier) -> Config:
    """Fill in what depends on the optimizer, the schedule and on which parts train."""
    return dataclasses.replace(
        config,
        lr=config.lr or LR[config.optimizer][backbone_is_frozen(model)],
        weight_decay=WEIGHT_DECAY[config.optimizer]
        if config.weight_decay is None
        else config.weight_decay,
        gamma=config.gamma or GAMMA.get(config.schedule),
    )


def make_schedule(
    config: Config, steps: int, val_losses: Sequence[float] = (), total: int | None = None
) -> optim.Schedule:
    """Return the factor on the learning rate as a function of the step; an epoch has `steps`.

    val_losses: of the finished epochs, for "plateau", which is made anew for each epoch. total: steps of
    the run, where it is not that of all epochs.

    Raises UserError for a warm-up that is as long as the run.
    """
    total = config.epochs * steps if total is None else total
    warmup = config.warmup_steps
    if warmup >= total:
        raise UserError(f"--warmup-steps {warmup} is not less than the {total} steps of the run")
    if config.schedule == "cosine":
        return optim.cosine(total, warmup_steps=warmup)
    if config.schedule == "one-cycle":
        return optim.one_cycle(total)
    if config.schedule == "constant":
        schedule = optim.constant()
    elif config.schedule == "plateau":
        assert config.gamma is not None
        factor = optim.plateau(val_losses, gamma=config.gamma, patience=config.plateau_patience)
        schedule = lambda step: factor  # noqa: E731
    else:
        assert config.gamma is not None
        by_epoch = (
            optim.step_decay(config.step_epochs, config.gamma)
            if config.schedule == "step"
            else optim.exponential(config.gamma)
        )
        schedule = lambda step: by_epoch(step // steps)  # noqa: E731
    return optim.warmed_up(schedule, warmup) if warmup else schedule


def make_optimizer(model: Classifier, config: Config) -> optim.Optimizer:
    """Return the optimizer of all parameters that require a gradient now."""
    assert config.lr is not None
    assert config.weight_decay is not None
    params = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return optim.SGD(
            params,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
    kind = optim.Adam if config.optimizer == "adam" else optim.AdamW
    return kind(params, lr=config.lr, weight_decay=config.weight_decay)


def parameter_groups(model: Classifier, config: Config) -> list[optim.Group]:
    """Gather parameters with the same learning rate and weight decay; model order is kept.

    Without --decay-norms, parameters of one axis (biases, scales and shifts of normalisations) have no
    weight decay: pulling them to zero does not simplify the network. With --layer-decay X the n-th part
    below the head learns at X**n times its rate; --lr-for and --lr-head set the rate of some parts alone.
    """
    assert config.lr is not None
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    depths, own = depth_of_parameters(model), own_rates(model, config.lr_for)
    deepest = max(depths.values())
    for name, parameter in model.named_parameters():
        lr = own.get(name, config.lr * config.layer_decay ** (deepest - depths[name]))
        decays = config.decay_norms or parameter.ndim > 1
        groups.setdefault((lr, decays), []).append(parameter)
    return [
        {"params": parameters, "lr": lr} | ({} if decays else {"weight_decay": 0.0})
        for (lr, decays), parameters in groups.items()
    ]


def depth_of_parameters(model: Classifier) -> dict[str, int]:
    """Return for each parameter how many parts of the network come before its own; the head's is largest.

    A part is a block of a sequence ("layer1.0"), or what stands alone ("conv1"); a normalisation belongs to
    what it follows.
    """
    modules = dict(model.named_modules())
    heads = tuple(f"{name}." for name in model.heads)
    depths: dict[str, int] = {}
    depth, before = -1, ""
    for name, _ in model.named_parameters():
        if name.startswith(heads):
            continue
        first, *rest = name.split(".")
        part = f"{first}.{rest[0]}" if isinstance(modules[first], nn.Sequential) else first
        if part != before and not (isinstance(modules[part], nn.BatchNorm2d) and before):
            depth += 1
        depths[name], before = depth, part
    return {name: depths.get(name, depth + 1) for name, _ in model.named_parameters()}


def class_weights(config: Config, dataset: Dataset) -> np.ndarray | None:
    """Return what each class counts in the loss, float32 (K,), or None: all the same.

    "balanced": inversely to its number of pictures, so that every class counts alike in all; 1 on
    average over the pictures.
    """
    if config.class_weights == "none":
        return None
    counts = np.array(dataset.counts("train"), np.float64)
    weights: np.ndarray = (counts.sum() / (len(counts) * counts)).astype(np.float32)
    return weights


def stopped_early(config: Config, history: Sequence[dict[str, float]], best: float) -> bool:
    """Whether validation has not been better than in epoch `best` for --patience epochs."""
    return config.patience is not None and len(history) - best >= config.patience


__all__ = [
    "class_weights",
    "depth_of_parameters",
    "make_optimizer",
    "make_schedule",
    "parameter_groups",
    "resolved",
    "stopped_early",
]
