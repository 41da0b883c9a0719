"""The run folder: which one, and never one that holds something else."""

from pathlib import Path

from minitl.errors import UserError

RUNS = Path("runs")
RUN_FILES = (
    *("config.toml", "split.json", "last.h5", "best.h5", "metrics.csv", "summary.json"),
    *("report.html", "curves.png", "confusion.png", "classes.json"),
)


def prepare_folder(out: str | None, name: str, overwrite: bool) -> Path:
    """Return a folder for a new run; it need not exist yet. Nothing is written or deleted here.

    out: the folder asked for; None takes runs/<name>, or runs/<name>-2, -3, ... if that is taken.
    overwrite: a run may be there already; `clear_run` makes room once the new one is ready to start.

    Raises UserError where something stands in the way.
    """
    if out is not None:
        folder = Path(out)
    else:
        folder, number = RUNS / name, 1
        while folder.exists() and not overwrite:
            number += 1
            folder = RUNS / f"{name}-{number}"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; choose a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        resume = f"continue the run in it with --resume {folder}, "
        raise UserError(
            f"{folder} is not empty; choose another --out, "
            f"{resume if (folder / 'last.h5').exists() else ''}or replace what is in it with --overwrite"
        )
    return folder


def clear_run(folder: Path) -> None:
    """Delete the files of an earlier run, by their names, and nothing else."""
    for file in RUN_FILES:
        (folder / file).unlink(missing_ok=True)
    clear_leftovers(folder)


def clear_leftovers(folder: Path) -> None:
    """Delete what a run left half-written that was killed."""
    for file in RUN_FILES:
        for leftover in folder.glob(f".{file}.*.tmp"):
            leftover.unlink(missing_ok=True)
