"""`minitl convert`: turn somebody's weights into a weights file."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from minitl.errors import UserError


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "convert",
        help="turn weights of PyTorch, safetensors or Keras into a weights file",
        description="Turn weights of PyTorch, safetensors or Keras into a weights file, without these "
        "programs and without executing anything. Format and network are told from the contents of SRC.",
    )
    command.set_defaults(run=run)
    command.add_argument("source", metavar="SRC", type=Path, help="the file to convert")
    command.add_argument("target", metavar="DST.h5", type=Path, help="the weights file to write")
    command.add_argument(
        "--arch", metavar="NAME", help="the network, such as resnet50 (default: recognised)"
    )
    command.add_argument(
        "--arch-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the network, such as stride_in_1x1=true; overrides what was recognised",
    )
    command.add_argument(
        "--entry", metavar="KEY", help="what holds the weights in a checkpoint, such as model_ema"
    )
    command.add_argument(
        "--new-head", type=int, metavar="N", help="replace the head by a random one for N classes"
    )
    command.add_argument(
        "--drop-unexpected",
        action="store_true",
        help="leave out what the network has no place for, instead of refusing",
    )
    command.add_argument(
        "--preprocessing",
        type=_preprocessing,
        metavar="NAME|JSON",
        help="how pixels are prepared: raw, unit, tf, torch or caffe; or what differs from the usual, as "
        """'{"resize": 232, "interpolation": "bicubic"}'""",
    )
    command.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE|imagenet",
        help="a file with one class name a line, in order; or the word imagenet: the usual names and order "
        "of its 1000 classes",
    )
    command.add_argument(
        "--license", metavar="TEXT", help="licence of the weights, recorded in the file"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="say what would be written, and do not write"
    )
    command.add_argument("--overwrite", action="store_true", help="replace DST.h5 if it exists")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.convert import ConversionError, convert

    try:
        report = convert(
            options.source,
            options.target,
            arch=options.arch,
            arch_options=dict(_name_value(text) for text in options.arch_option),
            class_names=options.class_names and _names(options.class_names),
            preprocessing=options.preprocessing,
            license=options.license,
            entry=options.entry,
            new_head=options.new_head,
            drop_unexpected=options.drop_unexpected,
            overwrite=options.overwrite,
            dry_run=options.dry_run,
        )
    except ConversionError as error:
        print(error.report, file=sys.stderr)
        raise UserError(error.summary) from error
    print(report)


def _preprocessing(text: str) -> str | dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return text
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    return dict(fields)


def _names(file: Path) -> list[str]:
    from minitl.weights import IMAGENET_CLASSES

    if str(file) == "imagenet" and not file.exists():
        file = IMAGENET_CLASSES
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; give a file with one name a line") from None


def _name_value(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--arch-option {text}: write NAME=VALUE, such as shortcut=A")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
