"""Tables about pictures: CSV files with a header and a line for each picture.

Paths are relative to DATA; columns that nobody asks for are left alone. Separators may be commas,
semicolons or tabs, whichever the header has; texts may be quoted; UTF-8, or UTF-16 with a byte order mark, as
spreadsheet programs write them. In the column part stand train, val and test, or nothing.
"""

import codecs
import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from minitl.data.parts import part_of
from minitl.errors import UserError

SEPARATORS = ",;\t"


class Row(NamedTuple):
    """A line of a table: the picture's path relative to DATA with forward slashes, its part ("" where that is
    open), the cells of the columns asked for, and where it stands, for errors.
    """

    path: str
    part: str
    cells: dict[str, str]
    place: str


def read_table(table: Path, root: Path, columns: Sequence[str], usual: str) -> Iterator[Row]:
    """Yield the lines of a table, each about another picture under `root`.

    columns: what must be there beside path, whatever its upper and lower case. usual: how a header looks,
        for errors.

    Raises UserError with file and line for a table that does not make sense: no header, a path twice, a
    picture that is not there, an unknown part, nothing below the header.
    """
    text = _text(table)
    separator = max(SEPARATORS, key=(text.splitlines() or [""])[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    seen: dict[str, str] = {}
    try:
        numbers = _columns(next(reader, []), ("path", *columns), table, usual)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                row = _row(cells, numbers, f"{table}, line {reader.line_num}", root)
                if row.path in seen:
                    raise UserError(
                        f"{row.place}: {row.path} is there already, in {seen[row.path]}; keep one of them"
                    )
                seen[row.path] = row.place
                yield row
    except csv.Error as error:
        raise UserError(
            f"{table}, line {reader.line_num}: {error}; check the quotes in it"
        ) from None
    if not seen:
        raise UserError(f"{table} labels no picture: there is nothing below its header")


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


def _columns(header: list[str], needed: Sequence[str], table: Path, usual: str) -> dict[str, int]:
    """Return the number of each column that is needed, and of part where it is there."""
    names = [cell.strip().lower() for cell in header]
    lacking = [name for name in needed if name.lower() not in names]
    if lacking:
        raise UserError(
            f"{table}, line 1: no column {' and '.join(lacking)} in the header {', '.join(header)[:80]!r}; "
            f"it must begin with a line such as {usual}"
        )
    known = [name for name in (*needed, "part") if name.lower() in names]
    twice = [name for name in known if names.count(name.lower()) > 1]
    if twice:
        raise UserError(f"{table}, line 1: the column {twice[0]} is there twice; take one out")
    return {name: names.index(name.lower()) for name in known}


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
    for candidate in candidates:
        path = Path(candidate)
        if path.is_absolute():
            path = (
                path.relative_to(root.absolute()) if path.is_relative_to(root.absolute()) else path
            )
        if not path.is_absolute() and ".." not in path.parts and (root / path).is_file():
            return path.as_posix()
    raise UserError(f"{place}: there is no picture {text!r} in {root}; paths are relative to DATA")


def part_named(text: str, place: str) -> str:
    """Return the part that a text names, "" for none; UserError for what is no part."""
    part = part_of(text)
    if text and not part:
        raise UserError(f"{place}: {text!r} is no part; write train, val, test or nothing")
    return part


__all__ = ["Row", "part_named", "read_table"]
