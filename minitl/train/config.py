"""What a fine-tuning run is told, and its config.toml."""

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any, Self

import tomli_w

from minitl.convert.pull import is_name
from minitl.device import check_precision, parse_device
from minitl.errors import UserError
from minitl.files import write_atomically
from minitl.train.batches import decoding_threads

LR = 0.001  # all layers together: more destroys what pretraining learned
LR_HEAD = 0.01


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of `minitl finetune`. A run's config.toml holds them resolved: nothing is left open.

    data: the image folder.
    weights: the pretrained HDF5 file, or a name of the catalogue. from_scratch: take only its network
        and preprocessing.
    arch: without `weights`, the network to train from scratch.
    lr: None takes LR, or LR_HEAD where only the head trains.
    freeze: name patterns, or "backbone", or "none".
    augment: random crops, and mirrored pictures if `flip`.
    micro_batch: pictures at a time, at most, with the gradients of a whole batch; None for all of it.
    device: "cpu", "cuda" or "cuda:N". precision: "float32", or on a GPU "tf32" or "bf16".
    conv: how 3x3 convolutions are computed, see `set_conv_algorithm`.
    preprocessing: how pictures are prepared, as in weights files. None takes that of the weights, or what is
        usual for `arch`; weights that were trained with another one are refused.
    """

    data: str
    weights: str | None
    arch: str | None = None
    from_scratch: bool = False
    epochs: int = 10
    batch_size: int = 16
    micro_batch: int | None = None
    lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup_steps: int = 0
    label_smoothing: float = 0.0
    freeze: tuple[str, ...] = ("none",)
    augment: bool = True
    flip: bool = True
    val_fraction: float = 0.2
    seed: int = 0
    workers: int = 1
    skip_bad: bool = False
    device: str = "cpu"
    precision: str = "float32"
    conv: str = "auto"
    threads: int | None = None
    preprocessing: dict | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        checks = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "micro_batch": self.micro_batch is None or self.micro_batch >= 1,
            "lr": self.lr is None or (math.isfinite(self.lr) and self.lr > 0),
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            "warmup_steps": self.warmup_steps >= 0,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "val_fraction": 0 < self.val_fraction < 1,
            "seed": self.seed >= 0,
            "workers": self.workers >= 1,
            "threads": self.threads is None or self.threads >= 1,
            "conv": self.conv in ("auto", "exact", "f2", "f4"),
            "schedule": self.schedule in ("cosine", "constant"),
        }
        for name, valid in checks.items():
            if not valid:
                raise UserError(
                    f"--{name.replace('_', '-')} cannot be {getattr(self, name)}; {_HINTS[name]}"
                )
        if self.nesterov and self.momentum == 0:
            raise UserError("--nesterov needs a --momentum above 0")
        check_precision(parse_device(self.device), self.precision)

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
        values["freeze"] = tuple(values.get("freeze", ("none",)))
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"{path}: {error}") from None


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value as TOML gives it suits a field with this annotation."""
    if annotation == tuple[str, ...]:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)
    if isinstance(value, bool):  # Python counts them among the integers
        return annotation is bool
    if annotation in (float, float | None):
        return isinstance(value, int | float)
    return value is None or isinstance(value, annotation)


def make_config(file: Path | None, given: dict[str, Any]) -> Config:
    """Combine a config.toml, if there is one, with the options given on the command line."""
    # A run is resumed and repeated from wherever the user stands then.
    for name in given.keys() & {"data", "weights"}:
        if name == "data" or not is_name(given[name]):
            given = given | {name: str(Path(given[name]).absolute())}
    values = {} if file is None else dataclasses.asdict(Config.load(file))
    values |= given
    if "data" not in values:
        raise UserError(
            "give the image folder: minitl finetune DATA --weights FILE.h5 (or try --demo)"
        )
    values.setdefault("workers", decoding_threads(values.get("device", "cpu")))
    if "weights" not in given and "arch" in given:
        values["weights"] = None
    values.setdefault("weights", None)
    return Config(**values)


_HINTS = {
    "threads": "give at least 1, or leave it out for all cores",
    "conv": "choose auto, exact, f2 or f4",
    "epochs": "give at least 1",
    "batch_size": "give at least 1",
    "micro_batch": "give at least 1, or leave it out for whole batches",
    "lr": "give a positive number such as 0.001",
    "momentum": "give a number from 0 up to, not including, 1",
    "weight_decay": "give 0 or a small positive number such as 1e-4",
    "warmup_steps": "give 0 or more",
    "label_smoothing": "give a number from 0 up to, not including, 1",
    "val_fraction": "give a share between 0 and 1 such as 0.2",
    "seed": "give 0 or a positive number",
    "workers": "give at least 1",
    "schedule": "choose cosine or constant",
}
