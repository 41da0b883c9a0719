"""Pictures of `kernels` results: speed beside PyTorch for each layer, and a roofline."""

from pathlib import Path
from typing import Any

Row = dict[str, Any]


def plot(path: Path, result: dict[str, Any]) -> None:
    """Draw the rows of a result into a file; the name's ending chooses the format.

    Raises ModuleNotFoundError where matplotlib is missing.
    """
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if "ms" in row]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    shades = {op: f"C{number % 10}" for number, op in enumerate(ops)}
    height = max(4.0, 0.16 * len(rows))
    figure = Figure(figsize=(15, height), layout="constrained")
    bars, roofline = figure.subplots(1, 2)
    _ratios(bars, rows, shades)
    _roofline(roofline, rows, shades, result["peaks"])
    machine = result["machine"]
    figure.suptitle(
        f"{machine['cpu']}, {machine['cores']} cores; batch {result['settings']['batch']}; "
        f"PyTorch {machine['versions']['torch']}; {result['date']}"
    )
    figure.savefig(path, dpi=110)


def _ratios(axes: Any, rows: list[Row], shades: dict[str, str]) -> None:
    names = [f"{row['op']}  {row['shape']}" for row in rows]
    places = range(len(rows))
    ratios = [row["ratio"] for row in rows]
    axes.barh(places, ratios, color=[shades[row["op"]] for row in rows])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(places, names, fontsize=6)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel(
        "PyTorch's time / ours (its better memory format); right of the line we are faster"
    )


def _roofline(axes: Any, rows: list[Row], shades: dict[str, str], peaks: dict[str, float]) -> None:
    intensities = [row["flops"] / row["bytes"] for row in rows]
    low, high = min(intensities) / 2, max(intensities) * 2
    ridge = peaks["gflops"] / peaks["gbytes"]
    corners = sorted({low, min(max(ridge, low), high), high})
    axes.plot(corners, [min(peaks["gflops"], i * peaks["gbytes"]) for i in corners], color="black")
    for op, shade in shades.items():
        mine = [i for i, row in enumerate(rows) if row["op"] == op]
        x = [intensities[i] for i in mine]
        axes.plot(x, [rows[i]["gflops"] for i in mine], "o", color=shade, label=op, markersize=5)
        theirs = [rows[i]["flops"] / rows[i]["rival_ms"] / 1e6 for i in mine]
        axes.plot(x, theirs, "o", color=shade, fillstyle="none", markersize=5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte that must be moved")
    axes.set_ylabel(
        "GFLOP/s of the plain algorithm (filled: minitl, open: PyTorch); Winograd may pass the roof"
    )
    axes.legend(fontsize=6)
