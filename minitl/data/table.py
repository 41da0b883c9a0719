"""Tables about pictures: CSV files with a header and a line for each picture.

Paths are relative to DATA; columns that nobody asks for are left alone, and some may bear another usual name
(see PATH, LABEL and PART), which is said in a note. Separators may be commas, semicolons or tabs, whichever
the header has, or what a line such as sep=; above it says; texts may be quoted; UTF-8, or UTF-16 with a byte
order mark, as spreadsheet programs write them. In the column part stand train, val and test, or nothing.
"""

import codecs
import csv
import errno
import io
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from minitl.data.parts import part_of
from minitl.errors import UserError
from minitl.text import shown

SEPARATORS = ",;\t"
# Names of a column as people write them, without regard to case, spaces and underscores; the first is ours
# and goes before the others.
PATH = (
    *("path", "file", "filename", "filepath"),
    *("image", "imagename", "imagefile", "imagepath", "img", "imgpath", "picture"),
)
LABEL = ("label", "labels", "class", "classname", "category", "target")
PART = ("part", "split", "subset")
# What some spreadsheet programs write, or want, above the header.
_SEPARATOR_LINE = re.compile(r'"?sep=(?P<separator>[^\w\s"]|\t)"?[,;\t]*(?=\r|\n|$)')

_QUOTED = re.compile('"(?:[^"]|"")*"')


class Row(NamedTuple):
    """A line of a table: the picture's path relative to DATA with forward slashes, its part ("" where that is
    open), the cells of the columns asked for, and where it stands, for errors.
    """

    path: str
    part: str
    cells: dict[str, str]
    place: str


class Table(NamedTuple):
    """The lines of a table, and notes on how its header was understood."""

    rows: list[Row]
    notes: list[str]


def read_table(table: Path, root: Path, columns: Mapping[str, Sequence[str]], usual: str) -> Table:
    """Read a table whose lines are each about another picture under `root`.

    columns: what must be there beside path, with the names that it may have, its own first; upper and lower
        case do not matter. usual: how a header looks, for errors.

    Raises UserError with file and line for a table that does not make sense: no header, a path twice, a
    picture that is not there, an unknown part, a line with more cells than the header, nothing below it.
    """
    text = _text(table)
    separator_line = _SEPARATOR_LINE.match(text)
    if separator_line:
        text = text[separator_line.end() :]  # the end of the line stays: lines keep their numbers
        separator = separator_line["separator"]
    else:
        header_line = _QUOTED.sub("", (text.splitlines() or [""])[0])
        separator = max(SEPARATORS, key=header_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: dict[str, Row] = {}
    try:
        header = next(reader, []) or (next(reader, []) if separator_line else [])
        names = {"path": PATH, **columns}
        place = f"{table}, line {max(reader.line_num, 1)}"
        numbers, taken = _columns(header, names, place, usual)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                place = f"{table}, line {reader.line_num}"
                _require_width(cells, header, separator, place)
                row = _row(cells, numbers, place, root)
                if row.path in rows:
                    earlier = rows[row.path].place
                    raise UserError(
                        f"{place}: {row.path} is there already, in {earlier}; keep one of them"
                    )
                rows[row.path] = row
    except csv.Error as error:
        raise UserError(
            f"{table}, line {reader.line_num}: {error}; check the quotes in it"
        ) from None
    if not rows:
        raise UserError(f"{table} labels no picture: there is nothing below its header")
    said = ", ".join(f"{name} from its column {header[numbers[name]].strip()}" for name in taken)
    return Table(list(rows.values()), [f"{table}: {said}"] if taken else [])


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


def _columns(
    header: list[str], needed: Mapping[str, Sequence[str]], place: str, usual: str
) -> tuple[dict[str, int], list[str]]:
    """Return the number of each column that is needed, and of part where it is there.

    Also which of them bear another name than their own.
    """
    places: dict[str, int] = {}
    plain = [cell.strip().lower() for cell in header]
    taken = []
    for name, usual_names in {**needed, "part": PART}.items():
        own = [number for number, cell in enumerate(plain) if cell == name.lower()]
        if len(own) > 1:
            raise UserError(f"{place}: the column {name} is there twice; take one out")
        others = [] if own else _with_usual_names(plain, usual_names, needed)
        if len(others) > 1:
            candidates = " and ".join(header[number].strip() for number in others)
            raise UserError(
                f"{place}: {candidates} could both be the {name}; call one of them {name}"
            )
        if own or others:
            places[name] = (own or others)[0]
            taken += [] if own else [name]
    lacking = [name for name in needed if name not in places]
    if lacking:
        raise UserError(
            f"{place}: no column {' and '.join(lacking)} in the header {', '.join(header)[:80]!r}; "
            f"give the column that holds it this name: a header looks like {usual}"
        )
    return places, taken


def _with_usual_names(
    plain: list[str], usual_names: Sequence[str], needed: Mapping[str, Sequence[str]]
) -> list[int]:
    """Return the columns that bear one of these names, except those that are asked for by their own."""
    asked = {name.lower() for name in needed}
    return [
        number
        for number, cell in enumerate(plain)
        if cell not in asked and re.sub("[ _-]", "", cell) in usual_names
    ]


def _require_width(cells: list[str], header: list[str], separator: str, place: str) -> None:
    """Raise UserError for a line that says more than its header: a text was torn apart, or is unnamed."""
    if any(cell.strip() for cell in cells[len(header) :]):
        character = {",": "comma", ";": "semicolon", "\t": "tab"}.get(separator, repr(separator))
        raise UserError(
            f"{place}: {len(cells)} cells where the header has {len(header)}; put a text with a {character} "
            "in it into quotes, or give every column a name in the header"
        )


def _row(cells: list[str], numbers: dict[str, int], place: str, root: Path) -> Row:
    if len(cells) <= max(numbers.values()):
        raise UserError(f"{place}: {len(cells)} cells where the header has more; fill them in")
    said = {name: cells[number].strip() for name, number in numbers.items()}
    path, part = said.pop("path"), said.pop("part", "")
    if not path:
        raise UserError(f"{place}: no path; fill it in, or take the line out")
    return Row(_inside(path, root, place), part_named(part, place), said, place)


def _inside(text: str, root: Path, place: str) -> str:
    """Return a path as samples have it; UserError where there is no such file."""
    candidates = [text] if "\\" not in text or os.sep == "\\" else [text, text.replace("\\", "/")]
    # Accented letters have two forms; a file may have been written in one and listed in the other.
    candidates += [
        unicodedata.normalize(form, path) for path in candidates for form in ("NFC", "NFD")
    ]
    for candidate in candidates:
        path = Path(candidate)
        if path.is_absolute():
            path = (
                path.relative_to(root.absolute()) if path.is_relative_to(root.absolute()) else path
            )
        if not path.is_absolute() and ".." not in path.parts and is_picture(root / path):
            return path.as_posix()
    raise UserError(
        f"{place}: there is no picture {shown(repr(text))} in {root}; paths are relative to DATA"
    )


def is_picture(path: Path) -> bool:
    """Whether a file is there; a text that can be no path, such as one too long, names none."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def part_named(text: str, place: str) -> str:
    """Return the part that a text names, "" for none; UserError for what is no part."""
    part = part_of(text)
    if text and not part:
        raise UserError(f"{place}: {text!r} is no part; write train, val, test or nothing")
    return part


__all__ = ["LABEL", "PART", "PATH", "Row", "Table", "is_picture", "part_named", "read_table"]
