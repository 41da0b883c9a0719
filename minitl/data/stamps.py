"""Is a picture still the one it was? Its file's size and date say so, without reading it.

A digest would be certain, and reading a hundred gigabytes to make sure that nothing has changed would take
longer than most of what is done with them. A file that is written anew has another date, and nearly always
another size. The price: a file that was only copied or touched looks changed as well. Who has a digest beside
the stamp reads just these; who has none asks.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self


class Stamp(NamedTuple):
    """A file's size in bytes and the date of its content in nanoseconds since 1970."""

    size: int
    time: int

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Return a file's stamp, None where there is no such file."""
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(found.st_size, found.st_mtime_ns)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote. Raises ValueError for something else."""
        size, time = map(int, text.split(" "))
        return cls(size, time)

    def __str__(self) -> str:
        return f"{self.size} {self.time}"


def stamps(root: Path, paths: Iterable[str]) -> dict[str, Stamp]:
    """Return the stamps of the files that are there, by path relative to `root`."""
    found = ((path, Stamp.of(root / path)) for path in paths)
    return {path: stamp for path, stamp in found if stamp is not None}


__all__ = ["Stamp", "stamps"]
