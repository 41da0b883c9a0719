"""Ways of fine-tuning that have proved themselves, as settings by name; every one can be overridden.

all-layers     everything trains, gently: pictures that differ from those of the pretraining, and some
               hundred of them for each class
frozen-mlp     the network as it is, a dense layer of 1024 on its features: few pictures, much varied
frozen-vgg     the same on the flattened last map of a VGG, computed once
adamw-steps    everything trains with AdamW at a rate that falls in steps, with dropout, and stops when
               it no longer gets better; says how good the network was before
"""

from typing import Any

from minitl.errors import UserError

RECIPES: dict[str, dict[str, Any]] = {
    "all-layers": {"optimizer": "sgd", "momentum": 0.9, "lr": 0.001},
    "frozen-mlp": {
        "freeze": ("backbone",),
        "head": "mlp:1024",
        "optimizer": "adam",
        "lr": 1e-4,
        "schedule": "constant",
        "shear": 10.0,
        "zoom": 0.2,
    },
    "frozen-vgg": {
        "freeze": ("backbone",),
        "head": "flat:1024",
        "optimizer": "adam",
        "lr": 1e-4,
        "schedule": "constant",
        "augment": False,
    },
    "adamw-steps": {
        "optimizer": "adamw",
        "lr": 3e-4,
        "weight_decay": 0.01,
        "schedule": "step",
        "step_epochs": 7,
        "gamma": 0.1,
        "dropout": 0.3,
        "epochs": 20,
        "patience": 5,
        "compare_before": True,
    },
}
_VARIATIONS = (
    *("rotation", "shear", "zoom", "crop_scale", "erase", "policy"),
    *("color_jitter", "vertical_flip", "flip"),
)
# An option that is given takes these with it, of a recipe or of an earlier run's settings: they were meant
# for what it replaces.
BELONGING = {
    "optimizer": ("lr", "lr_for", "momentum", "nesterov", "weight_decay"),
    "schedule": ("gamma", "step_epochs", "plateau_patience"),
    "unfreeze_schedule": ("freeze", "freeze_until"),
    "freeze": ("unfreeze_schedule",),
    "freeze_until": ("unfreeze_schedule",),
    **dict.fromkeys(_VARIATIONS, ("augment",)),
    "augment": (*_VARIATIONS, "cached_views"),
    "cached_views": ("mixup", "cutmix", "adversarial"),
    **dict.fromkeys(("mixup", "cutmix", "adversarial"), ("cached_views",)),
    "labels": ("label_from_name",),
    "label_from_name": ("labels", "task", "task_weight"),
    "features": (
        *("from_scratch", "freeze_until", "unfreeze_schedule", "cached_views"),
        *("mixup", "cutmix", "adversarial", "labels", "label_from_name", "task", "task_weight"),
    ),
}


def settings_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's settings, less those that the given options make pointless.

    Raises UserError for an unknown name.
    """
    if name not in RECIPES:
        raise UserError(f"--recipe cannot be {name}; choose one of {', '.join(RECIPES)}")
    return less_pointless(RECIPES[name], given)


def less_pointless(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return settings to start from, less those that the given options make pointless."""
    pointless = {
        other
        for option, others in BELONGING.items()
        if option in given and given[option] != settings.get(option)
        for other in others
    }
    if given.get("feature_cache") == "off":  # another folder leaves the views as they are
        pointless.add("cached_views")
    return {option: value for option, value in settings.items() if option not in pointless}


__all__ = ["RECIPES", "less_pointless", "settings_of"]
