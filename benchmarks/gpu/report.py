"""Tables and plots of a GPU run; they show what was measured, and say what was not."""

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

COPY_SHARE = 0.85  # of the copy's bandwidth; memory-bound kernels below it are marked


def rows_of(result: Row, stage: str) -> list[Row]:
    """Return the rows of a stage; none if it did not run."""
    rows: list[Row] = result["stages"].get(stage, {}).get("rows", [])
    return rows


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean; NaN of nothing."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def convolution_means(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Return the geometric mean of the ratios to cuDNN by (precision, direction), and of all ("all")."""
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if "ratio" in row:
            ratios[row["precision"], row["op"]].append(row["ratio"])
            ratios[row["precision"], "all"].append(row["ratio"])
    return {key: geometric_mean(values) for key, values in ratios.items()}


def markdown(result: Row) -> str:
    """Return everything as text."""
    gpu = ", ".join(f"{name} {value}" for name, value in result["gpu"].items()) or "no GPU"
    versions = ", ".join(f"{name} {v}" for name, v in result["machine"]["versions"].items() if v)
    lines = [
        f"# GPU, {result['date']}",
        "",
        f"`{result['command']}`, commit {result['machine']['commit']}. {gpu}. "
        f"Python {result['machine']['python']}, {versions}.",
        "",
        "| stage | outcome | seconds |",
        "|---|---|---|",
        *(
            f"| {name} | {stage['outcome']} | {stage['seconds']:.0f} |"
            for name, stage in result["stages"].items()
        ),
        "",
        *_steps(rows_of(result, "steps")),
        *_kernels(rows_of(result, "kernels")),
    ]
    return "\n".join(lines) + "\n"


def _steps(rows: list[Row]) -> list[str]:
    if not rows:
        return ["Whole steps were not measured.", ""]
    lines = [
        "Whole steps, bfloat16, images per second (ratio: to the better of PyTorch's)",
        "",
        "| network | task | batch | minitl | PyTorch eager | torch.compile | ratio | GB: ours, PyTorch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "unfinished" in row:
            lines.append(f"\n{row['unfinished']}.")
            continue
        start = f"| {row['model']} | {row['task']} | {row['batch']} |"
        if "images_per_second" not in row:
            reason = row.get("problem") or f"differs from PyTorch by {row['difference']:.1e}"
            lines.append(f"{start} not timed: {reason.splitlines()[0][:120]} | | | | |")
            continue
        speed, memory = row["images_per_second"], row["memory_gb"]
        names = ("minitl", "torch eager", "torch.compile")
        figures = " | ".join(f"{speed[name]:,.0f}" if name in speed else "" for name in names)
        theirs = memory.get("torch eager", math.nan)
        lines.append(
            f"{start} {figures} | {row['ratio']:.2f} | {memory['minitl']:.1f}, {theirs:.1f} |"
        )
    return [*lines, ""]


def _kernels(rows: list[Row]) -> list[str]:
    if not rows:
        return ["Kernels were not measured.", ""]
    peaks = next((row["peaks"] for row in rows if "peaks" in row), {})
    lines = [
        "Peaks, by PyTorch: "
        + ", ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in peaks.items()),
        "",
        "Convolutions of ResNet-50 beside cuDNN, geometric mean of the ratios (above 1 minitl is faster)",
        "",
        "| precision | forward | dx | dw | all |",
        "|---|---|---|---|---|",
    ]
    means = convolution_means(rows)
    for precision in dict.fromkeys(key[0] for key in means):
        cells = (
            means.get((precision, op), math.nan)
            for op in ("conv2d_forward", "conv2d_dx", "conv2d_dw", "all")
        )
        lines.append(f"| {precision} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    lines += [
        "",
        "| kernel | shape | precision | ms | TFLOP/s | of peak | GB/s | of copy | to cuDNN |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "op" in row:
            lines.append(_kernel(row, peaks))
    lines += [f"\n{row['unfinished']}." for row in rows if "unfinished" in row]
    return [*lines, ""]


def _kernel(row: Row, peaks: dict[str, float]) -> str:
    start = f"| {row['op']} | {row['shape']} | {row['precision']} |"
    if "ms" not in row:
        reason = row.get("problem") or f"wrong: error {row['error']:.1e} above {row['bound']:.1e}"
        return f"{start} not timed: {reason.splitlines()[0][:120]} | | | | | |"
    peak = peaks.get(f"{row['precision']}_tflops", math.nan)
    copy = row["gbytes"] / peaks.get("copy_gbytes", math.nan)
    if row["tflops"]:
        work = (
            f"{row['tflops']:.1f} | {row['tflops'] / peak:.0%} | {row['gbytes']:,.0f} | {copy:.0%}"
        )
    else:
        mark = " (below 85 %)" if copy < COPY_SHARE else ""
        work = f" | | {row['gbytes']:,.0f} | {copy:.0%}{mark}"
    ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
    return f"{start} {row['ms']:.4f} | {work} | {ratio} |"


def plots(result: Row, folder: Path) -> None:
    """Draw what was measured: ratios of convolutions to cuDNN, and images per second of whole steps."""
    from matplotlib.figure import Figure

    convolutions = [row for row in rows_of(result, "kernels") if "ratio" in row]
    if convolutions:
        figure = Figure(figsize=(11, 7), layout="constrained")
        grid = figure.subplots(3, 1, sharex=True)
        for axes, op in zip(grid, ("conv2d_forward", "conv2d_dx", "conv2d_dw"), strict=True):
            for precision in dict.fromkeys(row["precision"] for row in convolutions):
                own = [r for r in convolutions if (r["op"], r["precision"]) == (op, precision)]
                axes.plot(
                    [r["shape"] for r in own], [r["ratio"] for r in own], "o", label=precision
                )
            axes.axhline(1, color="gray", lw=1)
            axes.set(ylabel=op, yscale="log")
            axes.tick_params(axis="x", rotation=90)
        grid[0].legend(title="times as fast as cuDNN")
        figure.savefig(folder / "convolutions.png", dpi=110)
    steps = [row for row in rows_of(result, "steps") if "images_per_second" in row]
    if steps:
        figure = Figure(figsize=(11, 5), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(name for row in steps for name in row["images_per_second"]))
        for number, name in enumerate(names):
            places = [i + 0.27 * number for i in range(len(steps))]
            values = [row["images_per_second"].get(name, 0) for row in steps]
            axes.bar(places, values, 0.25, label=name)
        labels = [f"{row['model']}\n{row['task']}\nbatch {row['batch']}" for row in steps]
        axes.set_xticks([i + 0.27 for i in range(len(steps))], labels, fontsize=7)
        axes.set_ylabel("images per second")
        axes.legend()
        figure.savefig(folder / "steps.png", dpi=110)
