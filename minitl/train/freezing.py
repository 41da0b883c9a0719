"""Which parameters train: the words of `--freeze`."""

from minitl.errors import UserError
from minitl.models import Classifier


def apply_freeze(model: Classifier, words: tuple[str, ...]) -> list[str]:
    """Freeze what the words name and return the names of the frozen parameters.

    "none" freezes nothing and "backbone" everything but the head; any other word is a name or
    pattern for `Module.freeze`. Raises UserError for a word that names nothing, for "none" beside
    other words, or if nothing is left to train.
    """
    model.unfreeze()
    if "none" in words:
        if len(words) > 1:
            raise UserError(f"--freeze none contradicts the others in: {' '.join(words)}; drop one")
        return []
    frozen: dict[str, None] = {}
    for word in words:
        if word == "backbone":
            patterns = list(model.backbone_parameters())
        else:
            patterns = [word]
        try:
            frozen |= dict.fromkeys(model.freeze(*patterns))
        except ValueError as error:
            raise UserError(f"--freeze {error}; or use the words backbone, none") from None
    if all(not parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--freeze {' '.join(words)} leaves nothing to train; leave out a part")
    return list(frozen)
