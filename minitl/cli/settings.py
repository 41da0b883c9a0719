"""The settings of training: the same for `finetune` and for what looks at them beforehand."""

import argparse
from collections.abc import Callable
from typing import Any

from minitl.cli.arguments import add_device, add_follow_links, add_labels, add_threads


def add_recipe(command: Any) -> None:
    """Add --recipe."""
    command.add_argument(
        "--recipe",
        metavar="NAME",
        help="settings that belong together: all-layers (SGD), frozen-mlp (a dense layer of 1024 on "
        "frozen features, Adam), frozen-vgg (the same on a VGG's flattened map), adamw-steps (all layers, "
        "rate in steps, dropout, early stopping, compared with before); other options override it",
    )


def add_model(command: argparse.ArgumentParser) -> None:
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
        help="share of the features that the last dense layer does without in training (0)",
    )


def add_optimizer(command: argparse.ArgumentParser) -> None:
    """Add which optimizer, and the rates of the parts beside each other."""
    group = command.add_argument_group("optimizer")
    group.add_argument("--optimizer", metavar="NAME", help="sgd (default), adam, adamw")
    group.add_argument("--momentum", type=float, metavar="X", help="of sgd (0.9)")
    group.add_argument("--nesterov", action="store_true", help="Nesterov's momentum, for sgd")
    group.add_argument(
        "--weight-decay", type=float, metavar="X", help="sgd: 0.0001, adam: 0, adamw: 0.01"
    )
    group.add_argument(
        "--decay-norms",
        action="store_true",
        help="weight decay on biases and normalisations too (default: not)",
    )
    group.add_argument(
        "--clip-norm", type=float, metavar="X", help="most that the gradients' norm may be (any)"
    )
    group.add_argument(
        "--layer-decay",
        type=float,
        metavar="X",
        help="each part below the head learns at X times the rate of the one above (1)",
    )


def add_rate(command: argparse.ArgumentParser) -> None:
    """Add the learning rate and its course."""
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
        help="of some layers alone, once for each: names or patterns as for --freeze, such as "
        "'layer4*=0.0001', or head, backbone; where several fit, the last (as --lr)",
    )
    rate.add_argument(
        "--lr-head",
        dest="lr_for",
        action="append",
        type="head={}".format,
        metavar="X",
        help="the same as --lr-for head=X",
    )
    rate.add_argument(
        "--schedule",
        metavar="NAME",
        help="cosine (default), constant, step, exponential, one-cycle, plateau (of the validation loss)",
    )
    rate.add_argument(
        "--gamma",
        type=float,
        metavar="X",
        help="factor of each step (0.1), epoch of exponential (0.9), or plateau (0.1)",
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


def add_course(command: argparse.ArgumentParser) -> None:
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


def add_batches(command: argparse.ArgumentParser) -> None:
    """Add what a step is made of: its batch and its loss."""
    course = command.add_argument_group("batches and their loss")
    course.add_argument("--batch-size", type=int, metavar="N", help="pictures in a step (16)")
    course.add_argument(
        "--label-smoothing", type=float, metavar="X", help="of the cross-entropy (0)"
    )
    course.add_argument(
        "--adversarial",
        metavar="KIND:X",
        help="train on pictures that are changed to mislead the network, by at most X of 255: pgd:2 (7 "
        "passes more in each step) or fgsm:4 (one); for robustness, at some cost of accuracy (off)",
    )
    course.add_argument(
        "--class-weights",
        metavar="HOW",
        help="in the loss: none (default), or balanced: each class counts alike in all",
    )
    course.add_argument(
        "--sampler",
        metavar="HOW",
        help="shuffle (default): each picture once an epoch; balanced: each class equally often",
    )


def add_augmentation(command: argparse.ArgumentParser) -> None:
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
        "--zoom", type=float, metavar="X", help="each axis by a factor from 1-X to 1+X (0)"
    )
    group.add_argument(
        "--color-jitter",
        type=jitter,
        metavar="X|B,C,S,H",
        help="strength for brightness, contrast and saturation, or of each and of hue, such as 0.2 or "
        "0.4,0.4,0.2,0.05 (0)",
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


def add_pictures(command: argparse.ArgumentParser) -> None:
    """Add how pictures are chosen, read and mixed."""
    group = command.add_argument_group("pictures")
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
        help="vary each picture in K ways only, and keep what frozen layers compute of them (0: anew)",
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
    group.add_argument("--skip-bad", action="store_true", help="go on without unreadable pictures")
    group.add_argument("--workers", type=int, metavar="N", help="threads that decode pictures (1)")


def add_tasks(command: argparse.ArgumentParser) -> None:
    """Add what the columns of a table of labels are, where there are several."""
    group = command.add_argument_group("several labels or tasks for each picture")
    group.add_argument(
        "--task",
        action="append",
        metavar="COLUMN=KIND",
        help="a column of --labels to learn, once for each: classes (one of them), labels (any number of "
        "them, with | between; - for none) or number; an empty cell: not known",
    )
    group.add_argument(
        "--task-weight",
        action="append",
        metavar="COLUMN=W",
        help="how much a task's loss counts (1)",
    )


def add_computing(command: argparse.ArgumentParser) -> None:
    """Add where and how it is computed, and from which random numbers."""
    group = command.add_argument_group("computing")
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of the head, the split, the order and all variations: equal seeds give equal bits (0)",
    )
    add_device(group)
    add_threads(group)
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
