"""`python -m benchmarks gpu --out DIR`: the stages, the clock and the files.

Each stage is a process of its own with a time limit. Whatever fails is said in the result, and the next
stage begins. Everything is written to DIR as soon as it is known.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.gpu import report as gpu_report

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 465.0  # seconds; the last report takes some more
LAST = 20_000  # characters that are kept of a stage's output
# What compute-sanitizer, which makes everything some ten times slower, looks at: products in each precision
# and each tile, sums, pooling.
SANITIZED = (
    "gpu and (every_tile and groups or a_constant_and_of_a_nan or maxpool_of_equals or nan_wins)"
)


@dataclass(frozen=True)
class Stage:
    """A process: what it is for, its command, and the most seconds it may take.

    rows: whether it writes JSON lines to the file that stands as {rows} in its command; {seconds} stands
    there for the time that it has. needs: a program without which it is left out.
    """

    name: str
    command: Sequence[str]
    limit: float
    rows: bool = False
    needs: str = ""


def stages(folder: Path) -> list[Stage]:
    """Return the stages, in order: whether it is right, then what matters most.

    Limits are for what goes wrong; together they are more than TOTAL, and the last ones get what is left.
    """
    python = sys.executable
    sanitizer = (find_program("compute-sanitizer"), "--error-exitcode", "7", "--tool")
    goldens = folder / "ptx_goldens.json"
    tests = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k")
    step = (python, "-m", "benchmarks.gpu.step", "{rows}", "{seconds}")
    return [
        Stage("compile", (python, "-m", "benchmarks.gpu.compile"), 70),
        Stage("doctor", (python, "-m", "minitl", "doctor"), 45),
        Stage("target", (*step, "target"), 150, rows=True),
        Stage(
            "kernels",
            (python, "-m", "benchmarks.gpu.kernels", "{rows}", "{seconds}"),
            105,
            rows=True,
        ),
        Stage("goldens", (python, "-m", "tests.cuda_on_cpu.goldens", str(goldens)), 20),
        Stage("tests", (*tests, "gpu", "--maxfail=20", *cuda_tests()), 80),
        Stage("steps", step, 90, rows=True),
        *(
            Stage(
                f"sanitizer {tool}",
                (*sanitizer, tool, *tests, SANITIZED, *cuda_tests()),
                25,
                needs=sanitizer[0],
            )
            for tool in ("memcheck", "racecheck", "synccheck", "initcheck")
        ),
    ]


def find_program(name: str) -> str:
    """Return where a program of the CUDA toolkit is; its name where it is not."""
    toolkits = (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda")
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{t}/bin" for t in toolkits if t)])
    return shutil.which(name, path=path) or name


def cuda_tests() -> list[str]:
    """Return the files of tests that run on a GPU where there is one."""
    files = sorted((ROOT / "tests").glob("test_cuda_*.py"))
    both = re.compile("each_(device|gpu)")
    return [str(path) for path in files if both.search(path.read_text(encoding="utf-8"))]


def run(
    folder: Path, total: float = TOTAL, chosen: Sequence[Stage] | None = None
) -> dict[str, Any]:
    """Run the stages within `total` seconds; return everything, which also lies in the folder.

    The files: gpu.json (with the last words of each stage), gpu.md, plots and the goldens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + total
    result: dict[str, Any] = report.header("gpu", {"seconds": total})
    result["gpu"] = describe_gpu()
    result["stages"] = {}
    for stage in stages(folder) if chosen is None else chosen:
        left = deadline - time.monotonic()
        print(f"{stage.name} ...", flush=True)
        result["stages"][stage.name] = outcome = _run(stage, folder, min(stage.limit, left))
        print(f"  {outcome['outcome']}, {outcome['seconds']:.0f} s", flush=True)
        report.write_json(folder / "gpu.json", result)
        text = gpu_report.markdown(result)
        (folder / "gpu.md").write_text(text, encoding="utf-8")
    print(text)
    try:
        gpu_report.plots(result, folder)
    except Exception as problem:  # the figures are written; pictures of them can be made anywhere
        print(f"no plots: {type(problem).__name__}: {problem}")
    return result


def _run(stage: Stage, folder: Path, seconds: float) -> dict[str, Any]:
    """Run a stage; return its outcome, its last words and its rows."""
    if stage.needs and not shutil.which(stage.needs):
        return {"outcome": f"left out: there is no {stage.needs}", "seconds": 0.0}
    if seconds < 5:
        return {"outcome": "left out: no time left", "seconds": 0.0}
    rows = folder / f"{stage.name}.jsonl"
    # A stage that watches the clock itself stops a little before it is stopped.
    words = {"{rows}": str(rows), "{seconds}": f"{max(seconds - 15, 1):.0f}"}
    command = [words.get(part, part) for part in stage.command]
    log = folder / f"{stage.name.replace(' ', '-')}.log"
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
            outcome = "passed" if status == 0 else f"failed with {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            outcome = "stopped: it took too long"
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # it waits for a GPU that does not answer
                outcome += ", and does not end"
    found: dict[str, Any] = {"outcome": outcome, "seconds": time.monotonic() - started}
    found["last_words"] = log.read_text(errors="replace")[-LAST:]
    if stage.rows:
        lines = rows.read_text().splitlines() if rows.exists() else []
        found["rows"] = [json.loads(line) for line in lines if line.endswith("}")]
        rows.unlink(missing_ok=True)
    log.unlink()
    return found


def describe_gpu() -> dict[str, str]:
    """Return the card, the driver and its clocks as nvidia-smi tells them; nothing where there is none."""
    fields = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.memory")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.splitlines()[0].split(", ")
    return dict(zip(fields, values, strict=False))
