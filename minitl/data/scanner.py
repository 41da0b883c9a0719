"""Which pictures are in a folder and below, and what is passed by on the way.

Hidden files and folders, runs of minitl and what unpackers leave behind are left out; links are followed
where they stay inside the root, unless the others are wanted too.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from minitl.errors import UserError
from minitl.run_files import RUNS, is_run
from minitl.text import listed

# fmt: off
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
})
# fmt: on
# Left behind by unpackers and disk stations, full of things that look like pictures.
JUNK = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"})


class Scanner:
    """Walks a dataset's folder and counts what it passes by."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root = root
        self.real_root = Path(os.path.realpath(root))
        self.follow_links = follow_links
        self.other_files = 0
        self.other_suffixes: set[str] = set()
        self.useless_links = 0
        self.outward_links = 0
        self.runs = 0
        self.unlabelled: list[Path] = []

    def another(self) -> "Scanner":
        """Return one for a look ahead, so that nothing is counted twice."""
        return Scanner(self.root, self.follow_links)

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the visible folders and the picture files in a folder, sorted by name."""
        folders, files = [], []
        try:
            entries = list(os.scandir(folder))
        except PermissionError:
            raise UserError(f"no permission to read the folder {folder}; change it") from None
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name in JUNK:
                continue
            if entry.is_symlink() and not self._may_follow(path):
                continue
            if entry.is_dir():
                if _is_of_runs(path):  # `minitl finetune .` writes them among the classes
                    self.runs += 1
                else:
                    folders.append(path)
            elif path.suffix.lower() in SUFFIXES:
                files.append(path)
            else:
                self.other_files += 1
                self.other_suffixes.add(path.suffix.lower() or entry.name)
        return sorted(folders), sorted(files)

    def _may_follow(self, link: Path) -> bool:
        """Whether a link exists, does not lead back above itself and stays inside the root, if it must."""
        target = Path(os.path.realpath(link))
        here = Path(os.path.realpath(link.parent))
        above = here.is_relative_to(target) or self.real_root.is_relative_to(target)
        if above or not target.exists():
            self.useless_links += 1
            return False
        if not self.follow_links and not target.is_relative_to(self.real_root):
            self.outward_links += 1
            return False
        return True

    def pictures(self, folder: Path) -> list[str]:
        """Return the pictures in a folder and below, relative to it, sorted."""
        found: list[str] = []
        waiting, seen = [folder], {os.path.realpath(folder)}
        while waiting:
            folders, files = self.entries(waiting.pop())
            found += (file.relative_to(folder).as_posix() for file in files)
            for inner in folders:
                real = os.path.realpath(inner)
                if real not in seen:  # two links to the same folder, or to each other
                    seen.add(real)
                    waiting.append(inner)
        return sorted(found)

    def notes(self) -> list[str]:
        """Say what was left out."""
        notes = [
            f"left out {folder}: its pictures are not in class folders"
            for folder in self.unlabelled
        ]
        if self.other_files:
            kinds = listed(sorted(self.other_suffixes))
            notes.append(f"left out {self.other_files} files that are not pictures ({kinds})")
        return notes + self.notes_on_entries()

    def notes_on_entries(self) -> list[str]:
        """Say which runs and links were left out, and how these are taken along where that makes sense."""
        notes = []
        if self.runs:
            notes.append(f"left out {self.runs} folders of runs")
        if self.outward_links:
            notes.append(
                f"left out {self.outward_links} links that lead out of {self.root}; --follow-links takes "
                "along what they point to"
            )
        if self.useless_links:
            notes.append(
                f"left out {self.useless_links} links that are broken or lead back into a folder above them"
            )
        return notes

    def excuse(self) -> str:
        """The notes as the end of an error message."""
        return "".join(f"; {note}" for note in self.notes())


def list_inside(root: str | Path, follow_links: bool = False) -> tuple[list[str], list[str]]:
    """Return all pictures in a folder and below, and notes on what was left out.

    They are relative to it with forward slashes, sorted. follow_links: as for `scan`.
    """
    scanner = Scanner(Path(root), follow_links)
    return scanner.pictures(Path(root)), scanner.notes_on_entries()


def list_pictures(
    paths: str | Path | Iterable[str | Path], follow_links: bool = False
) -> list[Path]:
    """Return the pictures that files and folders stand for, without labels: for prediction.

    A file is taken as it is, whatever its name; a folder gives every picture inside it, sorted.
    follow_links: as for `scan`. Raises UserError for a path that does not exist and for a folder without
    pictures.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    pictures: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            scanner = Scanner(path, follow_links)
            inside = scanner.pictures(path)
            if not inside:
                raise UserError(f"{path} holds no pictures{scanner.excuse()}")
            pictures += (path / name for name in inside)
        elif path.exists():
            pictures.append(path)
        else:
            raise UserError(f"{path} does not exist; give picture files or folders of them")
    return pictures


def _is_of_runs(folder: Path) -> bool:
    """Whether a folder is that of a run, or the usual folder of runs, one of which may be about to begin."""
    if folder.name == RUNS:
        try:
            runs = [path for path in folder.iterdir() if path.name not in JUNK]
        except OSError:
            return False
        return bool(runs) and all(is_run(path) or _is_empty(path) for path in runs)
    return is_run(folder)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


__all__ = ["SUFFIXES", "Scanner", "list_inside", "list_pictures"]
