"""`python -m benchmarks step`: whole training and inference steps, each contender in its own process.

The contenders take their steps by turns. Before that all of them must compute the same loss (in inference
the same logits) from the same weights, and again after two steps of SGD.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.timing import PAUSE

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("training", "frozen backbone", "inference")
FIRST_STEP_LIMIT = 400  # seconds; torch.compile is left out if it needs longer
STEP_LIMIT = 300
# Largest difference between two contenders: of the first loss or logits, as a share, and of the loss two
# steps later, where small differences have grown.
SAME, SAME_LATER = 1e-3, 1e-2

Spec = dict[str, Any]


class Failed(Exception):
    """A contender ended or took too long; the message says which and shows its last words."""


class Contender:
    """A `benchmarks.contender` process."""

    def __init__(self, name: str, spec: Spec, environment: dict[str, str]) -> None:
        self.name, self.spec = name, spec
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, it is open as long as the process runs
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contender", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            bufsize=1,
            cwd=ROOT,
            env=os.environ | environment,
        )
        self.seconds: list[float] = []
        self.faults: list[int] = []
        self.kernels: list[dict[str, list[float]]] = []
        self.values: list[Any] = []
        self.peak_mb = 0.0

    def _answer(self, limit: float) -> dict[str, Any]:
        output = self.process.stdout
        assert output is not None
        if not select.select([output], [], [], limit)[0]:
            raise Failed(f"no answer within {limit:.0f} s")
        line = output.readline()
        if not line:
            self.log.seek(0)
            last = self.log.read().strip().splitlines()[-1:] or ["no message"]
            raise Failed(f"ended with {self.process.wait()}: {last[0][:200]}")
        answer: dict[str, Any] = json.loads(line)
        self.peak_mb = answer["peak_mb"]
        return answer

    def wait_until_ready(self) -> None:
        """Return once it has made its network."""
        self._answer(STEP_LIMIT)

    def step(self, limit: float = STEP_LIMIT) -> Any:
        """Let it take one step; return its loss or logits."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        answer = self._answer(limit)
        self.seconds.append(answer["seconds"])
        self.faults.append(answer["faults"])
        self.kernels.append(answer["kernels"])
        self.values.append(answer["value"])
        return answer["value"]

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            if stream is not None:
                stream.close()


def specs(task: str, *, quick: bool) -> dict[str, tuple[Spec, dict[str, str]]]:
    """Return name: (what differs from the common specification, environment) of all contenders."""
    folds = task == "inference"
    ours: Spec = {"engine": "minitl"}
    torch: Spec = {"engine": "torch", "format": "nchw", "fold": folds, "compile": False}
    last = torch | {"format": "nhwc"}
    folded = ", BN folded" if folds else ""
    found: dict[str, tuple[Spec, dict[str, str]]] = {
        "minitl": (ours, {}),
        f"PyTorch{folded}": (torch, {}),
        f"PyTorch{folded}, channels_last": (last, {}),
    }
    if quick:
        return found
    if folds:
        found["PyTorch, channels_last"] = (last | {"fold": False}, {})
    if machine.is_glibc():
        found[f"PyTorch{folded}, malloc tuned"] = (torch, machine.TUNED_MALLOC)
        found[f"PyTorch{folded}, channels_last, malloc tuned"] = (last, machine.TUNED_MALLOC)
    found[f"PyTorch{folded}, torch.compile"] = (torch | {"compile": True}, {})
    return found


def write_weights(path: Path, model_name: str) -> None:
    """Write weights that keep the activations of an untrained network tame, in training and inference."""
    from minitl import models

    state = dict(models.create(model_name, seed=0).state_dict())
    last = "bn3.weight" if any(".bn3." in name for name in state) else "bn2.weight"
    for name in state:
        if name.endswith(last):  # each block adds a little to its shortcut
            state[name] = np.full_like(state[name], 0.2)
    np.savez(path, **state)  # type: ignore[arg-type]


def differ(found: Any, expected: Any) -> float:
    """Return the largest difference as a share of the largest number expected; infinity for NaN."""
    a, b = np.asarray(found, float), np.asarray(expected, float)
    share = float(np.abs(a - b).max() / np.abs(b).max())
    return share if np.isfinite(share) else float("inf")


def compare(
    model: str,
    task: str,
    *,
    batch: int,
    size: int,
    rounds: int,
    conv: str = "auto",
    quick: bool = False,
    profile: bool = False,
    contenders: dict[str, tuple[Spec, dict[str, str]]] | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Run one task of one network with all contenders; return the figures.

    "verified" is false, and nothing is timed, where minitl and PyTorch disagree.
    """
    group: dict[str, Any] = {"model": model, "task": task, "batch": batch, "size": size}
    group |= {"verified": True, "contenders": []}
    chosen = specs(task, quick=quick) if contenders is None else contenders
    running: list[Contender] = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        write_weights(weights, model)
        common = {"model": model, "task": task, "batch": batch, "size": size, "conv": conv}
        common |= {"weights": str(weights), "profile": profile}
        try:
            for name, (spec, environment) in chosen.items():
                tell(f"{model}, {task}: starting {name}")
                contender = Contender(name, common | spec, environment)
                running.append(contender)
                try:
                    contender.wait_until_ready()
                    for number in range(3):
                        contender.step(STEP_LIMIT if number else FIRST_STEP_LIMIT)
                except Failed as failure:
                    running.remove(contender)
                    contender.end()
                    group["contenders"].append({"name": name, "problem": str(failure)})
            problem = disagreement(running, task)
            if problem:
                group |= {"verified": False, "problem": problem}
                return group
            tell(f"{model}, {task}: {rounds} rounds")
            for _ in range(rounds):
                for contender in running:
                    time.sleep(2 * PAUSE)
                    contender.step()
        finally:
            for contender in running:
                contender.end()
    _add_figures(group, running)
    return group


def disagreement(contenders: list[Contender], task: str) -> str:
    """Return what differs between contenders, or nothing; the first PyTorch is what others are held to."""
    rivals = [c for c in contenders if c.spec["engine"] == "torch"]
    if not rivals or rivals == contenders:
        return "minitl and PyTorch must both run"
    expected = rivals[0].values
    for c in contenders:
        later = SAME if task == "inference" else SAME_LATER
        for which, number, allowed in (("first", 0, SAME), ("third", 2, later)):
            difference = differ(c.values[number], expected[number])
            if difference > allowed:
                return (
                    f"in the {which} step {c.name} differs from {rivals[0].name} by {difference:.1e}, "
                    f"more than {allowed:.0e}"
                )
    return ""


def _add_figures(group: dict[str, Any], running: list[Contender]) -> None:
    ours = 1e3 * machine.median(running[0].seconds[3:])
    for c in running:
        times = c.seconds[3:]
        ms = 1e3 * machine.median(times)
        group["contenders"].append(
            {
                "name": c.name,
                "ms": ms,
                "spread": machine.spread(times),
                "ratio": ms / ours,
                "peak_mb": c.peak_mb,
                "faults_per_step": machine.median(c.faults[3:]),
                "first_step_s": c.seconds[0],
                "first_values": c.values[0] if np.ndim(c.values[0]) == 0 else None,
                "difference": differ(c.values[0], running[1].values[0]),
            }
        )
    eager = [
        c["ms"]
        for c in group["contenders"]
        if "ms" in c
        and c["name"].startswith("PyTorch")
        and "malloc" not in c["name"]
        and "compile" not in c["name"]
    ]
    group["ratio"] = min(eager) / ours
    if running[0].spec["profile"]:
        steps = running[0].kernels[3:]
        names = {name for step in steps for name in step}
        rows = [
            (
                name,
                1e3 * machine.median([sum(step.get(name, [])) for step in steps]),
                len(steps[0].get(name, [])),
            )
            for name in names
        ]
        group["profile"] = sorted(rows, key=lambda row: -row[1])


def startup(model: str, *, batch: int, size: int, cold: bool = True) -> dict[str, float]:
    """Return seconds until minitl is imported, and until a first training step is done.

    Cold: nothing compiled yet (an empty XDG_CACHE_HOME). Times are those of the whole process, from its
    start, less the time of a later step.
    """

    def run(code: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
            times.append(time.perf_counter() - start)
        return machine.median(times)

    bare = run("import numpy")
    found = {"import minitl, NumPy included": run("import minitl") - run("pass")}
    found["import minitl, after NumPy"] = run("import numpy, minitl") - bare
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        write_weights(weights, model)
        spec: Spec = {"engine": "minitl", "model": model, "task": "training", "batch": batch}
        spec |= {"size": size, "conv": "auto", "weights": str(weights)}

        def first_step(environment: dict[str, str]) -> float:
            contender = Contender("minitl", spec, environment)
            try:
                contender.wait_until_ready()
                contender.step(FIRST_STEP_LIMIT)
                until = time.perf_counter() - contender.started
                for _ in range(3):
                    contender.step()
                return until - machine.median(contender.seconds[1:])
            finally:
                contender.end()

        environment = {"XDG_CACHE_HOME": folder} if cold else {}
        if cold:
            found[f"{model}, start to first training step, cold cache"] = first_step(environment)
        else:
            first_step(environment)  # compiles what is missing
        warm = machine.median([first_step(environment) for _ in range(3)])
        found[f"{model}, start to first training step, warm cache"] = warm
    return found
