"""Text of unknown origin in messages: names from files, other libraries' errors, long lists."""

import difflib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

SHORT = 120  # characters of a name that is shown
_MOST_COMPARED = 2000
_COLOURS = {"red": 31, "green": 32, "yellow": 33}


def printable(text: str) -> str:
    """Return text so that it cannot command a terminal: what is no visible character is spelled out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(text: str) -> str:
    """Return text as one short line that cannot command a terminal."""
    text = printable(text)
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return what an error says as one line, or its kind where it says nothing."""
    return printable(" ".join(str(error).split())[:limit]) or type(error).__name__


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Return the first few of many names for a message, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def normal_form(name: str) -> str:
    """One form for accented letters: macOS may hand back another than was written."""
    return unicodedata.normalize("NFC", name)


def near_miss(name: str, candidates: Sequence[str]) -> str:
    """Return the candidate that `name` may be a misspelling of, or "" if none is that near."""
    found = difflib.get_close_matches(name, candidates[:_MOST_COMPARED], n=1, cutoff=0.85)
    return found[0] if found else ""


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Return text in red, green or yellow if the stream is a terminal that shows colours.

    NO_COLOR, if it is not empty, switches colours off (https://no-color.org).
    """
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or not stream.isatty():
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


__all__ = ["coloured", "listed", "near_miss", "normal_form", "one_line", "printable", "shown"]
