"""Settings that cannot be meant together: refused with the reason, rather than one of them ignored."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from minitl.errors import UserError
from minitl.tasks import parse
from minitl.train.options import as_given, option

if TYPE_CHECKING:
    from minitl.train.config import Config


class Idle(NamedTuple):
    """When an option has an effect; why it has none otherwise, and what to do, as the end of a sentence."""

    has_effect: Callable[["Config"], bool]
    why: str


_UNFREEZING = Idle(
    lambda c: not c.unfreeze_schedule,
    "has no effect with --unfreeze-schedule, which freezes the rest; leave one of them out",
)
_UNVARIED = Idle(
    lambda c: c.augment,
    "has no effect with --no-augment, which leaves pictures as they are; leave one of them out",
)
_OF_SGD = Idle(
    lambda c: c.optimizer == "sgd",
    "has no effect with --optimizer {optimizer}, only with --optimizer sgd; leave one of them out",
)

# Of options that were given. Words in braces are settings.
IDLE: dict[str, Idle] = {
    "from_scratch": Idle(
        lambda c: c.weights is not None, "takes the network of --weights; give these as well"
    ),
    "patience": Idle(
        lambda c: c.patience is None or c.patience < c.epochs,
        "never ends a run of {epochs} epochs; give more --epochs or a smaller --patience",
    ),
    "momentum": _OF_SGD,
    "nesterov": _OF_SGD,
    "gamma": Idle(
        lambda c: c.schedule in ("step", "exponential", "plateau"),
        "has no effect with --schedule {schedule}, only with step, exponential and plateau; choose one of "
        "these, or leave it out",
    ),
    "step_epochs": Idle(
        lambda c: c.schedule == "step",
        "has no effect with --schedule {schedule}, only with --schedule step; leave one of them out",
    ),
    "plateau_patience": Idle(
        lambda c: c.schedule == "plateau",
        "has no effect with --schedule {schedule}, only with --schedule plateau; leave one of them out",
    ),
    "warmup_steps": Idle(
        lambda c: c.schedule != "one-cycle",
        "has no effect with --schedule one-cycle, which warms up by itself; leave one of them out",
    ),
    "freeze": _UNFREEZING,
    "freeze_until": _UNFREEZING,
    "follow_links": Idle(
        lambda c: not c.follow_links or c.labels is None,
        "has no effect with --labels, whose pictures are taken wherever links lead; leave it out",
    ),
    **dict.fromkeys(
        ("flip", "crop_scale", "vertical_flip", "rotation", "shear", "zoom"), _UNVARIED
    ),
    **dict.fromkeys(("color_jitter", "erase", "policy"), _UNVARIED),
}

# What a run on features cannot be told: the file says it, or there are no pictures to do it with.
_BROUGHT = (
    *("data", "arch", "from_scratch", "labels", "label_from_name", "task", "task_weight"),
    *(
        "follow_links",
        "val_fraction",
        "test_fraction",
        "freeze",
        "freeze_until",
        "unfreeze_schedule",
        "skip_bad",
    ),
    *("feature_cache", "cached_views", "flip", "crop_scale", "vertical_flip", "rotation", "shear"),
    *("zoom", "color_jitter", "erase", "policy", "mixup", "cutmix", "adversarial"),
)


def refuse_brought(given: dict[str, Any], by: str) -> None:
    """Raise UserError for an option that was given and cannot work on features. by: what brings them."""
    brought = "its own pictures, as they are, their labels and parts, and frozen layers"
    refuse_given(given, _BROUGHT, f"{by} brings {brought}")
    if given.get("augment"):
        raise UserError(f"{by} brings pictures as they are; leave --augment out")


def refuse_given(given: Mapping[str, Any], names: Iterable[str], reason: str) -> None:
    """Raise UserError, with the reason, for the first of some options that was given."""
    for name in names:
        if name in given:
            raise UserError(f"{reason}; leave {option(name, given[name])} out")


def refuse_idle(config: "Config", given: Mapping[str, Any]) -> None:
    """Raise UserError for an option that was given and would have no effect."""
    for name, value in given.items():
        idle = IDLE.get(name)
        if idle is not None and not idle.has_effect(config):
            raise UserError(f"{as_given(name, value)} {idle.why.format_map(vars(config))}")


def refuse_contradictions(config: "Config") -> None:
    """Raise UserError for settings that cannot work together, wherever they come from."""
    if config.nesterov and config.momentum == 0:
        raise UserError(
            "Nesterov's momentum (--nesterov, or what --config or --demo brings) needs a --momentum above 0; "
            "give one, or leave it out"
        )
    frozen = config.freeze != ("none",) or config.freeze_until or config.unfreeze_schedule
    random = config.from_scratch or (config.weights is None and config.arch is not None)
    if frozen and random:
        freezing = "freeze" if config.freeze != ("none",) else "freeze_until"
        freezing = "unfreeze_schedule" if config.unfreeze_schedule else freezing
        scratch = "--from-scratch" if config.from_scratch else "--arch without --weights"
        raise UserError(
            f"{option(freezing)} keeps layers as they are, and {scratch} makes them random: they would "
            "never learn anything; leave one of them out"
        )
    if config.class_weights == config.sampler == "balanced":
        raise UserError(
            "--class-weights balanced and --sampler balanced together count rare classes twice; "
            "choose one of them"
        )
    if config.labels is not None and config.label_from_name is not None:
        raise UserError("--labels and --label-from-name both say the labels; give one of them")
    if config.task or config.task_weight:
        reason = _against_tasks(config)
        if reason:
            raise UserError(f"--task takes labels from a table's columns, and {reason}")
    if config.cached_views:
        reason = _against_views(config)
        if reason:
            raise UserError(f"--cached-views keeps varied pictures' features, and {reason}")
    if config.features is not None and (config.mixup or config.cutmix):
        raise UserError(
            "--mixup and --cutmix mix pictures, and --features brings none; leave them out"
        )
    if config.adversarial is not None:
        reason = _against_attacks(config)
        if reason:
            raise UserError(f"--adversarial changes pictures in each step, and {reason}")


def _against_tasks(config: "Config") -> str:
    """Say what stands against several tasks, if anything does."""
    if config.labels is None:
        return "there is none: give --labels FILE.csv"
    if not config.task:
        return "--task-weight alone names none; give --task NAME=KIND as well"
    if config.class_weights != "none" or config.sampler != "shuffle":
        which = "--class-weights" if config.class_weights != "none" else "--sampler"
        return f"{which} balances the classes of one task alone; leave it out, see --task-weight"
    if config.label_smoothing and not any(one.kind == "classes" for one in parse(config.task)):
        return (
            "--label-smoothing spreads a class over others, and no --task has classes; leave it out"
        )
    if config.features is not None:
        return "--features brings labels of its own; leave it out, frozen features are kept anyway"
    if config.adversarial is not None:
        return "--adversarial attacks the prediction of one class; leave it out"
    if config.device != "cpu" and (config.mixup or config.cutmix):
        which = "--mixup" if config.mixup else "--cutmix"
        return f"their loss is computed on the CPU, where {which} on a GPU does not reach; leave it out"
    return ""


def _against_attacks(config: "Config") -> str:
    """Say what stands against training on attacked pictures, if anything does."""
    if config.features is not None or config.cached_views:
        which = "--features" if config.features is not None else "--cached-views"
        return f"{which} trains on features that were computed before; leave it out"
    frozen = config.freeze != ("none",) or config.freeze_until or config.unfreeze_schedule
    if frozen and not config.augment:
        return (
            "with frozen layers and --no-augment features are computed once; leave out --no-augment"
        )
    return ""


def _against_views(config: "Config") -> str:
    """Say what stands against keeping variations of pictures, if anything does."""
    if not config.augment:
        return (
            "with --no-augment there is one variation, which is kept anyway; leave one of them out"
        )
    if config.feature_cache == "off":
        return "--no-feature-cache keeps none; leave one of them out"
    if config.mixup or config.cutmix:
        return "--mixup and --cutmix blend pictures anew each time; leave out --cached-views"
    return ""


__all__ = ["refuse_brought", "refuse_contradictions", "refuse_given", "refuse_idle"]
