"""Gradual unfreezing: the head trains first, what is below it joins epoch by epoch.

(Howard, Ruder: "Universal language model fine-tuning for text classification", 2018.)
"""

from minitl.errors import UserError
from minitl.models import Classifier
from minitl.train.freezing import part_words


def parse_unfreezing(schedule: tuple[str, ...]) -> list[tuple[str, int]]:
    """Read ("fc:0", "layer4:2") as parts and the epoch, from 0, in which each begins to train.

    Raises UserError for what is no such list, or where nothing trains in epoch 0.
    """
    steps = []
    for entry in schedule:
        part, colon, epoch = entry.rpartition(":")
        if not colon or not part or not epoch.isdecimal():
            raise UserError(
                f"--unfreeze-schedule: {entry!r} is not PART:EPOCH, such as fc:0,layer4:2"
            )
        steps.append((part, int(epoch)))
    if all(epoch > 0 for _, epoch in steps):
        raise UserError("--unfreeze-schedule: nothing trains in epoch 0; begin with head:0")
    return steps


def unfreeze_for(model: Classifier, schedule: tuple[str, ...], epoch: int) -> None:
    """Let train what the schedule has reached by this epoch, counted from 0, and nothing else.

    Parts are names or patterns as for `Module.freeze`, or the words head and backbone. Raises UserError
    for a part that the model does not have.
    """
    words = part_words(model)
    model.freeze()
    for part, start in parse_unfreezing(schedule):
        inside = words.get(part, [part])
        try:
            if start <= epoch and inside:  # no names would mean all
                model.unfreeze(*inside)
        except ValueError as error:
            raise UserError(f"--unfreeze-schedule: {error}; or head, backbone") from None


__all__ = ["parse_unfreezing", "unfreeze_for"]
