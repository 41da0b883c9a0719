"""The run folder's pictures: learning curves and the confusion matrix, as PNG files."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minitl.text import printable

NAMED = 40  # classes whose names fit at the axes of a confusion matrix


def curves(history: Sequence[dict[str, float]]) -> bytes:
    """Draw loss and accuracy over the epochs, training beside validation; return a PNG.

    Of several tasks the score in place of the accuracy, which training does not have.
    """
    figure, (left, right) = _figure(1, 2, (9, 3.2))
    epochs = [row["epoch"] for row in history]
    for axes, name in (
        (left, "loss"),
        (right, "score" if "val_score" in history[0] else "accuracy"),
    ):
        for part, label, colour in (("train", "training", "C0"), ("val", "validation", "C1")):
            if f"{part}_{name}" in history[0]:
                values = [row[f"{part}_{name}"] for row in history]
                axes.plot(epochs, values, "o-", ms=3, label=label, color=colour)
        axes.set_xlabel("epoch")
        axes.set_title(name)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    right.set_ylim(top=1.02)
    left.legend()
    return _png(figure)


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix, each row in shares of its true class; return a PNG."""
    counts = np.asarray(matrix, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(3.2, 0.42 * len(classes) + 1.5), 14)
    figure, axes = _figure(1, 1, (side, side))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= NAMED:
        names = map(printable, classes)  # a folder's name need not be text
        shown = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
        axes.set_xticks(range(len(classes)), shown, rotation=90, parse_math=False)
        axes.set_yticks(range(len(classes)), shown, parse_math=False)
    if len(classes) <= 20:
        for row, column in np.ndindex(counts.shape):
            if counts[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(
                    column, row, f"{int(counts[row, column])}",
                    ha="center", va="center", color=colour, fontsize=8,
                )  # fmt: skip
    return _png(figure)


def reliability(calibration: dict[str, Any]) -> bytes:
    """Draw how often predictions are right against how sure they are; return a PNG."""
    figure, axes = _figure(1, 1, (3.2, 3.2))
    axes.plot([0, 1], [0, 1], color="gray", lw=1, ls="--")
    columns = (calibration[name] for name in ("confidence", "accuracy", "images"))
    known = [row for row in zip(*columns, strict=True) if row[2]]
    sure, right, images = (list(column) for column in zip(*known, strict=True))
    axes.plot(sure, right, lw=1, alpha=0.5)
    sizes = [20 + 200 * n / sum(images) for n in images]  # area: pictures
    axes.scatter(sure, right, s=sizes)
    axes.set(xlim=(0, 1.04), ylim=(0, 1.04), xlabel="confidence", ylabel="accuracy")
    axes.grid(alpha=0.3)
    return _png(figure)


def numbers(true: np.ndarray, said: np.ndarray) -> bytes:
    """Draw predicted against true numbers; return a PNG."""
    figure, axes = _figure(1, 1, (3.2, 3.2))
    ends = [min(true.min(), said.min()), max(true.max(), said.max())]
    axes.plot(ends, ends, color="gray", lw=1, ls="--")
    axes.scatter(true, said, s=8, alpha=0.5)
    axes.set(xlabel="true", ylabel="predicted")
    axes.grid(alpha=0.3)
    return _png(figure)


def learning_rates(
    rates: Sequence[float],
    losses: Sequence[float],
    smooth: Sequence[float],
    suggestion: float | None,
) -> bytes:
    """Draw the loss over a rising learning rate, and the suggested rate if there is one; return a PNG."""
    figure, axes = _figure(1, 1, (6, 3.6))
    axes.plot(rates, losses, lw=1, alpha=0.35, label="loss of each batch")
    axes.plot(rates, smooth, lw=2, label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color="gray", ls="--", lw=1, label=f"suggestion: {suggestion:.2g}")
    axes.set_xscale("log")
    # The usual labels are formulas, and nothing is drawn as one here: see _png.
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}")
    known = [loss for loss in smooth if np.isfinite(loss)]
    axes.set_ylim(0, 1.2 * max(known[0], min(known) * 4))
    axes.set(xlabel="learning rate", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def transfer(accuracy: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> bytes:
    """Draw each way's seeds, their mean and its interval; return a PNG."""
    figure, axes = _figure(1, 1, (6, 2.6))
    for place, row in enumerate(accuracy.values()):
        axes.plot(row["seeds"], [place] * len(row["seeds"]), "o", color="gray", alpha=0.6)
        axes.plot([row["mean"]], [place], "D", color="C0")
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [place, place], color="C0", lw=2)
    axes.set_yticks(range(len(accuracy)), [names[way] for way in accuracy])
    axes.set(xlabel="accuracy", ylim=(len(accuracy) - 0.5, -0.5))
    axes.grid(alpha=0.3)
    return _png(figure)


def shift(found: Mapping[str, Any]) -> bytes:
    """Draw the distance to the pretraining data over the layers; return a PNG."""
    figure, axes = _figure(1, 1, (6, 2.6))
    axes.plot(list(found["layers"].values()), "o-", ms=3, label="to the pretraining data")
    axes.axhline(found["floor"], color="gray", ls="--", label="between halves of these pictures")
    axes.set(xlabel="normalisation layer, first to last", ylabel="distance")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    return _png(figure)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure and its axes; without pyplot, which keeps state and wants a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Class names may hold what the font lacks or what looks like a formula: drawn as they are.
    for text in figure.findobj(lambda item: hasattr(item, "set_parse_math")):
        text.set_parse_math(False)
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
