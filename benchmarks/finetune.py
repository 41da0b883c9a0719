"""`python -m benchmarks finetune`: whole runs of fine-tuning, from the command to the exit of its process.

minitl takes turns with the script that a PyTorch user would write (torch_finetune.py): the same pictures,
initial weights, head, batch size, optimizer, learning rate and schedule, each decoding for itself. Every
seed gives both another head, another order and other variations. minitl starts without kept features, but
with its kernels compiled, by an epoch before the clock runs; its report is left out, which the script has
not either.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.step import ROOT

BATCH = 16
OURS = "minitl"
RIVALS = {"PyTorch": [], "PyTorch, channels_last": ["--channels-last"]}


class Task(NamedTuple):
    """What is trained: whether the backbone is frozen, for how many epochs, at which rate."""

    frozen: bool
    epochs: int
    lr: float


TASKS = {"full": Task(False, 3, 0.001), "frozen": Task(True, 10, 0.01)}


class Failed(Exception):
    """A process ended with an error; the message says which and shows its last words."""


def compare(
    task: Task,
    data: Path,
    weights: Path,
    *,
    seeds: int,
    workers: int = 2,
    rivals: list[str] | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Run one task with every contender and seed, by turns; return the figures.

    data: a folder DATA/{train,val}/<class>/*. weights: of a network that rivals.py has. workers: processes
    that decode for PyTorch.
    """
    runs: dict[str, list[dict[str, Any]]] = {OURS: []}
    runs |= {name: [] for name in rivals or RIVALS}
    with tempfile.TemporaryDirectory() as temporary:
        tell(f"{OURS}, one epoch to compile")
        run_ours(task._replace(epochs=1), data, weights, 0, Path(temporary))
        for seed in range(seeds):
            start = Path(temporary) / f"start{seed}.pt"
            arch = write_start(start, weights, data, seed)
            for name in runs:
                tell(f"{name}, seed {seed}")
                folder = Path(temporary) / f"{name}-{seed}"
                folder.mkdir()
                if name == OURS:
                    found = run_ours(task, data, weights, seed, folder)
                else:
                    more = ["--arch", arch, "--workers", str(workers), *RIVALS[name]]
                    found = run_torch(task, data, start, seed, folder, more)
                runs[name].append(found)
                tell(f"  {found['seconds']:.1f} s, accuracy {found['val_accuracy']:.3f}")
    return {"task": task._asdict(), "seeds": seeds, **summary(runs), "runs": runs}


def write_start(path: Path, weights: Path, data: Path, seed: int) -> str:
    """Write what minitl starts from, new head included, for PyTorch; return the architecture's name."""
    import torch

    from minitl import models

    model = models.load_model(weights)
    classes = sum(folder.is_dir() for folder in (data / "train").iterdir())
    model.replace_head(classes, seed=seed)
    state = {name: torch.from_numpy(array.copy()) for name, array in model.state_dict().items()}
    counts = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for name in state
        if name.endswith("running_mean")
    }
    torch.save(state | counts, path)
    return model.arch


def run_ours(task: Task, data: Path, weights: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Run `minitl finetune`; return seconds, memory, accuracy and where the time went."""
    run = folder / "run"
    command = [sys.executable, "-m", "minitl", "finetune", str(data), "--weights", str(weights)]
    command += ["--out", str(run), "--seed", str(seed), "--epochs", str(task.epochs)]
    command += ["--batch-size", str(BATCH), "--lr", str(task.lr), "--weight-decay", "0"]
    command += ["--schedule", "step", "--step-epochs", "7", "--gamma", "0.1", "--no-report"]
    if task.frozen:
        command += ["--freeze", "backbone", "--no-augment"]
        command += ["--feature-cache", str(folder / "features")]
    found = timed(OURS, command)
    summary = json.loads((run / "summary.json").read_text())
    return found | {
        "val_accuracy": summary["val"]["accuracy"],
        "pictures": [summary["train_images"], summary["val"]["images"]],
        "timing": summary["timing"],
    }


def run_torch(
    task: Task, data: Path, start: Path, seed: int, folder: Path, more: list[str]
) -> dict[str, Any]:
    """Run the script; return seconds, memory and accuracy."""
    out = folder / "result.json"
    command = [sys.executable, "-m", "benchmarks.torch_finetune", str(data), "--start", str(start)]
    command += ["--epochs", str(task.epochs), "--batch-size", str(BATCH), "--lr", str(task.lr)]
    command += ["--seed", str(seed), "--out", str(out), *more]
    command += ["--frozen"] if task.frozen else []
    found = timed("PyTorch", command)
    result = json.loads(out.read_text())
    return found | {"val_accuracy": max(result["val_accuracy"]), "pictures": result["pictures"]}


def timed(name: str, command: list[str]) -> dict[str, float]:
    """Run a process; return its seconds from start to exit, and the most memory it held itself."""
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            last = log.read().strip().splitlines()[-1:] or ["no message"]
            raise Failed(f"{name} ended with {process.returncode}: {last[0][:300]}")
    return {"seconds": seconds, "peak_mb": usage.ru_maxrss / 1024}


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return mean and spread of each contender, and ratios of times.

    "ratio" is the faster rival's mean time in shares of ours; "same_accuracy", whether our mean accuracy is
    within one standard deviation (of both contenders' seeds together) of that rival's, or above.
    """
    contenders = []
    ours = statistics.fmean(run["seconds"] for run in runs[OURS])
    for name, found in runs.items():
        seconds, accuracies = ([run[key] for run in found] for key in ("seconds", "val_accuracy"))
        contenders.append(
            {
                "name": name,
                "seconds": statistics.fmean(seconds),
                "seconds_sd": deviation(seconds),
                "ratio": statistics.fmean(seconds) / ours,
                "val_accuracy": statistics.fmean(accuracies),
                "val_accuracy_sd": deviation(accuracies),
                "peak_mb": max(run["peak_mb"] for run in found),
            }
        )
    first, *rivals = contenders
    fastest = min(rivals, key=lambda rival: rival["seconds"])
    pooled = (0.5 * (first["val_accuracy_sd"] ** 2 + fastest["val_accuracy_sd"] ** 2)) ** 0.5
    behind = fastest["val_accuracy"] - first["val_accuracy"]
    return {
        "contenders": contenders,
        "ratio": fastest["ratio"],
        "accuracy_behind": behind,
        "accuracy_sd": pooled,
        "same_accuracy": bool(behind <= pooled),
        "same_pictures": len({tuple(run["pictures"]) for found in runs.values() for run in found})
        == 1,
    }


def deviation(values: list[float]) -> float:
    """Return the standard deviation of a sample; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def problem_with(data: Path, weights: Path) -> str:
    """Return what stands against comparing on these, or nothing."""
    from benchmarks import rivals, torch_finetune
    from minitl import models
    from minitl.data.preprocessing import Preprocessing
    from minitl.errors import UserError

    lacking = [part for part in ("train", "val") if not (data / part).is_dir()]
    if lacking:
        return f"{data} has no folder {' and '.join(lacking)}; the script takes DATA/{{train,val}}/<class>/*"
    try:
        model = models.load_model(weights)
    except UserError as error:
        return str(error)
    if model.arch not in rivals.NETWORKS:
        return f"no rival for {model.arch}; choose from {', '.join(rivals.NETWORKS)}"
    usual = Preprocessing(resize=torch_finetune.RESIZE, crop=torch_finetune.CROP)
    if Preprocessing.from_dict(model.preprocessing) != usual:
        return f"{weights} wants another preprocessing than torchvision's usual one, which the script has"
    return ""
