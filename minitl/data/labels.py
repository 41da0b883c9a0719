"""Labels from elsewhere than folders: a table, or a pattern on the files' names.

A table is a CSV file with a header that has the columns path and label, and perhaps part:

    path,label,part
    scans/0001.png,healthy,train
    "scans/0002, left.png",ill,val

Paths are relative to DATA; other columns are left alone. Separators may be commas, semicolons or tabs,
whichever the header has; texts may be quoted; UTF-8, or UTF-16 with a byte order mark, as spreadsheet
programs write them. Parts are train, val and test; a picture without part is drawn into one.
"""

import codecs
import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from minitl.data.folder import PARTS, Dataset, from_labels, list_inside, scan
from minitl.errors import UserError

SEPARATORS = ",;\t"


class Label(NamedTuple):
    """What is said of a picture: its class, its part ("" where that is open), and where it is said."""

    name: str
    part: str
    place: str


def find_dataset(
    data: str | Path,
    *,
    labels: str | Path | None = None,
    label_from_name: str | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Return the dataset of a folder, with labels from its class folders unless something else is said.

    labels: a table. label_from_name: a pattern as for `labels_from_names`. The rest is as for `scan`.

    Raises UserError for whatever is wrong with these, with file and line.
    """
    root = Path(data)
    draw = {"val_fraction": val_fraction, "test_fraction": test_fraction}
    if labels is not None and label_from_name is not None:
        raise UserError("--labels and --label-from-name both say the labels; give one of them")
    if labels is None and label_from_name is None:
        return scan(root, **draw, seed=seed, classes=classes)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the one that the pictures' paths start from")
    notes: list[str] = []
    if labels is not None:
        said = read_labels(Path(labels), root)
    else:
        assert label_from_name is not None
        said, notes = labels_from_names(root, label_from_name)
    names = {path: label.name for path, label in said.items()}
    parts = {path: label.part for path, label in said.items() if label.part}
    if classes is not None:
        _require_known(said, classes)
    return from_labels(root, names, parts, **draw, seed=seed, classes=classes, notes=notes)


def read_labels(table: Path, root: Path) -> dict[str, Label]:
    """Read a table; return what it says by path, relative to `root` and with forward slashes.

    Raises UserError with file and line for a table that does not make sense: no header, a line without
    label, a path twice, a picture that is not there.
    """
    text = _text(table)
    separator = max(SEPARATORS, key=(text.splitlines() or [""])[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    said: dict[str, Label] = {}
    try:
        columns = _columns(next(reader, []), table)
        for row in reader:
            if any(cell.strip() for cell in row):
                _take(row, columns, f"{table}, line {reader.line_num}", root, said)
    except csv.Error as error:
        raise UserError(
            f"{table}, line {reader.line_num}: {error}; check the quotes in it"
        ) from None
    if not said:
        raise UserError(f"{table} labels no picture: there is nothing below its header")
    return said


def _text(table: Path) -> str:
    try:
        content = table.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {table}: {error.strerror}") from None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{table}, line {line}: not UTF-8; save the table as CSV in UTF-8 (spreadsheet programs ask)"
        ) from None


def _columns(header: list[str], table: Path) -> dict[str, int]:
    names = [cell.strip().lower() for cell in header]
    lacking = [name for name in ("path", "label") if name not in names]
    if lacking:
        raise UserError(
            f"{table}, line 1: no column {' and '.join(lacking)} in the header {', '.join(header)[:80]!r}; "
            "it must begin with a line such as path,label or path,label,part"
        )
    twice = [name for name in ("path", "label", "part") if names.count(name) > 1]
    if twice:
        raise UserError(f"{table}, line 1: the column {twice[0]} is there twice; take one out")
    return {name: names.index(name) for name in ("path", "label", "part") if name in names}


def _take(
    row: list[str], columns: Mapping[str, int], place: str, root: Path, said: dict[str, Label]
) -> None:
    """Check one line and note what it says."""
    if len(row) <= max(columns.values()):
        raise UserError(f"{place}: {len(row)} cells where the header has more; fill them in")
    cells = {name: row[number].strip() for name, number in columns.items()}
    for name in ("path", "label"):
        if not cells[name]:
            raise UserError(f"{place}: no {name}; fill it in, or take the line out")
    path = _inside(cells["path"], root, place)
    if path in said:
        raise UserError(
            f"{place}: {path} is there already, in {said[path].place}; keep one of them"
        )
    said[path] = Label(cells["label"], _part(cells.get("part", ""), place), place)


def _inside(text: str, root: Path, place: str) -> str:
    """Return a path as samples have it; UserError where there is no such file."""
    candidates = [text] if "\\" not in text or os.sep == "\\" else [text, text.replace("\\", "/")]
    for candidate in candidates:
        path = Path(candidate)
        if path.is_absolute():
            path = (
                path.relative_to(root.absolute()) if path.is_relative_to(root.absolute()) else path
            )
        if not path.is_absolute() and ".." not in path.parts and (root / path).is_file():
            return path.as_posix()
    raise UserError(f"{place}: there is no picture {text!r} in {root}; paths are relative to DATA")


def _part(text: str, place: str) -> str:
    part = PARTS.get(text.lower(), "")
    if text and not part:
        raise UserError(f"{place}: {text!r} is no part; write train, val, test or nothing")
    return part


def labels_from_names(root: Path, pattern: str) -> tuple[dict[str, Label], list[str]]:
    """Return what a pattern finds in the pictures' paths, and notes on those it does not fit.

    pattern: a regular expression, searched for in each path relative to `root` (forward slashes), with a
    group (?P<label>...) and perhaps (?P<part>...).

    Raises UserError for a pattern that is none, lacks the group or fits no picture.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--label-from-name {pattern!r} is no pattern: {error}") from None
    if "label" not in expression.groupindex:
        raise UserError(
            f"--label-from-name {pattern!r} has no group (?P<label>...); for cat_12.jpg write "
            "'(?P<label>[a-z]+)_[0-9]+'"
        )
    said: dict[str, Label] = {}
    others = []
    for path in list_inside(root):
        found = expression.search(path)
        name = found["label"] if found else None
        if not found or not name:
            others.append(path)
            continue
        part = found["part"] or "" if "part" in expression.groupindex else ""
        said[path] = Label(name, _part(part, path), path)
    if not said:
        raise UserError(
            f"--label-from-name {pattern!r} fits none of the {len(others)} pictures in {root}"
            + (f", such as {others[0]}" if others else "")
        )
    first = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    notes = [f"left out {len(others)} pictures that the pattern does not fit ({first})"]
    return said, notes if others else []


def _require_known(said: Mapping[str, Label], classes: Sequence[str]) -> None:
    for label in said.values():
        if label.name not in classes:
            known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise UserError(f"{label.place}: the model knows no class {label.name!r}, only {known}")


__all__ = ["Label", "find_dataset", "labels_from_names", "read_labels"]
