"""What people call the parts of their data, and a place for what is wrong with its layout."""

from typing import NamedTuple

from minitl.errors import UserError

PARTS = ("train", "val", "test")
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_ENDINGS = ("", "set", "data", "images")


def part_of(name: str) -> str:
    """Return the part that a name stands for, "" for none: Training, VALID and test_set are names too."""
    word = "".join(character for character in name.casefold() if character not in " _-.")
    found = (_WORDS.get(word.removesuffix(ending)) for ending in _ENDINGS)
    return next(filter(None, found), "")


class Problem(NamedTuple):
    """Why a folder or table is no dataset to train on. kind: a short name, stable for programs."""

    kind: str
    message: str


def object_to(problems: list[Problem] | None, kind: str, message: str) -> None:
    """Raise UserError; where problems are gathered, add one instead and let the caller go on."""
    if problems is None:
        raise UserError(message)
    problems.append(Problem(kind, message))


__all__ = ["PARTS", "Problem", "object_to", "part_of"]
