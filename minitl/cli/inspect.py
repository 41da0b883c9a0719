"""`minitl inspect`: show what a weights file holds."""

import argparse
import json
from pathlib import Path
from typing import Any


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "inspect", help="show what a weights file holds"
    )
    command.set_defaults(run=run)
    command.add_argument("file", metavar="FILE.h5", type=Path)
    command.add_argument("--keys", action="store_true", help="list every array")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
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
