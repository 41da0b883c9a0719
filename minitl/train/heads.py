"""The kinds of heads that `--head` asks for: "linear", "mlp:1024,512", "flat:1024"."""

import re

from minitl.errors import UserError
from minitl.models import Classifier


def parse_head(text: str) -> tuple[bool, tuple[int, ...]]:
    """Return whether the head takes the flattened map of the last convolution, and its hidden widths.

    Raises UserError for what is no head.
    """
    match = re.fullmatch(r"linear|(mlp|flat):(\d{1,5}(?:,\d{1,5})*)", text)
    widths = tuple(int(width) for width in match[2].split(",")) if match and match[2] else ()
    if match is None or 0 in widths or len(widths) > 8:
        raise UserError(
            f"--head cannot be {text}; give linear, mlp:1024, mlp:1024,512 or, for a vgg, flat:1024"
        )
    return match[1] == "flat", widths


def replace_head(
    model: Classifier, head: str, classes: int, seed: int, *, fresh: bool = False
) -> None:
    """Put a new head of this kind in place of the model's.

    fresh: the model was made for these classes just now; a linear head that it has is kept.

    Raises UserError for a kind that the network cannot have.
    """
    flat, hidden = parse_head(head)
    if fresh and not flat and not hidden and "head" not in model.arch_options:
        return
    try:
        if flat:
            model.flatten_before_head()
        model.replace_head(classes, seed=seed, hidden=hidden)
    except ValueError as error:
        raise UserError(f"--head {head}: {error}") from None


__all__ = ["parse_head", "replace_head"]
