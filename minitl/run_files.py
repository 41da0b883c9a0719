"""What is in the folder of a run, by name: for those who write it, read it, replace it or look past it."""

from pathlib import Path

RUNS = "runs"  # the usual folder of runs, in the present one
ASIDE = ".earlier-run"  # in a run folder: the run before, until the one that replaces it has saved

SETTINGS = "config.toml"
SPLIT = "split.json"
LAST = "last.h5"
BEST = "best.h5"
METRICS = "metrics.csv"
SUMMARY = "summary.json"
REPORT = "report.html"
CURVES = "curves.png"
CONFUSION = "confusion.png"
CLASSES = "classes.json"
# In the order in which an earlier run is moved aside and put back, see train/run_folder.py.
RUN_FILES = (
    *(SETTINGS, SPLIT, LAST, BEST, METRICS, SUMMARY),
    *(REPORT, CURVES, CONFUSION, CLASSES),
)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run that has begun: with its settings and its split."""
    return all((folder / name).is_file() for name in (SETTINGS, SPLIT))


__all__ = [
    "ASIDE",
    "BEST",
    "CLASSES",
    "CONFUSION",
    "CURVES",
    "LAST",
    "METRICS",
    "REPORT",
    "RUNS",
    "RUN_FILES",
    "SETTINGS",
    "SPLIT",
    "SUMMARY",
    "is_run",
]
