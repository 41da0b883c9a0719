"""Did transfer help? The same pictures and the same epochs, three ways, several times.

    scratch      the network of the weights, from random weights
    frozen       the pretrained network with a new head, which alone trains
    finetuned    the pretrained network, all of it trains

Each seed draws another split (where the folders do not say it), another head and another order; the three
ways share it, so differences are taken seed by seed. Intervals are Student's t over the seeds, 95 %: they
say what other seeds would have given on this data, not what other pictures would.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitl import models, run_files
from minitl.convert.locate import find_weights
from minitl.device import get_device
from minitl.errors import InterruptedRunError
from minitl.files import write_atomically, write_json
from minitl.train import plots
from minitl.train.attack import Attack
from minitl.train.config import Config
from minitl.train.console import Progress, percent, say
from minitl.train.finetune import finetune
from minitl.train.pictures import data_uri
from minitl.train.robustness import under_attack
from minitl.train.run_folder import refuse_to_replace_weights
from minitl.train.shift import Shift, domain_shift
from minitl.train.source import dataset_of_run

WAYS = ("scratch", "frozen", "finetuned")
NAMES = {"scratch": "from scratch", "frozen": "frozen features", "finetuned": "fine-tuned"}
# From scratch wants larger steps than a network that has much to lose.
RATES = {"scratch": 0.05, "frozen": 0.01, "finetuned": 0.001}
LEARNED = 0.05  # above the most frequent class: so much shows that anything has been learned


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval; no bounds for a single seed."""

    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """Return mean and Student's t interval of some values."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Interval(mean, None, None)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def transfer_report(
    settings: Config,
    folder: Path,
    seeds: int = 3,
    rates: dict[str, float] | None = None,
    attack: Attack | None = None,
) -> dict[str, Any]:
    """Train all ways, write transfer.json and transfer.html into the folder, and return the figures.

    settings: with the weights; `lr`, `freeze`, `from_scratch` and `seed` are set here. rates: learning
    rates, where they are not RATES. attack: judge the results under it as well. Runs go to
    folder/<way>/seed-N, in place of those that are there.

    Raises UserError as `finetune`, and InterruptedRunError on Ctrl-C.
    """
    assert settings.weights is not None
    for seed in range(seeds):
        for way in WAYS:
            refuse_to_replace_weights(folder / way / f"seed-{seed}", settings.weights)
    rates = RATES | (rates or {})
    accuracy: dict[str, list[float]] = {way: [] for way in WAYS}
    attacked: dict[str, list[float]] = {way: [] for way in WAYS}
    part, judged_on, most_frequent = "val", 0, []
    for seed in range(seeds):
        for way in WAYS:
            say(f"\n{NAMES[way]}, seed {seed}")
            config = dataclasses.replace(
                settings,
                lr=rates[way],
                seed=seed,
                from_scratch=way == "scratch",
                freeze=("backbone",) if way == "frozen" else ("none",),
                report=False,
            )
            run = folder / way / f"seed-{seed}"
            summary = _finetuned(config, run, folder)
            part = "test" if "test" in summary else "val"
            accuracy[way].append(summary[part]["accuracy"])
            counts = [row["images"] for row in summary[part]["per_class"].values()]
            judged_on = sum(counts)
            most_frequent.append(max(counts) / judged_on)
            if attack is not None:
                attacked[way].append(_attacked(run, config, part, attack))
    shift = _shift(settings, folder / "finetuned" / "seed-0")
    figures = _figures(accuracy, attacked, part, attack, shift)
    figures |= {"images": judged_on, "most_frequent": float(np.mean(most_frequent))}
    figures["words"] += [
        fully_or_frozen(interval(np.subtract(accuracy["finetuned"], accuracy["frozen"]).tolist())),
        *too_short(figures, settings.epochs),
    ]
    figures |= {"weights": Path(settings.weights).name, "epochs": settings.epochs, "rates": rates}
    write_json(folder / "transfer.json", figures)
    write_atomically(folder / "transfer.html", render(figures).encode("utf-8", "backslashreplace"))
    return figures


def _finetuned(config: Config, run: Path, folder: Path) -> dict[str, Any]:
    """Carry one of the runs through; an interruption says how to make the whole report."""
    try:
        return finetune(config, run)
    except InterruptedRunError:
        raise InterruptedRunError(
            f"interrupted in the run {run}; a transfer report is not continued but begun again: give the "
            f"same command with --out {folder} --overwrite, which replaces the runs in it"
        ) from None


def _attacked(run: Path, config: Config, part: str, attack: Attack) -> float:
    dataset = dataset_of_run(run, config)
    samples = getattr(dataset, part)
    with Progress("attacking", len(samples)) as progress:
        found = under_attack(
            models.load_model(run / run_files.BEST),
            samples,
            dataset.root,
            attack,
            workers=config.workers,
            device=get_device(config.device),
            precision=config.precision,
            progress=progress.update,
        )
    return float(found["accuracy"])


def _shift(settings: Config, run: Path) -> Shift | None:
    dataset = dataset_of_run(run, settings)
    model = models.load_model(find_weights(str(settings.weights)))
    return domain_shift(model, dataset.train, dataset.root, workers=settings.workers)


def _figures(
    accuracy: dict[str, list[float]],
    attacked: dict[str, list[float]],
    part: str,
    attack: Attack | None,
    shift: Shift | None,
) -> dict[str, Any]:
    gains = {
        way: interval(np.subtract(accuracy[way], accuracy["scratch"]).tolist())
        for way in ("frozen", "finetuned")
    }
    figures: dict[str, Any] = {
        "part": part,
        "seeds": len(accuracy["scratch"]),
        "interval": "95 %, Student's t over the seeds; gains: of paired differences",
        "accuracy": {
            way: {"seeds": values, **dataclasses.asdict(interval(values))}
            for way, values in accuracy.items()
        },
        "gain": {way: dataclasses.asdict(gain) for way, gain in gains.items()},
        "words": [gain_in_words(NAMES[way].capitalize(), gain) for way, gain in gains.items()],
        "shift": shift and dataclasses.asdict(shift),
    }
    if attack is not None:
        figures["attack"] = dataclasses.asdict(attack) | {
            way: dataclasses.asdict(interval(values)) for way, values in attacked.items()
        }
    return figures


def gain_in_words(what: str, gain: Interval) -> str:
    """Say what a difference of accuracies to training from scratch means."""
    points = f"{100 * gain.mean:+.1f} points against training from scratch"
    if gain.low is None or gain.high is None:
        return (
            f"{what}: {points}, in a single run each; more --seeds would say whether that is luck."
        )
    points += f" (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    if gain.low > 0:
        return f"{what}: transfer helped, {points}."
    if gain.high < 0:
        return f"{what}: transfer HURT, {points}. Train from scratch, or from other weights."
    return f"{what}: no clear difference, {points}."


def fully_or_frozen(gain: Interval) -> str:
    """Say which of the two ways to transfer is better here, by the accuracies' difference."""
    better = "all layers" if gain.mean > 0 else "the head alone"
    points = f"{100 * gain.mean:+.1f} points against frozen features"
    if gain.low is None or gain.high is None:
        which = f"training {better} did better" if gain.mean else "neither did better"
        return f"Of these two {which}: {points}, in a single run each."
    points += f" (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    if gain.low <= 0 <= gain.high:
        return f"Of these two neither is clearly better: fine-tuned {points}; frozen is quicker."
    return f"Of these two training {better} is better: fine-tuned {points}."


def too_short(figures: dict[str, Any], epochs: int) -> list[str]:
    """Say it where training from scratch got nowhere: transfer is then compared with nothing learned."""
    scratch, always = figures["accuracy"]["scratch"]["mean"], figures["most_frequent"]
    if scratch > always + LEARNED:
        return []
    return [
        f"From scratch hardly beats saying the most frequent class each time ({percent(always)}): "
        f"{epochs} epochs are too few for it. The gains hold for so short a training; for the question "
        "what more patience would bring, give more --epochs."
    ]


def table(figures: dict[str, Any]) -> list[str]:
    """Return the figures as lines for a terminal."""
    attack = figures.get("attack")
    header = f"{figures['part']:16}  accuracy   95 % interval"
    lines = [header + (f"     under {attack['kind'].upper()}" if attack else "")]
    for way in WAYS:
        row = figures["accuracy"][way]
        line = f"{NAMES[way]:16}  {percent(row['mean']):>8}   {bounds(row):16}"
        lines.append(line + (f"  {percent(attack[way]['mean']):>8}" if attack else ""))
    lines += figures["words"]
    shift = figures["shift"]
    if shift is None:
        lines.append(
            "Distance to the pretraining data: not known; the network keeps no statistics of it."
        )
    else:
        lines.append(
            f"Distance to the pretraining data: {shift['distance']:.2f} standard deviations of a channel "
            f"(median over channels); between halves of your own data {shift['floor']:.2f}."
        )
    return lines


def bounds(row: dict[str, Any]) -> str:
    """Write an interval of shares; Student's t knows nothing of their limits."""
    if row["low"] is None:
        return ""
    return f"{percent(max(row['low'], 0.0))} to {percent(min(row['high'], 1.0))}"


def render(figures: dict[str, Any]) -> str:
    """Return transfer.html: one page, nothing fetched from elsewhere."""
    from jinja2 import Environment

    source = Path(__file__).with_name("transfer.html.j2").read_text(encoding="utf-8")
    attack = figures.get("attack")
    rows = [
        {
            "name": NAMES[way],
            "accuracy": percent(figures["accuracy"][way]["mean"]),
            "bounds": bounds(figures["accuracy"][way]),
            "rate": f"{figures['rates'][way]:g}",
            "attacked": percent(attack[way]["mean"]) if attack else None,
        }
        for way in WAYS
    ]
    return (
        Environment(autoescape=True)
        .from_string(source)
        .render(
            figures=figures,
            rows=rows,
            attack=attack,
            plot=data_uri(plots.transfer(figures["accuracy"], NAMES)),
            layers=figures["shift"] and data_uri(plots.shift(figures["shift"])),
        )
    )


__all__ = [
    "RATES",
    "WAYS",
    "Interval",
    "fully_or_frozen",
    "gain_in_words",
    "interval",
    "render",
    "table",
    "too_short",
    "transfer_report",
]
