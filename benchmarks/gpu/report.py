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


def convolution_means(rows: Iterable[Row], key: str = "ratio") -> dict[tuple[str, str], float]:
    """Return the geometric mean of the ratios to cuDNN by (precision, direction), and of all ("all").

    key: what else to take the mean of, such as "by_single_warps".
    """
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if key in row:
            ratios[row["precision"], row["op"]].append(row[key])
            ratios[row["precision"], "all"].append(row[key])
    return {key: geometric_mean(values) for key, values in ratios.items()}


def peaks_of(result: Row) -> dict[str, float]:
    """Return what PyTorch reached: TFLOP/s by precision, and GB/s of a copy; empty if that is not known."""
    rows = rows_of(result, "kernels")
    return next((row["peaks"] for row in rows if "peaks" in row), {})


def floor_ms(gflop: float, gbytes: float, precision: str, peaks: dict[str, float]) -> float:
    """Return the least time for so many operations and bytes, whichever takes longer; NaN without peaks."""
    computing = gflop / peaks.get(f"{precision}_tflops", math.nan) if gflop else 0.0
    return max(computing, 1e3 * gbytes / peaks.get("copy_gbytes", math.nan))


def markdown(result: Row) -> str:
    """Return everything as text."""
    gpu = ", ".join(f"{name} {value}" for name, value in result["gpu"].items()) or "no GPU"
    versions = ", ".join(f"{name} {v}" for name, v in result["machine"]["versions"].items() if v)
    peaks = peaks_of(result)
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
        *_steps([*rows_of(result, "target"), *rows_of(result, "steps")], peaks),
        *_kernels(rows_of(result, "kernels"), peaks),
    ]
    return "\n".join(lines) + "\n"


def _steps(rows: list[Row], peaks: dict[str, float]) -> list[str]:
    if not rows:
        return ["Whole steps were not measured.", ""]
    lines = [
        "Whole steps, bfloat16, images per second. Ratio: to the better of PyTorch's, named (above 1 "
        "minitl is faster). Of floor: the least time at the peaks below, for the multiplications and (of "
        "ResNet-50) a model of the bytes that our kernels move, divided by ours. Difference: to PyTorch in "
        "float32, after six steps, and what was allowed, which is a multiple of PyTorch's own in bfloat16.",
        "",
        "| network | task | batch | minitl | PyTorch eager | torch.compile | ratio | of floor | difference "
        "| GB: ours, PyTorch |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "unfinished" in row:
            continue
        start = f"| {row['model']} | {row['task']} | {row['batch']} |"
        if "images_per_second" not in row:
            reason = row.get("problem") or f"{row['worst']} differ from PyTorch in float32"
            lines.append(
                f"{start} not timed: {reason.splitlines()[0][:120]} | | | | | {_difference(row)} | |"
            )
            continue
        speed, memory = row["images_per_second"], row["memory_gb"]
        names = ("minitl", "torch eager", "torch.compile")
        figures = " | ".join(f"{speed[name]:,.0f}" if name in speed else "" for name in names)
        n = row["batch"]
        floor = floor_ms(n * row["gflop"], n * row["bytes"] / 1e9, "bf16", peaks)
        lines.append(
            f"{start} {figures} | {row['ratio']:.2f} ({row['better']}) | {floor / row['ms']['minitl']:.0%} | "
            f"{_difference(row)} | {memory['minitl']:.1f}, {memory[row['better']]:.1f} |"
        )
    lines += [f"\n{row['unfinished']}." for row in rows if "unfinished" in row]
    return [*lines, ""]


def _difference(row: Row) -> str:
    if "allowed" not in row:
        return ""
    return f"{row['difference']:.1e} of {row['allowed']:.1e}, {row['worst']}"


def _kernels(rows: list[Row], peaks: dict[str, float]) -> list[str]:
    if not rows:
        return ["Kernels were not measured.", ""]
    lines = [
        "Peaks, by PyTorch: "
        + ", ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in peaks.items()),
        "",
        "Convolutions of ResNet-50 beside cuDNN, geometric mean of the ratios (above 1 minitl is faster)",
        "",
        "| precision | forward | dx | dw | all |",
        "|---|---|---|---|---|",
    ]
    for key, beside in (("ratio", ""), ("by_single_warps", ", beside our own by single warps")):
        means = convolution_means(rows, key)
        for precision in dict.fromkeys(of for of, _ in means):
            cells = (
                f"{means.get((precision, op), math.nan):.2f}"
                for op in ("conv2d_forward", "conv2d_dx", "conv2d_dw", "all")
            )
            lines.append(f"| {precision}{beside} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Floor: the multiplications at the peak, or each array once at the speed of a copy, whichever takes "
        "longer.",
        "",
        "| kernel | shape | precision | ms | floor, ms | of floor | TFLOP/s | GB/s | to cuDNN | faster |",
        "|---|---|---|---|---|---|---|---|---|---|",
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
        return f"{start} not timed: {reason.splitlines()[0][:120]} | | | | | | |"
    ms = row["ms"]
    floor = floor_ms(row["tflops"] * ms, row["gbytes"] * ms / 1e3, row["precision"], peaks)
    mark = " (below 85 %)" if not row["tflops"] and floor / ms < COPY_SHARE else ""
    work = f"{row['tflops']:.1f}" if row["tflops"] else ""
    ratio = faster = ""
    if "ratio" in row:
        ratio, faster = f"{row['ratio']:.2f}", "minitl" if row["ratio"] > 1 else "cuDNN"
    return (
        f"{start} {ms:.4f} | {floor:.4f} | {floor / ms:.0%}{mark} | {work} | {row['gbytes']:,.0f} | "
        f"{ratio} | {faster} |"
    )


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
    rows = [*rows_of(result, "target"), *rows_of(result, "steps")]
    steps = [row for row in rows if "images_per_second" in row]
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
