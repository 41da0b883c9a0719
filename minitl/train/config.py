"""What a fine-tuning run is told, and its config.toml."""

import dataclasses
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, get_args, get_origin

import tomli_w

from minitl.convert.locate import is_name
from minitl.data.augment import Augmentation
from minitl.device import check_precision, parse_device
from minitl.errors import UserError
from minitl.files import write_atomically
from minitl.tasks import parse as parse_tasks
from minitl.text import printable
from minitl.train.attack import Attack
from minitl.train.batches import decoding_threads
from minitl.train.checkpoint import parse_interval
from minitl.train.contradictions import refuse_brought, refuse_contradictions, refuse_idle
from minitl.train.heads import parse_head
from minitl.train.options import option
from minitl.train.rates import parse_rates
from minitl.train.recipes import less_pointless, settings_of

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "constant", "step", "exponential", "one-cycle", "plateau")
AUTO, OFF = "auto", "off"  # words of feature_cache, beside a folder


def _positive(value: float | None) -> bool:
    return value is None or 0 < value < math.inf


# What a setting may be: a test of all settings, and what to give instead.
_RANGES: dict[str, tuple[Callable[["Config"], bool], str]] = {
    "epochs": (lambda c: c.epochs >= 1, "give at least 1"),
    "batch_size": (lambda c: c.batch_size >= 1, "give at least 1"),
    "micro_batch": (
        lambda c: c.micro_batch is None or c.micro_batch >= 1,
        "give at least 1, or leave it out for whole batches",
    ),
    "optimizer": (lambda c: c.optimizer in OPTIMIZERS, "choose sgd, adam or adamw"),
    "lr": (lambda c: _positive(c.lr), "give a positive number such as 0.001"),
    "layer_decay": (
        lambda c: 0 < c.layer_decay <= 1,
        "give a number above 0, at most 1, such as 0.75",
    ),
    "momentum": (lambda c: 0 <= c.momentum < 1, "give a number from 0 up to, not including, 1"),
    "weight_decay": (
        lambda c: c.weight_decay is None or 0 <= c.weight_decay < math.inf,
        "give 0 or a small positive number such as 1e-4",
    ),
    "clip_norm": (lambda c: _positive(c.clip_norm), "give a positive number such as 1"),
    "ema": (
        lambda c: c.ema is None or 0 < c.ema < 1,
        "give a number between 0 and 1 such as 0.999",
    ),
    "schedule": (
        lambda c: c.schedule in SCHEDULES,
        f"choose {', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}",
    ),
    "gamma": (
        lambda c: c.gamma is None or 0 < c.gamma < 1,
        "give a number between 0 and 1 such as 0.1",
    ),
    "step_epochs": (lambda c: c.step_epochs >= 1, "give at least 1"),
    "plateau_patience": (lambda c: c.plateau_patience >= 0, "give 0 or more"),
    "warmup_steps": (lambda c: c.warmup_steps >= 0, "give 0 or more"),
    "patience": (
        lambda c: c.patience is None or c.patience >= 1,
        "give at least 1, or leave it out",
    ),
    "label_smoothing": (
        lambda c: 0 <= c.label_smoothing < 1,
        "give a number from 0 up to, not including, 1",
    ),
    "class_weights": (lambda c: c.class_weights in ("none", "balanced"), "choose balanced or none"),
    "sampler": (lambda c: c.sampler in ("shuffle", "balanced"), "choose shuffle or balanced"),
    "dropout": (lambda c: 0 <= c.dropout < 1, "give a number from 0 up to, not including, 1"),
    "cached_views": (lambda c: c.cached_views >= 0, "give 0 or a small number such as 4"),
    "mixup": (lambda c: 0 <= c.mixup < math.inf, "give 0 or a positive number such as 0.2"),
    "cutmix": (lambda c: 0 <= c.cutmix < math.inf, "give 0 or a positive number such as 1"),
    "val_fraction": (lambda c: 0 < c.val_fraction < 1, "give a share between 0 and 1 such as 0.2"),
    "test_fraction": (
        lambda c: 0 <= c.test_fraction < 1 - c.val_fraction,
        "give 0, or a share such as 0.2 that leaves some to train on",
    ),
    "seed": (lambda c: c.seed >= 0, "give 0 or a positive number"),
    "workers": (lambda c: c.workers >= 1, "give at least 1"),
    "conv": (lambda c: c.conv in ("auto", "exact", "f2", "f4"), "choose auto, exact, f2 or f4"),
    "threads": (
        lambda c: c.threads is None or c.threads >= 1,
        "give at least 1, or leave it out for all cores",
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of `minitl finetune`. A run's config.toml holds them resolved: nothing is left open.

    data: the image folder.
    weights: the pretrained HDF5 file, or a name of the catalogue. from_scratch: take only its network
        and preprocessing.
    arch: without `weights`, the network to train from scratch.
    lr, weight_decay, gamma: None takes what is usual, see train/optimisation.py.
    lr_for: rates of parts of their own, see train/rates.py. layer_decay: rate of a part, in shares of that
        of the part above it.
    decay_norms: weight decay on biases and normalisations too.
    schedule: see `make_schedule`; gamma, step_epochs, plateau_patience belong to it.
    class_weights: "balanced" or "none". sampler: "shuffle" or "balanced".
    patience: epochs without a better validation before the run stops. ema: see train/averaging.py.
    adversarial: train on pictures under attack, "pgd:2" or "fgsm:4", see `Attack.parse`.
    mixup, cutmix: see train/mixing.py. head: see train/heads.py. dropout: before the last dense layer.
    freeze: name patterns, or "backbone", or "none". freeze_until: the first part, in the order of the
        network, that trains. unfreeze_schedule: see train/unfreezing.py.
    augment: random crops, mirrored pictures if `flip`, and what comes after it, see `Augmentation`.
        color_jitter: brightness, contrast, saturation, hue.
    labels: a table of labels; label_from_name: a pattern; see data/labels.py.
    follow_links: take along what links that lead out of `data` point to.
    task, task_weight: the columns of `labels` that are tasks, and how much each counts, see `tasks.parse`.
    features: a file of minitl features, whose pictures and frozen layers these are.
    feature_cache: folder for what frozen layers compute, or "auto" for the user's own, or "off".
    cached_views: variations of each picture that are kept there; 0 for a new one in each epoch.
    micro_batch: pictures at a time, at most, with the gradients of a whole batch; None for all of it.
    device: "cpu", "cuda" or "cuda:N". precision: "float32", or on a GPU "tf32" or "bf16".
    conv: how 3x3 convolutions are computed, see `set_conv_algorithm`.
    preprocessing: how pictures are prepared, as in weights files. None takes that of the weights, or what is
        usual for `arch`; weights that were trained with another one are refused.
    save_every: steps, or a time, after which the state is written in the middle of an epoch.
    compare_before: judge the network before the first step as well.
    report: write report.html and its plots at the end.
    """

    data: str
    weights: str | None
    arch: str | None = None
    from_scratch: bool = False
    epochs: int = 10
    batch_size: int = 16
    micro_batch: int | None = None
    optimizer: str = "sgd"
    lr: float | None = None
    lr_for: tuple[str, ...] = ()
    layer_decay: float = 1.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float | None = None
    decay_norms: bool = False
    clip_norm: float | None = None
    ema: float | None = None
    schedule: str = "cosine"
    gamma: float | None = None
    step_epochs: int = 7
    plateau_patience: int = 3
    warmup_steps: int = 0
    patience: int | None = None
    label_smoothing: float = 0.0
    class_weights: str = "none"
    sampler: str = "shuffle"
    head: str = "linear"
    dropout: float = 0.0
    freeze: tuple[str, ...] = ("none",)
    freeze_until: str | None = None
    unfreeze_schedule: tuple[str, ...] = ()
    augment: bool = True
    flip: bool = True
    crop_scale: tuple[float, float] = (0.35, 1.0)
    vertical_flip: bool = False
    rotation: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    erase: float = 0.0
    policy: tuple[int, int] = (0, 0)
    features: str | None = None
    feature_cache: str = AUTO
    cached_views: int = 0
    adversarial: str | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    labels: str | None = None
    label_from_name: str | None = None
    follow_links: bool = False
    task: tuple[str, ...] = ()
    task_weight: tuple[str, ...] = ()
    val_fraction: float = 0.2
    test_fraction: float = 0.0
    seed: int = 0
    save_every: str = "5m"
    workers: int = 1
    skip_bad: bool = False
    device: str = "cpu"
    precision: str = "float32"
    conv: str = "auto"
    threads: int | None = None
    preprocessing: dict | None = None
    report: bool = True
    compare_before: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        for name, (holds, hint) in _RANGES.items():
            if not holds(self):
                raise UserError(f"{option(name)} cannot be {getattr(self, name)}; {hint}")
        for name, value in vars(self).items():
            if isinstance(value, str) and not _is_text(value):
                raise UserError(
                    f"{option(name)} {printable(value)}: a name that is not UTF-8 has no place in "
                    "config.toml; rename that file or folder"
                )
        self.augmentation()
        parse_interval(self.save_every)
        parse_head(self.head)
        parse_rates(self.lr_for)
        parse_tasks(self.task, self.task_weight)
        if self.adversarial is not None:
            Attack.parse(self.adversarial)
        refuse_contradictions(self)
        check_precision(parse_device(self.device), self.precision)

    def augmentation(self) -> Augmentation | None:
        """Return how training pictures are varied, None for not at all."""
        brightness, contrast, saturation, hue = self.color_jitter
        augmentation = Augmentation(
            scale=self.crop_scale,
            flip=0.5 if self.flip else 0.0,
            vertical_flip=0.5 if self.vertical_flip else 0.0,
            rotation=self.rotation,
            shear=self.shear,
            zoom=self.zoom,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            erase=self.erase,
            policy=self.policy,
        )
        return augmentation if self.augment else None

    def save(self, path: Path) -> None:
        """Write the settings as TOML, atomically; None is left out."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        write_atomically(path, tomli_w.dumps(values).encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read settings that `save` wrote; UserError names the file and the fault."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid TOML: {error}") from None
        if "lr_head" in values:  # from before other parts could have a rate of their own
            values.setdefault("lr_for", [f"head={values.pop('lr_head')}"])
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise UserError(f"{path} has unknown settings: {', '.join(unknown)}; remove them")
        values.setdefault("weights", None)
        for field in dataclasses.fields(cls):
            if field.name in values and not _fits(values[field.name], field.type):
                raise UserError(
                    f"{path}: {field.name} cannot be {values[field.name]!r}; write it as the config.toml "
                    "of a run does"
                )
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = tuple(value)
        if "weight_decay" in values:  # from before it could leave anything out
            values.setdefault("decay_norms", True)
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"{path}: {error}") from None


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value as TOML gives it suits a field with this annotation."""
    if get_origin(annotation) is tuple:
        kinds = get_args(annotation)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value) if isinstance(value, list) else kinds
        return (
            isinstance(value, list)
            and len(value) == len(kinds)
            and all(_fits(part, kind) for part, kind in zip(value, kinds, strict=True))
        )
    if isinstance(value, bool):  # Python counts them among the integers
        return annotation is bool
    if annotation in (float, float | None):
        return isinstance(value, int | float)
    return value is None or isinstance(value, annotation)


def make_config(
    file: Path | None,
    given: dict[str, Any],
    settings: dict[str, Any] | None = None,
    command: str = "finetune",
) -> Config:
    """Combine a config.toml, if there is one, with the options given on the command line.

    settings: to start from where there is no config.toml. command: whose options these are, for advice.
    """
    given = dict(given)
    for name in given.keys() & {"task", "task_weight", "lr_for"}:
        given[name] = tuple(given[name])
    recipe = given.pop("recipe", None)
    if recipe is not None and file is not None:
        raise UserError("--recipe and --config both bring settings; choose one of them")
    values = (settings or {}) if file is None else dataclasses.asdict(Config.load(file))
    if values.get("features") is not None and "features" not in given:
        refuse_brought(given, f"--config {file}, of a run on --features,")
    values = less_pointless(values, given)
    values |= given if recipe is None else settings_of(recipe, given) | given
    if "data" not in values:
        demo = " (or try --demo)" if command == "finetune" else ""
        raise UserError(f"give the image folder: minitl {command} DATA --weights FILE.h5{demo}")
    values.setdefault("workers", decoding_threads(values.get("device", "cpu")))
    if "weights" not in given and "arch" in given:
        values["weights"] = None
    if "weights" in given:
        values["preprocessing"] = None  # what the file has is that of the weights it was made with
        if "arch" not in given:
            values["arch"] = None
    values.setdefault("weights", None)
    # A run is resumed and repeated from wherever the user stands then.
    for name in ("data", "weights", "labels", "features", "feature_cache"):
        path = values.get(name)
        words = (AUTO, OFF) if name == "feature_cache" else ()
        if path is not None and path not in words and not (name == "weights" and is_name(path)):
            values[name] = str(Path(path).absolute())
    config = Config(**values)
    refuse_idle(config, given)
    return config


def _is_text(value: str) -> bool:
    """Whether a value is text: names of files may hold bytes that are none."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
