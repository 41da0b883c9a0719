"""The command line: arguments in, one call of the library, a message out."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitl import __version__
from minitl.errors import InterruptedRunError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code (0 good, 1 an error that was explained, 130 Ctrl-C)."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        return 0
    except (UserError, OSError, KeyboardInterrupt, MemoryError) as error:
        if options.debug:
            raise
        print(f"minitl: {_explain(error)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt | InterruptedRunError) else 1


def _explain(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    if isinstance(error, MemoryError):
        return "out of memory; try a smaller --batch-size"
    return "interrupted"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minitl", description="Transfer learning on your own pictures, on a plain CPU."
    )
    parser.add_argument("--version", action="version", version=f"minitl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_finetune, _add_evaluate, _add_predict, _add_inspect, _add_convert):
        command = add(commands)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_finetune(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "finetune",
        help="train a pretrained network on a folder of labelled pictures",
        description="Train a pretrained network on DATA/<class>/* or DATA/{train,val[,test]}/<class>/*.",
        argument_default=argparse.SUPPRESS,
    )
    command.set_defaults(run=_finetune, debug=False)
    what = command.add_argument_group("what to do")
    what.add_argument("data", nargs="?", metavar="DATA", help="the image folder")
    what.add_argument(
        "--weights", metavar="FILE.h5", help="pretrained weights (see minitl convert)"
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
    data.add_argument("--workers", type=int, metavar="N", help="threads that decode pictures (1)")
    machine = command.add_argument_group("computing")
    machine.add_argument("--device", metavar="NAME", help="cpu (default)")
    _add_threads(machine)
    machine.add_argument(
        "--conv",
        metavar="HOW",
        help="3x3 convolutions: auto (default) uses Winograd's algorithm where it is quicker and its error "
        "bounded, exact never, f2 and f4 always",
    )
    return command


def _add_threads(command: Any) -> None:
    command.add_argument(
        "--threads",
        type=_count,
        metavar="N",
        help="threads that compute (default: all cores); results do not depend on it",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _finetune(options: argparse.Namespace) -> None:
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


def _add_evaluate(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "evaluate", help="judge a run or a weights file on an image folder"
    )
    command.set_defaults(run=_evaluate)
    command.add_argument("model", metavar="RUN_OR_WEIGHTS", type=Path)
    command.add_argument("data", metavar="DATA", type=Path)
    command.add_argument(
        "--part", choices=("train", "val", "test", "all"), help="default: test, else val"
    )
    command.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="decoding threads (1)"
    )
    _add_threads(command)
    command.add_argument("--json", action="store_true", help="print the figures as JSON")
    return command


def _evaluate(options: argparse.Namespace) -> None:
    from minitl.train.console import percent, printable
    from minitl.train.evaluate import evaluate

    figures = evaluate(options.model, options.data, options.part, options.workers, options.threads)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    width = max(len(printable(name)) for name in [*figures["per_class"], "class"])
    print(f"{'class':{width}}  images  precision  recall      F1")
    for name, row in figures["per_class"].items():
        print(
            f"{printable(name):{width}}  {row['images']:6d}  {percent(row['precision']):>9}  "
            f"{percent(row['recall']):>6}  {percent(row['f1']):>6}"
        )
    top5 = f", top-5 {percent(figures['top5'])}" if "top5" in figures else ""
    print(
        f"{figures['part']}: {figures['images']} pictures, accuracy {percent(figures['accuracy'])}{top5}, "
        f"macro F1 {percent(figures['macro_f1'])}, loss {figures['loss']:.4f}"
    )


def _add_predict(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser("predict", help="classify pictures")
    command.set_defaults(run=_predict)
    command.add_argument("model", metavar="RUN_OR_WEIGHTS", type=Path)
    command.add_argument("images", metavar="IMAGE", type=Path, nargs="+")
    command.add_argument(
        "--top", type=_count, default=3, metavar="N", help="classes shown for each (3)"
    )
    _add_threads(command)
    command.add_argument("--json", action="store_true", help="print a JSON list")
    return command


def _predict(options: argparse.Namespace) -> None:
    from minitl.train.console import percent, printable
    from minitl.train.evaluate import predict

    results = predict(options.model, options.images, options.top, threads=options.threads)
    if options.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
        return
    for result in results:
        best = ", ".join(f"{name} {percent(probability)}" for name, probability in result["top"])
        print(printable(f"{result['image']}: {best}"))


def _add_inspect(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "inspect", help="show what a weights file holds"
    )
    command.set_defaults(run=_inspect)
    command.add_argument("file", metavar="FILE.h5", type=Path)
    command.add_argument("--keys", action="store_true", help="list every array")
    return command


def _inspect(options: argparse.Namespace) -> None:
    from minitl import hdf5
    from minitl.train.console import printable

    contents = hdf5.read(options.file)
    classes = contents.class_names
    parameters = sum(a.size for n, a in contents.state.items() if "running_" not in n)
    rows = {
        "file": options.file,
        "architecture": " ".join([contents.arch, json.dumps(contents.arch_options)]),
        "parameters": f"{parameters:,}",
        "classes": "not named"
        if classes is None
        else f"{len(classes)}: {', '.join(classes[:8])}" + (", ..." if len(classes) > 8 else ""),
        "preprocessing": json.dumps(contents.preprocessing),
        "source": contents.source or "not recorded",
        "source sha256": contents.source_sha256 or "not recorded",
        "license": contents.license or "not recorded",
        "digest": f"{contents.digest} (verified)",
    }
    if contents.progress is not None:
        rows["checkpoint"] = f"after epoch {contents.progress.get('epoch')}"
    for name, value in rows.items():
        print(f"{name + ':':16}{printable(str(value))}")
    if options.keys:
        for name, array in contents.state.items():
            print(f"  {name:44} {array.dtype} {tuple(array.shape)}")


def _add_convert(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "convert", help="turn a PyTorch checkpoint into a weights file, without PyTorch"
    )
    command.set_defaults(run=_convert)
    command.add_argument("source", metavar="SRC.pth", type=Path)
    command.add_argument("target", metavar="DST.h5", type=Path)
    command.add_argument("--arch", required=True, metavar="NAME", help="such as resnet50")
    command.add_argument(
        "--arch-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="such as shortcut=A",
    )
    command.add_argument(
        "--class-names", type=Path, metavar="FILE", help="one name a line, in order"
    )
    command.add_argument("--license", metavar="TEXT", help="recorded in the file")
    command.add_argument("--overwrite", action="store_true", help="replace DST.h5 if it exists")
    return command


def _convert(options: argparse.Namespace) -> None:
    from minitl.convert import convert

    report = convert(
        options.source,
        options.target,
        arch=options.arch,
        arch_options=dict(_name_value(text) for text in options.arch_option),
        class_names=options.class_names and _lines(options.class_names),
        license=options.license,
        overwrite=options.overwrite,
    )
    print(report)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; give a file with one name a line") from None


def _name_value(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--arch-option {text}: write NAME=VALUE, such as shortcut=A")
    return name, int(value) if value.isdigit() else value


if __name__ == "__main__":
    sys.exit(main())
