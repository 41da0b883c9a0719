"""The settings of training: the same for `finetune` and for what looks at them beforehand."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitl.cli.arguments import (
    add_device,
    add_follow_links,
    add_labels,
    add_threads,
    add_workers,
)

if TYPE_CHECKING:
    from minitl.train.config import Config


def add_source(command: Any) -> None:
    """Add what a run begins with: pictures, network and settings."""
    command.add_argument("data", nargs="?", metavar="DATA", help="the image folder")
    command.add_argument(
        "--weights",
        metavar="FILE.h5|NAME",
        help="pretrained weights: a file (see minitl convert) or a name (see minitl pull --list)",
    )
    command.add_argument(
        "--from-scratch",
        action="store_true",
        help="start the network of --weights from random weights: what did transfer buy?",
    )
    command.add_argument(
        "--arch", metavar="NAME", help="without --weights: the network to train from scratch"
    )
    command.add_argument(
        "--config", metavar="FILE.toml", help="settings of an earlier run to start from"
    )
    command.add_argument(
        "--recipe",
        metavar="NAME",
        help="settings that belong together: all-layers (SGD), frozen-mlp (a dense layer of 1024 on "
        "frozen features, Adam), frozen-vgg (the same on a VGG's flattened map), adamw-steps (all layers, "
        "rate in steps, dropout, early stopping, compared with before); other options override it",
    )


def add_features(command: Any) -> None:
    """Add --features."""
    command.add_argument(
        "--features",
        metavar="FILE.h5",
        help="in place of DATA: train what follows on a file of minitl features",
    )


def add_model(command: Any) -> None:
    """Add what trains: freezing, the head."""
    group = command.add_argument_group("what trains")
    group.add_argument(
        "--freeze",
        metavar="WHAT,...",
        type=words,
        help="parts that do not train: names or patterns such as conv1,layer1,'layer2.*.conv1', or the "
        "words backbone (all but the head, which always trains), none (default)",
    )
    group.add_argument(
        "--freeze-until",
        metavar="PART",
        help="freeze all that comes before this part in the network, such as layer3 (nothing)",
    )
    group.add_argument(
        "--unfreeze-schedule",
        metavar="PART:EPOCH,...",
        type=words,
        help="parts that begin to train in an epoch, counted from 0, the rest stays frozen: "
        "fc:0,layer4:2,layer3:4; head and backbone are words for parts",
    )
    group.add_argument(
        "--head",
        metavar="KIND",
        help="linear (default): one dense layer; mlp:1024 or mlp:1024,512: dense layers of these widths "
        "with ReLU before it; flat:1024: the same in place of all dense layers, for vgg",
    )
    group.add_argument(
        "--dropout",
        type=float,
        metavar="X",
        help="dropout before the last dense layer, probability (0)",
    )


def add_optimizer(command: Any) -> None:
    """Add which optimizer, and the rates of the parts beside each other."""
    group = command.add_argument_group("optimizer")
    group.add_argument("--optimizer", metavar="NAME", help="sgd (default), adam, adamw")
    group.add_argument("--momentum", type=float, metavar="X", help="momentum, for sgd (0.9)")
    group.add_argument("--nesterov", action="store_true", help="Nesterov's momentum, for sgd")
    group.add_argument(
        "--weight-decay", type=float, metavar="X", help="sgd: 0.0001, adam: 0, adamw: 0.01"
    )
    group.add_argument(
        "--decay-norms",
        action="store_true",
        help="weight decay on biases and normalisations too (default: on other weights alone)",
    )
    group.add_argument(
        "--clip-norm",
        type=float,
        metavar="X",
        help="scale gradients so that their total norm is at most X (no clipping)",
    )
    group.add_argument(
        "--layer-decay",
        type=float,
        metavar="X",
        help="layer-wise learning-rate decay: each part below the head learns at X times the rate of the one "
        "above it (1)",
    )


def add_rate(command: Any) -> None:
    """Add the learning rate, and that of single parts."""
    rate = command.add_argument_group("learning rate")
    rate.add_argument(
        "--lr",
        type=float,
        metavar="X",
        help="learning rate (sgd: 0.001, or 0.01 where only the head trains; adam, adamw: a tenth); "
        "see minitl lr-find",
    )
    rate.add_argument(
        "--lr-for",
        action="append",
        metavar="PART=X",
        help="a learning rate for some layers alone: names or patterns as for --freeze, such as "
        "'layer4*=0.0001', or head, backbone; may be repeated, where several fit the last holds (as --lr)",
    )
    rate.add_argument(
        "--lr-head",
        dest="lr_for",
        action="append",
        type="head={}".format,
        metavar="X",
        help="the same as --lr-for head=X",
    )


def add_schedule(command: Any) -> None:
    """Add how the learning rate changes."""
    rate = command.add_argument_group("schedule of the learning rate")
    rate.add_argument(
        "--schedule",
        metavar="NAME",
        help="cosine (default), constant, step, exponential, one-cycle, plateau (of the validation loss)",
    )
    rate.add_argument(
        "--gamma",
        type=float,
        metavar="X",
        help="what the rate is multiplied by: at each step (0.1), each epoch of exponential (0.9), each "
        "plateau (0.1)",
    )
    rate.add_argument(
        "--step-epochs", type=int, metavar="N", help="epochs from step to step (7), for step"
    )
    rate.add_argument(
        "--plateau-patience",
        type=int,
        metavar="N",
        help="epochs without a lower loss before the rate falls (3), for plateau",
    )
    rate.add_argument("--warmup-steps", type=int, metavar="N", help="steps of linear warm-up (0)")


def add_course(command: Any) -> None:
    """Add how long it trains, and what of it is kept."""
    course = command.add_argument_group("course of training")
    course.add_argument("--epochs", type=int, metavar="N", help="passes over the pictures (10)")
    course.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop after so many epochs without a better validation (default: never)",
    )
    course.add_argument(
        "--ema",
        type=float,
        metavar="X",
        help="judge and keep a moving average of the weights, with this decay, such as 0.999 (none)",
    )
    course.add_argument(
        "--save-every",
        metavar="N|TIME",
        help="write the state for --resume after so many steps, or 30s, 5m (5m); and after each epoch",
    )
    course.add_argument(
        "--compare-before",
        action="store_true",
        help="judge the network before training too, on the test part if there is one (default: not)",
    )
    course.add_argument(
        "--no-report",
        dest="report",
        action="store_false",
        help="no report.html and plots at the end",
    )


def add_batches(command: Any) -> None:
    """Add which pictures a step takes."""
    course = command.add_argument_group("batches")
    course.add_argument("--batch-size", type=int, metavar="N", help="pictures in a step (16)")
    course.add_argument(
        "--sampler",
        metavar="HOW",
        help="shuffle (default): each picture once an epoch; balanced: each class equally often",
    )


def add_loss(command: Any) -> None:
    """Add what a step makes smaller."""
    course = command.add_argument_group("loss")
    course.add_argument(
        "--label-smoothing",
        type=float,
        metavar="X",
        help="label smoothing of the cross-entropy (0)",
    )
    course.add_argument(
        "--adversarial",
        metavar="KIND:X",
        help="train on pictures that are changed to mislead the network, each value by at most X of "
        "255: pgd:2 (7 steps, as many more passes) or fgsm:4 (one); for robustness, at some cost of accuracy "
        "(off)",
    )
    course.add_argument(
        "--class-weights",
        metavar="HOW",
        help="of the loss: none (default), or balanced: rare classes weigh more, so that each counts alike",
    )


def add_augmentation(command: Any) -> None:
    """Add how training pictures are varied, each by itself."""
    group = command.add_argument_group("variation of training pictures (see minitl preview)")
    group.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="vary pictures at all (yes); --no-augment: no crop, no flip",
    )
    group.add_argument(
        "--crop-scale",
        type=numbers(float, 2),
        metavar="LOW,HIGH",
        help="share of the area that a random crop keeps (0.35,1)",
    )
    group.add_argument(
        "--no-flip", dest="flip", action="store_false", help="no mirroring: digits, letters, hands"
    )
    group.add_argument(
        "--vertical-flip", action="store_true", help="upside down as well: pictures from above"
    )
    group.add_argument(
        "--rotation", type=float, metavar="X", help="degrees, at most, either way (0)"
    )
    group.add_argument("--shear", type=float, metavar="X", help="degrees, at most, either way (0)")
    group.add_argument(
        "--zoom", type=float, metavar="X", help="scale each axis by a factor from 1-X to 1+X (0)"
    )
    group.add_argument(
        "--color-jitter",
        type=jitter,
        metavar="X|B,C,S,H",
        help="strength of changes of brightness, contrast and saturation, such as 0.2, or of each and of "
        "hue, such as 0.4,0.4,0.2,0.05 (0)",
    )
    group.add_argument(
        "--erase", type=float, metavar="P", help="probability of painting a rectangle over (0)"
    )
    group.add_argument(
        "--policy",
        type=numbers(int, 2),
        metavar="N,M",
        help="N operations drawn for each picture, as RandAugment, of strength M from 0 to 30 (0,0)",
    )
    group.add_argument(
        "--mixup",
        type=float,
        metavar="A",
        help="blend pictures in pairs, shares from Beta(A, A); 0.2 is usual (0: never)",
    )
    group.add_argument(
        "--cutmix",
        type=float,
        metavar="A",
        help="put parts of pictures into others, shares from Beta(A, A); 1 is usual (0: never)",
    )


def add_kept_features(command: Any) -> None:
    """Add where what frozen layers compute is kept."""
    group = command.add_argument_group("features of frozen layers")
    cache = group.add_mutually_exclusive_group()
    cache.add_argument(
        "--feature-cache",
        metavar="DIR",
        help="keep what frozen layers compute there (the user's cache folder; see minitl cache)",
    )
    cache.add_argument(
        "--no-feature-cache",
        dest="feature_cache",
        action="store_const",
        const="off",
        help="compute it again in each epoch",
    )
    group.add_argument(
        "--cached-views",
        type=int,
        metavar="K",
        help="vary each picture in K ways only, and keep what frozen layers compute of them (0: new "
        "variations each epoch, nothing kept)",
    )


def add_pictures(command: Any) -> None:
    """Add which pictures there are, and in which part."""
    group = command.add_argument_group("pictures")
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="random seed, of the head, the split, the order and all variations; the same seed gives the "
        "same bits (0)",
    )
    group.add_argument(
        "--val-fraction",
        type=float,
        metavar="X",
        help="share kept for validation if DATA has no val (0.2)",
    )
    group.add_argument(
        "--test-fraction",
        type=float,
        metavar="X",
        help="share set aside to judge the best epoch by, if DATA has no test part (0)",
    )
    add_labels(group)
    add_follow_links(group)
    group.add_argument(
        "--skip-bad", action="store_true", help="leave out unreadable pictures (default: stop)"
    )


def add_tasks(command: Any) -> None:
    """Add what the columns of a table of labels are, where there are several."""
    group = command.add_argument_group("several labels or tasks for each picture")
    group.add_argument(
        "--task",
        action="append",
        metavar="COLUMN=KIND",
        help="a column of --labels to learn; repeat it for each. KIND is classes (one of them), labels (any "
        "number of them, with | between; - for none) or number; an empty cell: not known",
    )
    group.add_argument(
        "--task-weight",
        action="append",
        metavar="COLUMN=W",
        help="how much a task's loss counts in the sum; repeat it for each (1)",
    )


def add_computing(command: Any) -> None:
    """Add where and how it is computed."""
    group = command.add_argument_group("computing")
    add_device(group)
    add_threads(group)
    add_workers(group, kind=int)
    group.add_argument(
        "--micro-batch",
        type=int,
        metavar="N",
        help="pictures at a time, at most, in a step: takes less memory (default: all of a batch)",
    )
    group.add_argument(
        "--conv",
        metavar="HOW",
        help="3x3 convolutions: auto (default) uses Winograd's algorithm where it is quicker and its error "
        "bounded, exact never, f2 and f4 always",
    )


SETTINGS: tuple[Callable[[Any], None], ...] = (
    *(add_model, add_optimizer, add_rate, add_schedule, add_course, add_batches, add_loss),
    *(add_augmentation, add_pictures, add_kept_features, add_tasks, add_computing),
)


def add_settings(
    command: argparse.ArgumentParser, idle: Collection[Callable[[Any], None]] = ()
) -> None:
    """Add all settings of training, so that a line of options suits each command that has them.

    idle: those that have no influence; they are taken, and left out of the help.
    """
    for add in SETTINGS:
        add(_Hidden(command) if add in idle else command)


class _Hidden:
    """Stands for a parser, and adds arguments to it that its help does not show."""

    def __init__(self, command: Any) -> None:
        self._command = command

    def add_argument(self, *names: str, **rest: Any) -> None:
        self._command.add_argument(*names, **rest | {"help": argparse.SUPPRESS})

    def add_argument_group(self, title: str) -> "_Hidden":
        return self

    def add_mutually_exclusive_group(self) -> "_Hidden":
        return _Hidden(self._command.add_mutually_exclusive_group())


def given_in(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that were given, by name."""
    return {k: v for k, v in vars(options).items() if k not in ("run", "debug", "command")}


def config_of(given: dict[str, Any], command: str) -> "Config":
    """Return the Config that the given settings make, with --config and --features; UserError as it says."""
    from minitl.train.config import make_config

    given = dict(given)
    file = given.pop("config", None)
    if "features" in given:
        from minitl.feature_file import FeatureFile
        from minitl.train.feature_runs import settings_from_features

        given = settings_from_features(FeatureFile(given["features"]), given)
    return make_config(file and Path(file), given, command=command)


def jitter(text: str) -> tuple[float, ...]:
    """Read one strength for three of the four colour changes, or one for each."""
    return (*numbers(float, 1)(text) * 3, 0.0) if "," not in text else numbers(float, 4)(text)


def words(text: str) -> tuple[str, ...]:
    """Read a list with commas."""
    return tuple(text.split(","))


def numbers(kind: type, count: int) -> Callable[[str], tuple[Any, ...]]:
    """Return a function that reads so many numbers with commas between them."""

    def read(text: str) -> tuple[Any, ...]:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count:
            wanted = "a number" if count == 1 else f"{count} numbers with commas between them"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return values

    return read
