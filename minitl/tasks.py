"""What a network with several tasks says of a picture: which of its outputs mean what.

One trunk, one dense layer behind it, whose outputs belong to the tasks one after the other:

    classes    one class out of several: an output for each, softmax
    labels     any number of labels: an output for each, sigmoid
    number     a number: one output, in thirds of a standard deviation from the mean in training

What is known of a picture is a row of targets: the class's number for `classes`, 0 or 1 for each of
`labels`, the number itself for `number`; NaN where it is not known.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from minitl.errors import UserError
from minitl.text import listed, shown

KINDS = ("classes", "labels", "number")
LONGEST = 100  # characters of a name
MOST = 100  # tasks
MOST_OUTPUTS = 65536
# Of a number, in a standard deviation. So a number's loss bends with 2 / 9 of the features' square, that of
# a class or label with at most 1 / 4, and a learning rate that suits these does not blow up the other. In
# units of whole deviations the head of a frozen ResNet-18 did blow up at the usual rate, 0.01.
PER_STD = 3.0
_KEYS = ("name", "kind", "classes", "mean", "std", "weight")


class Wanted(NamedTuple):
    """A task before anything is known of its classes or numbers: what `--task` and `--task-weight` say."""

    name: str
    kind: str
    weight: float = 1.0


def parse(texts: Sequence[str], weights: Sequence[str] = ()) -> list[Wanted]:
    """Read NAME=KIND of each task, and NAME=W where one counts more or less.

    Raises UserError for what is no task, one that is there twice, and a weight that is none or of no task.
    """
    found: dict[str, Wanted] = {}
    for text in texts:
        name, _, kind = (part.strip() for part in text.rpartition("="))
        if kind not in KINDS or not 0 < len(name) <= LONGEST:
            raise UserError(
                f"--task cannot be {text!r}; give a column and what it is, such as "
                f"colour=classes, tags=labels or age=number"
            )
        if name.lower() in ("path", "part", "image"):
            raise UserError(f"--task {text}: the column {name} says which picture, and is no task")
        if name.lower() in (other.lower() for other in found):
            raise UserError(
                f"--task {text}: there is a task {name} already; each column is one task"
            )
        found[name] = Wanted(name, kind)
    if len(found) > MOST:
        raise UserError(f"--task: at most {MOST} tasks; these are {len(found)}")
    for text in weights:
        name, _, number = (part.strip() for part in text.rpartition("="))
        if name not in found:
            raise UserError(f"--task-weight {text!r}: give NAME=W with the name of a --task")
        found[name] = found[name]._replace(weight=_weight(number, text))
    return list(found.values())


def _weight(number: str, text: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not 0 < weight < math.inf:
        raise UserError(f"--task-weight {text!r}: the weight must be a positive number such as 0.5")
    return weight


@dataclass(frozen=True)
class Task:
    """One task.

    classes: the names of classes or labels in the order of the outputs; none for a number. mean, std: of a
        number in training. weight: how much its loss counts.

    Raises ValueError for a description that cannot be.
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be: descriptions come from files that others made."""
        named = isinstance(self.name, str) and self.name.strip() and len(self.name) <= LONGEST
        if not named or self.kind not in KINDS:
            raise ValueError(
                f"a task needs a name of 1 to {LONGEST} characters and one of the kinds {', '.join(KINDS)}; "
                f"got {shown(repr(self.name))} and {shown(repr(self.kind))}"
            )
        for name in self.classes:
            if not isinstance(name, str) or not name:
                raise ValueError(
                    f"the task {self.name!r} has {shown(repr(name))} among its {self.kind}; each needs a name"
                )
        if len(set(self.classes)) < len(self.classes):
            twice = Counter(self.classes).most_common(1)[0][0]
            raise ValueError(
                f"the task {self.name!r} has {shown(repr(twice))} more than once among its {self.kind}; they "
                "need different names"
            )
        least = {"classes": 2, "labels": 1, "number": 0}[self.kind]
        if len(self.classes) < least or (self.kind == "number" and self.classes):
            wanted = f"at least {least}" if least else "none, being a number"
            raise ValueError(
                f"the task {self.name!r} of kind {self.kind} cannot have {len(self.classes)} names; it needs "
                f"{wanted}"
            )
        for name in ("mean", "std", "weight"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            # Not math.isfinite: a whole number may be beyond float64.
            finite = number and abs(value) <= sys.float_info.max
            if not finite or (name != "mean" and value <= 0):
                raise ValueError(f"the task {self.name!r} cannot have the {name} {str(value)[:80]}")

    @property
    def outputs(self) -> int:
        """How many outputs of the network it has."""
        return max(len(self.classes), 1)

    @property
    def unit(self) -> float:
        """What an output of 1 stands for, in a number's own unit."""
        return self.std / PER_STD

    @property
    def columns(self) -> int:
        """How many columns of a row of targets it has."""
        return len(self.classes) if self.kind == "labels" else 1

    def in_words(self) -> str:
        """Return what it is: "classes cat, dog", or "number, 3.2 +- 1.1 in training"."""
        if self.kind == "number":
            return f"number, {self.mean:.4g} +- {self.std:.2g} in training"
        return f"{self.kind} {listed(self.classes, 10)}"

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, without what does not apply."""
        described: dict[str, Any] = {"name": self.name, "kind": self.kind, "weight": self.weight}
        if self.kind == "number":
            return described | {"mean": self.mean, "std": self.std}
        return described | {"classes": list(self.classes)}


def from_dicts(described: Any) -> tuple[Task, ...]:
    """Return the tasks that `Task.to_dict` described. Raises ValueError for what describes none."""
    if not isinstance(described, list | tuple) or not 0 < len(described) <= MOST:
        got = len(described) if isinstance(described, list | tuple) else shown(repr(described))
        raise ValueError(f"tasks must be a list of 1 to {MOST} descriptions, not {got}")
    tasks = []
    for one in described:
        if (
            not isinstance(one, dict)
            or not one.keys() <= set(_KEYS)
            or not {"name", "kind"} <= one.keys()
        ):
            raise ValueError(
                f"a task is described by name, kind and perhaps {', '.join(_KEYS[2:])}, not by "
                f"{shown(repr(one))}"
            )
        classes = one.get("classes", [])
        if not isinstance(classes, list | tuple):
            raise ValueError(
                f"the classes of the task {shown(repr(one['name']))} must be a list of names, not "
                f"{shown(repr(classes))}"
            )
        tasks.append(Task(**one | {"classes": tuple(classes)}))
    name, times = Counter(task.name for task in tasks).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{times} tasks have the same name, {name!r}")
    if (outputs := sum(task.outputs for task in tasks)) > MOST_OUTPUTS:
        raise ValueError(f"the tasks have {outputs:,} outputs; at most {MOST_OUTPUTS:,} can be")
    return tuple(tasks)


def output_names(tasks: Iterable[Task]) -> list[str]:
    """Return a name for each output: "kind: cat", "kind: dog", "age"."""
    return [
        f"{task.name}: {name}" if name else task.name
        for task in tasks
        for name in task.classes or ("",)
    ]


def output_slices(tasks: Sequence[Task]) -> list[slice]:
    """Return where each task's outputs are in a row of the network's."""
    return _slices([task.outputs for task in tasks])


def target_slices(tasks: Sequence[Task]) -> list[slice]:
    """Return where each task's columns are in a row of targets."""
    return _slices([task.columns for task in tasks])


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


__all__ = [
    "KINDS",
    "Task",
    "Wanted",
    "from_dicts",
    "output_names",
    "output_slices",
    "parse",
    "target_slices",
]
