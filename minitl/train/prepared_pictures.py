"""How pictures were prepared for a network: its weights must say it, and settings must not differ."""

from pathlib import Path
from typing import Any

from minitl import models
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.models import Classifier


def load_with_preprocessing(path: Path) -> Classifier:
    """Return the network of a weights file; UserError where it does not say how pictures are prepared."""
    model = models.load_model(path)
    if not model.preprocessing:
        raise UserError(
            f"{path} does not say how pictures are prepared for it; convert it again with minitl convert, "
            "which records the preprocessing"
        )
    return model


def check_preprocessing(
    asked: dict[str, Any] | None, model: Classifier, weights: Path | str, what: Path | str
) -> None:
    """Raise UserError where `what` asks for another preprocessing than the model's; None asks for nothing."""
    if asked is None:
        return
    wanted, own = Preprocessing.from_dict(asked), Preprocessing.from_dict(model.preprocessing)
    different = [
        f"{name} {value!r} instead of {getattr(own, name)!r}"
        for name, value in vars(wanted).items()
        if value != getattr(own, name)
    ]
    if different:
        raise UserError(
            f"{what} ask for another preprocessing than {weights} was made with: "
            f"{', '.join(different)}; take [preprocessing] out of the settings to use the weights' own"
        )


__all__ = ["check_preprocessing", "load_with_preprocessing"]
