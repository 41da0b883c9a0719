"""Learning rates of their own for parts of a network: what `--lr-for` and `--lr-head` say."""

import math
from collections.abc import Sequence

from minitl.errors import UserError
from minitl.models import Classifier
from minitl.train.freezing import part_words


def parse_rates(entries: Sequence[str]) -> list[tuple[str, float]]:
    """Read ("head=0.01", "layer4*=0.0001") as parts and their rates.

    Raises UserError for what is no such entry.
    """
    found = []
    for entry in entries:
        part, equals, text = (word.strip() for word in entry.rpartition("="))
        try:
            rate = float(text)
        except ValueError:
            rate = 0.0
        if not equals or not part:
            raise UserError(
                f"--lr-for cannot be {entry!r}; give a part and its rate, such as layer4=0.0001"
            )
        if not 0 < rate < math.inf:
            option = f"--lr-head cannot be {text}" if part == "head" else f"--lr-for {entry!r}"
            raise UserError(f"{option}: the rate must be a positive number such as 0.01")
        found.append((part, rate))
    return found


def own_rates(model: Classifier, entries: Sequence[str]) -> dict[str, float]:
    """Return the rate of each parameter that has its own, by name; of several entries the last counts.

    Parts are names or patterns as for `Module.freeze`, or the words head and backbone. Raises UserError for
    a part that the model does not have, or that does not train.
    """
    rates: dict[str, float] = {}
    words = part_words(model)
    for part, rate in parse_rates(entries):
        try:
            inside = model.parameters_named(*words.get(part, [part]))
        except ValueError as error:
            raise UserError(f"--lr-for {error}; or head, backbone") from None
        if not any(parameter.requires_grad for parameter in inside.values()):
            raise UserError(f"--lr-for {part}={rate:g} has no effect here: {part} never trains")
        rates |= dict.fromkeys(inside, rate)
    return rates


__all__ = ["own_rates", "parse_rates"]
