"""`minitl export`: take weights to PyTorch, safetensors or ONNX."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="write weights for PyTorch, safetensors or ONNX",
        description="Write the weights of a run, a weights file or a name of the catalogue for other "
        "programs. State dicts load unchanged into torchvision's and timm's networks.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "model",
        metavar="RUN_OR_WEIGHTS",
        help="a run folder, a weights file or a name (minitl pull --list)",
    )
    command.add_argument("target", metavar="OUT", type=Path, help="the file to write")
    command.add_argument(
        "--to",
        metavar="FORMAT",
        help="torch, safetensors or onnx (default: by the ending of OUT: .pth, .safetensors, .onnx)",
    )
    command.add_argument(
        "--names",
        metavar="WHOSE",
        default="torchvision",
        help="whose names a state dict gets, where they differ: torchvision (default) or timm",
    )
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl import hdf5
    from minitl.convert.export import export
    from minitl.convert.locate import find_weights
    from minitl.text import printable

    source = find_weights(options.model)
    to = export(
        source,
        options.target,
        to=options.to,
        names=options.names,
        overwrite=options.overwrite,
        say=lambda text: print(text, file=sys.stderr),
    )
    print(printable(f"{source} written to {options.target} ({to})"))
    if to == "torch":
        preprocessing = json.dumps(hdf5.read(source).preprocessing)
        print(f"the file holds weights alone; prepare pictures with {preprocessing}")
