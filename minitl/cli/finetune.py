"""`minitl finetune`: train a pretrained network on a folder of labelled pictures."""

import argparse
from pathlib import Path
from typing import Any

from minitl.cli.arguments import add_device, add_threads
from minitl.errors import UserError


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "finetune",
        help="train a pretrained network on a folder of labelled pictures",
        description="Train a pretrained network on DATA/<class>/* or DATA/{train,val[,test]}/<class>/*.",
        argument_default=argparse.SUPPRESS,
    )
    command.set_defaults(run=run, debug=False)
    what = command.add_argument_group("what to do")
    what.add_argument("data", nargs="?", metavar="DATA", help="the image folder")
    what.add_argument(
        "--weights",
        metavar="FILE.h5|NAME",
        help="pretrained weights: a file (see minitl convert) or a name (see minitl pull --list)",
    )
    what.add_argument(
        "--from-scratch",
        action="store_true",
        help="start the network of --weights from random weights: what did transfer buy?",
    )
    what.add_argument(
        "--arch", metavar="NAME", help="without --weights: the network to train from scratch"
    )
    what.add_argument("--demo", action="store_true", help="built-in example: handwritten digits")
    what.add_argument(
        "--resume", metavar="RUN", help="continue a run after its last finished epoch"
    )
    what.add_argument(
        "--config", metavar="FILE.toml", help="settings of an earlier run to start from"
    )
    what.add_argument("--out", metavar="RUN", help="run folder (default: runs/<name of DATA>)")
    what.add_argument("--overwrite", action="store_true", help="replace the run in the run folder")

    train = command.add_argument_group("training")
    train.add_argument("--epochs", type=int, metavar="N", help="passes over the pictures (10)")
    train.add_argument("--batch-size", type=int, metavar="N", help="pictures in a step (16)")
    train.add_argument(
        "--lr",
        type=float,
        metavar="X",
        help="learning rate (0.001, or 0.01 where only the head trains)",
    )
    train.add_argument(
        "--schedule", metavar="NAME", help="of the learning rate: cosine (default), constant"
    )
    train.add_argument("--warmup-steps", type=int, metavar="N", help="steps of linear warm-up (0)")
    train.add_argument("--momentum", type=float, metavar="X", help="of SGD (0.9)")
    train.add_argument("--nesterov", action="store_true", help="Nesterov's momentum")
    train.add_argument("--weight-decay", type=float, metavar="X", help="L2 penalty (0.0001)")
    train.add_argument(
        "--label-smoothing", type=float, metavar="X", help="of the cross-entropy (0)"
    )
    train.add_argument(
        "--freeze",
        metavar="WHAT,...",
        type=lambda text: tuple(text.split(",")),
        help="parts that do not train: names or patterns such as conv1,layer1,'layer2.*.conv1', or the "
        "words backbone (all but the head), none (default)",
    )
    train.add_argument(
        "--seed", type=int, metavar="N", help="of the head, the split and the order (0)"
    )

    data = command.add_argument_group("pictures")
    data.add_argument(
        "--no-augment", dest="augment", action="store_false", help="no random crop and flip"
    )
    data.add_argument(
        "--no-flip", dest="flip", action="store_false", help="no mirroring: digits, letters, hands"
    )
    data.add_argument(
        "--val-fraction",
        type=float,
        metavar="X",
        help="share kept for validation if DATA has no val (0.2)",
    )
    data.add_argument("--skip-bad", action="store_true", help="go on without unreadable pictures")
    data.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="threads that decode pictures (1; with a GPU one for each core)",
    )
    machine = command.add_argument_group("computing")
    add_device(machine)
    add_threads(machine)
    machine.add_argument(
        "--micro-batch",
        type=int,
        metavar="N",
        help="pictures at a time, at most, in a step: takes less memory (default: all of a batch)",
    )
    machine.add_argument(
        "--conv",
        metavar="HOW",
        help="3x3 convolutions: auto (default) uses Winograd's algorithm where it is quicker and its error "
        "bounded, exact never, f2 and f4 always",
    )
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.config import make_config
    from minitl.train.demo import demo
    from minitl.train.finetune import finetune, resume
    from minitl.train.run_folder import prepare_folder

    given = {k: v for k, v in vars(options).items() if k not in ("run", "debug")}
    if "resume" in given:
        if len(given) > 1:
            raise UserError(
                "--resume takes no other options: a run continues with its own settings"
            )
        resume(Path(given["resume"]))
        return
    config_file = given.pop("config", None)
    out, overwrite = given.pop("out", None), given.pop("overwrite", False)
    if given.pop("demo", False):
        if config_file or given.keys() & {"data", "weights", "arch", "from_scratch"}:
            raise UserError("--demo brings its own DATA, --weights and settings; leave yours out")
        demo(prepare_folder(out, "demo", overwrite), **given)
        return
    config = make_config(config_file and Path(config_file), given)
    finetune(config, prepare_folder(out, Path(config.data).resolve().name, overwrite))
