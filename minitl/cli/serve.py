"""`minitl serve`: a local web page that classifies pictures."""

import argparse
from pathlib import Path
from typing import Any

from minitl.cli.arguments import add_threads


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="serve a local web page and JSON endpoint: drop a picture, see classes",
        description="Serve a model on this machine: a page, and POST /predict with a picture as the body. "
        "The address to open in a browser is printed. Needs pip install 'minitl[serve]'.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "model",
        metavar="RUN_OR_WEIGHTS",
        type=Path,
        help="a run folder, a weights file or a name (minitl pull --list)",
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (127.0.0.1: this machine alone; 0.0.0.0: the whole network)",
    )
    command.add_argument(
        "--port", type=_port, default=8000, metavar="N", help="port (8000); 0: any free one"
    )
    add_threads(command)
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.serve import serve
    from minitl.train.computing import prepare_device
    from minitl.train.evaluate import load

    model = load(options.model)
    prepare_device("cpu", "float32", options.threads)
    serve(model, options.model.resolve().name, options.host, options.port)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)
