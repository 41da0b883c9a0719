"""Which pictures are for training, validation and test, where nobody says it: a draw within each class.

Labels are found as part -> class -> {path that the draw goes by: path relative to the dataset's root}.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

from minitl.data.dataset import Sample
from minitl.errors import UserError
from minitl.text import normal_form


def require_fractions(val: float, test: float) -> None:
    """Raise UserError unless something is left for training."""
    if not 0 <= val < 1:
        raise UserError(f"the validation fraction must be from 0 to below 1; got {val}")
    if not 0 <= test < 1 or val + test >= 1:
        raise UserError(
            f"the test fraction must be from 0, and below 1 together with the validation's; got {test}"
        )


def draw_parts(
    found: dict[str, dict[str, dict[str, str]]], val: float, test: float, seed: int
) -> tuple[str, ...]:
    """Take parts that are not there out of the training pictures; return which were drawn.

    Both come from the same order of a class's pictures, test before validation.
    """
    drawn: tuple[str, ...] = ()
    if test and "test" not in found:
        found["train"], found["test"] = _stratified(found["train"], test, seed)
        val, drawn = val / (1 - test), ("test",)
    if "val" not in found:
        found["train"], found["val"] = _stratified(found["train"], val, seed)
        drawn = (*drawn, "val")
    return drawn


def notes_on_draw(drawn: Sequence[str], said: Collection[str], seed: int) -> list[str]:
    """Say so where a part was drawn although labels say of pictures that they are for training."""
    if not drawn or "train" not in said:
        return []
    parts = " or ".join(sorted(drawn, reverse=True))
    return [f"no picture is said to be {parts}: drawn out of those of train (seed {seed})"]


def _stratified(
    by_class: Mapping[str, Mapping[str, str]], fraction: float, seed: int
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Split every class into training and validation.

    A picture's place in the draw is a hash of seed, class and path, not its turn in a shuffle: so
    neither the order of the file system nor other classes matter, and a picture that is added later
    hardly moves any other from one side to the other.
    """
    train: dict[str, dict[str, str]] = {}
    val: dict[str, dict[str, str]] = {}
    for name, paths in by_class.items():
        drawn = sorted(paths, key=lambda path: _hash(seed, name, path))
        count = round(len(drawn) * fraction)
        if fraction > 0:
            count = min(max(count, 1), len(drawn) - 1)
        val[name] = {path: paths[path] for path in drawn[:count]}
        train[name] = {path: paths[path] for path in drawn[count:]}
    return train, val


def _hash(seed: int, name: str, path: str) -> bytes:
    return hashlib.sha256(
        f"{seed}/{name}/{normal_form(path)}".encode("utf-8", "surrogateescape")
    ).digest()


def samples_of(by_class: Mapping[str, Mapping[str, str]], names: list[str]) -> list[Sample]:
    """Return the samples of a part, ordered by class and path."""
    return [
        Sample(path, label)
        for label, name in enumerate(names)
        for path in sorted(by_class.get(name, {}).values())
    ]


__all__ = ["draw_parts", "notes_on_draw", "require_fractions", "samples_of"]
