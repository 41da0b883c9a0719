"""Which parameters train: the words of `--freeze` and `--freeze-until`, and a table of the outcome."""

from minitl import nn
from minitl.errors import UserError
from minitl.models import Classifier


def part_words(model: Classifier) -> dict[str, list[str]]:
    """Return the words for parts of any network, and what each names in this one."""
    return {"head": list(model.heads), "backbone": list(model.backbone_parameters())}


def apply_freeze(model: Classifier, words: tuple[str, ...], until: str | None = None) -> list[str]:
    """Freeze what the words name and return the names of the frozen parameters.

    "none" freezes nothing and "backbone" everything but the head; any other word is a name or
    pattern for `Module.freeze`. until: a part such as "layer3"; everything that comes before it in the
    network is frozen as well. Raises UserError for a word that names nothing, for "none" beside other
    words, or if nothing is left to train.
    """
    model.unfreeze()
    if "none" in words and len(words) > 1:
        raise UserError(f"--freeze none contradicts the others in: {' '.join(words)}; drop one")
    if "head" in words:
        raise UserError(
            "--freeze head: the head is new and has to learn what the classes are; freeze other parts, or "
            "train the head alone with --freeze backbone"
        )
    frozen: dict[str, None] = {}
    for word in words if "none" not in words else ():
        inside = part_words(model).get(word, [word])
        try:
            # A network may be a head alone; no names would mean all.
            frozen |= dict.fromkeys(model.freeze(*inside) if inside else ())
        except ValueError as error:
            raise UserError(f"--freeze {error}; or use the words backbone, none") from None
    before = [] if until is None else _before(model, until)
    if before:
        frozen |= dict.fromkeys(model.freeze(*before))
    if all(not parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--freeze {' '.join(words)} leaves nothing to train; leave out a part")
    return list(frozen)


def refuse_untrained_head(model: Classifier) -> None:
    """Raise UserError where the head never trains: it is new, and random."""
    inside = model.parameters_named(model.head_name).values()
    if not any(parameter.requires_grad for parameter in inside):
        raise UserError(
            f"the head, {model.head_name}, never trains with these --freeze or --unfreeze-schedule, and it "
            "is new: its weights are random; leave it out of --freeze, or begin --unfreeze-schedule with "
            "head:0"
        )


def _before(model: Classifier, part: str) -> list[str]:
    """Return the names of the parameters that come before a part, in the order of the network."""
    names = [name for name, _ in model.named_parameters()]
    for number, name in enumerate(names):
        if name == part or name.startswith(f"{part}."):
            if number == 0:
                raise UserError(
                    f"--freeze-until {part}: nothing comes before it; leave it out to train everything"
                )
            return names[:number]
    tops = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
    raise UserError(f"--freeze-until {part}: this model has no such part; its parts are: {tops}")


def parts_table(model: Classifier) -> list[str]:
    """Say in lines which parts train, which are frozen, and whose statistics move in training.

    A part that is frozen in part is shown with what it consists of.
    """
    rows = [("part", "parameters", "", "statistics")]
    rows += _rows(model, "", depth=0)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        f"  {part:<{widths[0]}}  {count:>{widths[1]}}  {state:<{widths[2]}}  {statistics}".rstrip()
        for part, count, state, statistics in rows
    ]


def _rows(module: nn.Module, prefix: str, depth: int) -> list[tuple[str, str, str, str]]:
    rows = []
    modules = dict(module.named_modules())
    for top in dict.fromkeys(name.split(".")[0] for name, _ in module.named_parameters()):
        inside = (f"{top}.",)
        own = [p for n, p in module.named_parameters() if n == top or n.startswith(inside)]
        trains = [p.requires_grad for p in own]
        part = modules.get(top)
        if part is not None and any(trains) and not all(trains) and depth < 3:
            rows += _rows(part, f"{prefix}{top}.", depth + 1)
            continue
        count = sum(p.data.size for p in own)
        state = "trains" if all(trains) else "partly" if any(trains) else "frozen"
        rows.append((f"{prefix}{top}", f"{count:,}", state, _statistics(part)))
    return rows


def _statistics(part: nn.Module | None) -> str:
    """Say whether the running statistics inside a part move in training."""
    modules = [] if part is None else [module for _, module in part.named_modules()]
    fixed = {module.frozen for module in modules if isinstance(module, nn.BatchNorm2d)}
    return {(): "", (True,): "fixed", (False,): "move"}.get(tuple(fixed), "some fixed, some move")


__all__ = ["apply_freeze", "part_words", "parts_table", "refuse_untrained_head"]
