"""Tables for a terminal of 110 columns, and files."""

import datetime
import json
import math
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import machine

Row = dict[str, Any]
SLOW = 0.95  # ratios below this are listed


def header(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what every result says about where it comes from."""
    return {
        "benchmark": name,
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine.describe(),
        "settings": settings,
    }


def show_header(result: dict[str, Any]) -> None:
    """Print the machine, the versions and the command."""
    m = result["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in m["versions"].items() if v)
    print(f"{result['command']}   {result['date']}   commit {m['commit']}")
    print(f"{m['cpu']}; {m['cores']} cores, {m['memory_gb']} GB; {m['system']}")
    print(f"Python {m['python']}, {versions}")


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result; NaN and infinity become null."""
    path.write_text(json.dumps(_plain(result), indent=1) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


class KernelTable:
    """Prints rows of `kernels.measure` as they come, a heading for each operation."""

    COLUMNS = (
        f"  {'':24}{'algorithm':12}{'ms':>9}{'+-':>5}{'GFLOP/s':>9}{'of peak':>9}"
        f"{'PyTorch':>10}{'+-':>5} {'format':8}{'ratio':>6}{'error':>9}"
    )

    def __init__(self) -> None:
        self.op = ""

    def show(self, row: Row) -> None:
        """Print one row."""
        if row["op"] != self.op:
            self.op = row["op"]
            print(f"\n{self.op}\n{self.COLUMNS}")
        start = f"  {row['shape']:24}{row['algorithm']:12}"
        if "ms" not in row:
            print(f"{start}WRONG: error {row['error']:.1e} is above {row['bound']:.1e}; not timed")
            return
        print(
            f"{start}{_ms(row['ms']):>9}{row['spread']:5.0%}{row['gflops']:9.1f}"
            f"{row['share_of_peak']:9.0%}{_ms(row['rival_ms']):>10}{row['rival_spread']:5.0%} "
            f"{row['rival']:8}{row['ratio']:5.2f}x{row['error']:9.0e}",
            flush=True,
        )


def show_kernel_summary(rows: list[Row], totals: dict[str, dict[str, float]]) -> None:
    """Print sums by network and operation, and what is slower than PyTorch."""
    print(
        f"\nSum over the layers of a network, ms\n  {'':50}{'minitl':>9}{'PyTorch':>9}{'ratio':>8}"
    )
    for name, t in totals.items():
        print(f"  {name:50}{t['ms']:9.1f}{t['rival_ms']:9.1f}{t['rival_ms'] / t['ms']:7.2f}x")
    timed = [row for row in rows if "ms" in row]
    slow = sorted((row for row in timed if row["ratio"] < SLOW), key=lambda row: row["ratio"])
    print(f"\n{len(timed)} operations timed; {len(slow)} below {SLOW}x PyTorch's speed")
    for row in slow:
        print(f"  {row['ratio']:5.2f}x  {row['op']} {row['shape']}")
    for row in rows:
        if "ms" not in row:
            print(f"  WRONG  {row['op']} {row['shape']}: error {row['error']:.1e}")


def show_step(group: Row) -> None:
    """Print what the contenders did in one task of one network."""
    print(f"\n{group['model']}, {group['task']}, batch {group['batch']}, {group['size']} px")
    if not group["verified"]:
        print(f"  WRONG: {group['problem']}; not timed")
    print(
        f"  {'':44}{'ms':>9}{'+-':>5}{'ratio':>8}{'peak MB':>10}{'faults/step':>13}{'first step':>12}"
    )
    for c in group["contenders"]:
        if "ms" not in c:
            print(f"  {c['name']:44}{c.get('problem', 'not timed')}")
            continue
        print(
            f"  {c['name']:44}{_ms(c['ms']):>9}{c['spread']:5.0%}{c['ratio']:7.2f}x"
            f"{c['peak_mb']:10.0f}{c['faults_per_step']:13.0f}{c['first_step_s']:10.1f} s"
        )
    if "ratio" in group:
        print(f"  minitl beside PyTorch eager in its better format: {group['ratio']:.2f}x")


def show_profile(profile: Iterable[tuple[str, float, int]], step_ms: float) -> None:
    """Print where a step's time goes, kernel by kernel."""
    print(f"\n  {'kernel':36}{'ms/step':>9}{'share':>8}{'calls':>7}")
    total = 0.0
    for name, ms, calls in profile:
        total += ms
        print(f"  {name:36}{ms:9.1f}{ms / step_ms:8.1%}{calls:7}")
    print(f"  {'everything else':36}{step_ms - total:9.1f}{1 - total / step_ms:8.1%}")


def show_startup(startup: dict[str, float]) -> None:
    """Print what it takes to get going."""
    print("\nStart-up, seconds")
    for name, seconds in startup.items():
        print(f"  {name:70}{seconds:8.2f}")


def show_finetune(name: str, group: Row) -> None:
    """Print what the contenders did in one task: whole processes, over the seeds."""
    task = group["task"]
    kind = "frozen backbone, no augmentation" if task["frozen"] else "all layers, augmented"
    print(f"\n{name}: {kind}; {task['epochs']} epochs, rate {task['lr']:g}, {group['seeds']} seeds")
    print(
        f"  {'':30}{'seconds':>9}{'+-':>7}{'ratio':>8}{'val accuracy':>14}{'+-':>8}{'peak MB':>9}"
    )
    for c in group["contenders"]:
        print(
            f"  {c['name']:30}{c['seconds']:9.1f}{c['seconds_sd']:7.1f}{c['ratio']:7.2f}x"
            f"{c['val_accuracy']:14.1%}{c['val_accuracy_sd']:8.1%}{c['peak_mb']:9.0f}"
        )
    print(f"  minitl beside the faster script: {group['ratio']:.2f}x")
    if not group["same_pictures"]:
        print("  WRONG: the contenders did not have the same number of pictures")
    print(f"  {_accuracy_beside(group)}")
    timing = group["runs"]["minitl"][0]["timing"]
    parts = ", ".join(f"{what} {seconds:.1f}" for what, seconds in timing.items())
    print(f"  seconds of minitl's first run: {parts}")


def _accuracy_beside(group: Row) -> str:
    """Say how our accuracy compares with the faster script's, and whether that counts as worse."""
    points = -100 * group["accuracy_behind"]
    where = f"{abs(points):.1f} points {'above' if points > 0 else 'below'} the faster script"
    word = "accuracy" if group["same_accuracy"] else "accuracy WORSE"
    return f"{word}: {where} (sd {100 * group['accuracy_sd']:.1f})"


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
