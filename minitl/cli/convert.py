"""`minitl convert`: turn somebody's weights into a weights file."""

import argparse
from pathlib import Path
from typing import Any

from minitl.errors import UserError


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "convert", help="turn a PyTorch checkpoint into a weights file, without PyTorch"
    )
    command.set_defaults(run=run)
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


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
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
