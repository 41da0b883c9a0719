"""The run folder: which one, and never one that holds something else or that another process writes to."""

import contextlib
import os
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from minitl import run_files
from minitl.data.parts import part_of
from minitl.errors import UserError
from minitl.run_files import ASIDE, RUN_FILES, RUNS

if sys.platform != "win32":
    import fcntl

_SETTINGS = {"data", "epochs", "batch_size", "seed"}  # every config.toml of a run has had these


def prepare_folder(
    out: str | None,
    name: str,
    overwrite: bool,
    runs_inside: Sequence[str] = (),
) -> Path:
    """Return a folder for a new run; it need not exist yet. Nothing is written or deleted here.

    out: the folder asked for; None takes runs/<name>, or runs/<name>-2, -3, ... if that is taken.
    overwrite: a run may be there already; `set_aside` makes room once the new one is ready to start.
    runs_inside: patterns of folders in it that hold the runs, where it is for several.

    Raises UserError where something stands in the way.
    """
    if out is not None:
        folder = Path(out)
    else:
        folder, number = Path(RUNS) / name, 1
        while folder.exists() and not overwrite:
            number += 1
            folder = Path(RUNS) / f"{name}-{number}"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; choose a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    runs = [folder, *(inner for pattern in runs_inside for inner in folder.glob(pattern))]
    ours = any(map(holds_run, runs))
    if not overwrite:
        ways = ["choose another --out"]
        if _has_settings(folder):
            ways.append(f"continue the run in it with --resume {folder}")
        if ours:
            ways.append("replace the run in it with --overwrite")
        raise UserError(f"{folder} is not empty; {_either(ways)}")
    if not ours:
        raise UserError(
            f"{folder} holds no run of minitl, and --overwrite replaces nothing else; choose another "
            "--out, or empty the folder yourself"
        )
    return folder


def refuse_to_replace_weights(folder: Path, weights: str | None) -> None:
    """Raise UserError where weights are of the run in a folder that a new run on them is to replace.

    Killed early, that one could not resume.
    """
    if weights is None:
        return
    path = Path(weights)
    path = path / run_files.BEST if path.is_dir() else path
    names = {path.resolve(), path.parent.resolve() / path.name}  # behind a link, or one itself
    places = [place.resolve() for place in (folder, folder / ASIDE)]
    if any(place / file in names for place in places for file in RUN_FILES):
        raise UserError(
            f"--weights {weights} is of the run in {folder}, which the new one replaces; choose another "
            "--out, or copy the weights to another place first"
        )


def refuse_among_classes(folder: Path, data: Path) -> None:
    """Raise UserError where a new run's folder would be taken for a class of the pictures in a folder.

    A run that is there already is passed by, and so are hidden folders and the usual one of runs.
    """
    new = [path for path in (folder, *folder.parents) if _is_nothing_yet(path)]
    if not new or new[-1].name == RUNS or new[-1].name.startswith("."):
        return
    beside, root = new[-1].resolve().parent, data.resolve()
    if beside == root or (beside.parent == root and part_of(beside.name)):
        raise UserError(
            f"--out {folder} lies among the class folders of {data}, where it would be taken for one of "
            "them; choose another --out"
        )


def _is_nothing_yet(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a run's folder, and keep it from the runs of other processes for the block.

    Folders that were made for it and are empty in the end are removed.

    Raises UserError where the run of another process is in it, and where it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the run folder {folder}: {error.strerror}; choose another --out"
        ) from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write into the run folder {folder}; choose another --out")
    try:
        with _locked(folder):
            yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the system's lock on a folder, which ends with the process at the latest; not on Windows."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being written to by a run of another process; wait for its end, or choose "
                "another --out"
            ) from None
        except OSError:  # some file systems have no locks
            pass
        yield
    finally:
        os.close(handle)


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run: settings of ours, and another file that a run leaves."""
    if (folder / ASIDE).is_dir():
        return True
    others = any((folder / file).is_file() for file in RUN_FILES if file != run_files.SETTINGS)
    return others and _has_settings(folder)


def _has_settings(folder: Path) -> bool:
    """Whether config.toml is there and ours: others use that name too."""
    try:
        text = (folder / run_files.SETTINGS).read_text(encoding="utf-8")
        return tomllib.loads(text).keys() >= _SETTINGS
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False


def _either(ways: list[str]) -> str:
    return f"{', '.join(ways[:-1])}, or {ways[-1]}" if len(ways) > 1 else ways[0]


def set_aside(folder: Path) -> None:
    """Make room for a new run: move the files of an earlier one, by their names, to a folder inside.

    They come back with `put_back`, and go for good with `forget_earlier`.
    """
    aside = folder / ASIDE
    if aside.is_dir() and (folder / run_files.SETTINGS).exists():
        if (folder / run_files.LAST).exists():
            forget_earlier(folder)  # the run that is here has replaced it
        else:
            _delete_run(folder)  # the run that is here was killed before it saved anything
    for file in RUN_FILES:  # config.toml first: without it, what is here is what was not moved yet
        if (folder / file).exists():
            aside.mkdir(exist_ok=True)
            (folder / file).rename(aside / file)
    clear_leftovers(folder)


def put_back(folder: Path) -> None:
    """Delete the run in a folder, by the names of its files, and put back the one that was there before."""
    _delete_run(folder)
    for file in RUN_FILES:
        if (folder / ASIDE / file).exists():
            (folder / ASIDE / file).rename(folder / file)
    forget_earlier(folder)


def forget_earlier(folder: Path) -> None:
    """Delete what `set_aside` moved, and nothing else."""
    aside = folder / ASIDE
    if aside.is_dir():
        _delete_run(aside)
        if not any(aside.iterdir()):
            aside.rmdir()


def _delete_run(folder: Path) -> None:
    for file in RUN_FILES:
        (folder / file).unlink(missing_ok=True)
    clear_leftovers(folder)


def clear_leftovers(folder: Path) -> None:
    """Delete what a run left half-written that was killed."""
    for file in RUN_FILES:
        for leftover in folder.glob(f".{file}.*.tmp"):
            leftover.unlink(missing_ok=True)
