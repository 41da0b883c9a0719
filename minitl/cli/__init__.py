"""The command line: arguments in, one call of the library, a message out.

One file for each command: `add` declares its arguments, `run` carries it out. Libraries are imported by
`run`, so that `--help` is quick.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from minitl import __version__
from minitl.cli import (
    cache,
    convert,
    doctor,
    doctor_data,
    evaluate,
    export,
    features,
    finetune,
    inspect,
    lr_find,
    predict,
    preview,
    pull,
    report,
    serve,
    transfer_report,
)
from minitl.errors import InterruptedRunError, UserError
from minitl.text import coloured

COMMANDS = (
    *(finetune, preview, lr_find, evaluate, predict, report, transfer_report),
    *(serve, features, cache),
    *(inspect, convert, export, pull, doctor, doctor_data),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code.

    0 good, 1 an error that was explained, 130 Ctrl-C, 141 where whoever read the output went away.
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks is spelled out
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options.run(options)
        sys.stdout.flush()  # what cannot be written is to fail here
        return 0
    except BrokenPipeError:  # whoever read the output has seen enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1
    except (UserError, OSError, KeyboardInterrupt, MemoryError) as error:
        if options.debug:
            raise
        print(f"{coloured('minitl:', 'red', sys.stderr)} {_explain(error)}", file=sys.stderr)
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
        prog="minitl",
        description="Transfer learning on your own pictures, on a GPU or a plain CPU.",
    )
    parser.add_argument("--version", action="version", version=f"minitl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        command = module.add(commands)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
