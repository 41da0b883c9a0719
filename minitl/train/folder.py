"""The run folder: which one, and never one that holds something else."""

from pathlib import Path

from minitl.errors import UserError

RUNS = Path("runs")
RUN_FILES = ("config.toml", "split.json", "last.h5", "best.h5", "metrics.csv", "summary.json")


def prepare_folder(out: str | None, name: str, overwrite: bool) -> Path:
    """Return a folder for a new run; it need not exist yet.

    out: the folder asked for; None takes runs/<name>, or runs/<name>-2, -3, ... if that is taken.
    overwrite: delete the files of the run that is there, by their names, and nothing else.

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
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(
                f"{folder} is not empty; choose another --out, continue the run in it with "
                f"--resume {folder}, or replace it with --overwrite"
            )
        for part in (folder, *(child for child in folder.iterdir() if child.is_dir())):
            if (part / "config.toml").exists():
                for file in RUN_FILES:
                    (part / file).unlink(missing_ok=True)
    return folder
