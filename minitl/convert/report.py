"""What became of each name in a conversion."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minitl.errors import WeightsFileError
from minitl.text import near_miss, shown

_MAX_ROWS = 40
_MAX_GUESSES = 10
Shape = tuple[int, ...]


@dataclass
class Report:
    """Names of a checkpoint against the names and shapes that a network expects.

    title: what was compared. matched: in the network's order. missing: the network has them, the file
    not. unexpected: the other way round. misshapen: name -> (shape in the file, shape expected).
    ignored: name -> why it plays no part. reinitialised: those that get new values, not the file's.
    notes: lines for the reader.
    arch, arch_options: the network. classes: their number and names, in words. preprocessing: what the
    weights file says, and preprocessing_from why. target: the weights file, written: whether it was.
    """

    title: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    reinitialised: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    arch: str = ""
    arch_options: dict[str, Any] = field(default_factory=dict)
    classes: str = ""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    preprocessing_from: str = ""
    target: str = ""
    written: bool = False

    @property
    def complete(self) -> bool:
        """Whether every name of the network has its weights, and nothing is left over."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        counts = {
            "matched": len(self.matched),
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
            "misshapen": len(self.misshapen),
            "re-initialised": len(self.reinitialised),
            "ignored": len(self.ignored),
        }
        lines = [self.title, *(f"  {name:<14}{count:>5}" for name, count in counts.items())]
        rows = [(name, "missing", self._near(name)) for name in self.missing]
        rows += [(name, "unexpected", "") for name in self.unexpected]
        rows += [
            (name, "misshapen", f"has {has}, needs {needs}")
            for name, (has, needs) in self.misshapen.items()
        ]
        rows += [(name, "re-initialised", "new random values") for name in self.reinitialised]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(name)
        rows += [
            (names[0] if len(names) == 1 else f"{names[0]}, ... ({len(names)})", "ignored", reason)
            for reason, names in reasons.items()
        ]
        rows = [(shown(name), what, shown(detail)) for name, what, detail in rows]
        width = max((len(name) for name, _, _ in rows[:_MAX_ROWS]), default=0)
        lines += [
            f"  {name:<{width}}  {what:<14}  {detail}".rstrip()
            for name, what, detail in rows[:_MAX_ROWS]
        ]
        if len(rows) > _MAX_ROWS:
            lines.append(f"  ... and {len(rows) - _MAX_ROWS} more")
        lines += [f"  {shown(note)}" for note in self.notes]
        return "\n".join([*lines, *self._outcome()])

    def _outcome(self) -> list[str]:
        """Say what the weights file holds beside the weights, where a conversion got that far."""
        if not self.target:
            return []
        options = json.dumps(self.arch_options)
        options = options if len(options) <= 300 else f"{options[:297]}..."
        written = "written" if self.written else "not written (dry run):"
        return [
            f"architecture: {self.arch} {options}",
            f"classes: {shown(self.classes)}",
            f"preprocessing, {shown(self.preprocessing_from)}: {json.dumps(self.preprocessing)}",
            f"{written} {self.target}",
        ]

    def _near(self, name: str) -> str:
        """Guess what a missing name is called in the file; where much is missing it is another network."""
        if len(self.missing) > _MAX_GUESSES:
            return ""
        near = near_miss(name, self.unexpected)
        return f"is it {near}?" if near else ""


class ConversionError(WeightsFileError):
    """A checkpoint that does not fit the network it was said to be of.

    report: what became of each name. summary: the last line of the message, which the report precedes.
    """

    def __init__(self, summary: str, report: Report) -> None:
        super().__init__(f"{report}\n{summary}")
        self.summary, self.report = summary, report


def match(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], title: str
) -> Report:
    """Compare names and shapes.

    expected, found: name -> shape, of the network and of the checkpoint.
    """
    report = Report(title)
    for name, shape in expected.items():
        if name not in found:
            report.missing.append(name)
        elif tuple(found[name]) != tuple(shape):
            report.misshapen[name] = (tuple(found[name]), tuple(shape))
        else:
            report.matched.append(name)
    report.unexpected = [name for name in found if name not in expected]
    return report


__all__ = ["ConversionError", "Report", "match", "shown"]
