"""The command line: arguments in, one call of the library, a message out.

One file for each command: `add` declares its arguments, `run` carries it out. Libraries are imported by
`run`, so that `--help` is quick.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

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
from minitl.text import coloured, near_miss, printable

COMMANDS = (
    *(finetune, preview, lr_find, evaluate, predict, report, transfer_report),
    *(serve, features, cache),
    *(inspect, convert, export, pull, doctor, doctor_data),
)

# What others call our options, where the names are not alike.
OTHER_NAMES = {
    **dict.fromkeys(("--learning-rate", "--base-lr", "--blr"), "--lr"),
    **dict.fromkeys(("--bs", "-b", "--batch"), "--batch-size"),
    **dict.fromkeys(("--num-epochs", "--n-epochs", "-e"), "--epochs"),
    **dict.fromkeys(("--wd", "--decay"), "--weight-decay"),
    **dict.fromkeys(("--num-workers", "-j", "--jobs"), "--workers"),
    **dict.fromkeys(("--model", "--pretrained", "--checkpoint"), "--weights"),
    **dict.fromkeys(("--lr-scheduler", "--sched"), "--schedule"),
    **dict.fromkeys(("--gpu", "--gpus"), "--device"),
    **dict.fromkeys(("--amp", "--fp16", "--bf16"), "--precision"),
    **dict.fromkeys(("--output", "--output-dir", "-o"), "--out"),
    **dict.fromkeys(("--val-split", "--validation-split"), "--val-fraction"),
    "--early-stopping": "--patience",
    "--epsilon": "--attack",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code.

    0 good, 1 an error that was explained, 130 Ctrl-C, 141 where whoever read the output went away.
    """
    parser, commands = parsers()
    options = parser.parse_args(arguments)
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
        print(
            f"{coloured('minitl:', 'red', sys.stderr)} {_explain(error, options, commands[options.command])}",
            file=sys.stderr,
        )
        return 130 if isinstance(error, KeyboardInterrupt | InterruptedRunError) else 1


class Command(argparse.ArgumentParser):
    """The arguments of one command, which itself says what it does not know."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read arguments; end the process with a message where some are not known."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown)
        return found, unknown

    def options(self) -> dict[str, str]:
        """Return the options, each with the name that its value has."""
        return {name: action.dest for name, action in self._option_string_actions.items()}

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        option = next((word for word in unknown if word.startswith("-")), None)
        if option is None:
            self._end(f"cannot do anything with {printable(' '.join(unknown))}")
        option, names = option.partition("=")[0], self.options()
        meant = near_miss(option, list(names)) or OTHER_NAMES.get(option)
        self._end(
            f"no option {printable(option)}; "
            + (f"did you mean {meant}?" if meant in names else f"{self.prog} --help shows all")
        )

    def _end(self, message: str) -> NoReturn:
        self.exit(2, f"{coloured(f'{self.prog}:', 'red', sys.stderr)} {message}\n")


def _explain(error: BaseException, options: argparse.Namespace, command: Command) -> str:
    """Return what happened and what to do about it, in the words of the command's own options."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        if error.filename is None:
            return reason
        option = _given_as(error.filename, options, command)
        if option is None:
            return f"{reason}: {error.filename}"
        return f"{option} {error.filename}: {reason}; check that path"
    if isinstance(error, MemoryError):
        return f"out of memory; {_less_memory(options, command)}"
    return "interrupted"


def _given_as(path: Any, options: argparse.Namespace, command: Command) -> str | None:
    """Return the option that a file was given with, None where it was not."""
    for option, name in command.options().items():
        value = getattr(options, name, None)
        if value is not None and str(value) == os.fsdecode(path):
            return option
    return None


def _less_memory(options: argparse.Namespace, command: Command) -> str:
    resumed = getattr(options, "resume", None) is not None
    has = [f"--{name}" for name in finetune.RESUMABLE] if resumed else list(command.options())
    advice = {
        "--pictures": "fewer --pictures or --columns",
        "--micro-batch": "a smaller --micro-batch or --batch-size",
        "--batch-size": "a smaller --batch-size",
        "--workers": "fewer --workers",
    }
    lighter = next((f"try {words}, or " for option, words in advice.items() if option in has), "")
    return f"{lighter}end other programs"


def parsers() -> tuple[argparse.ArgumentParser, Mapping[str, Command]]:
    """Return the parser of the whole command line, and those of its commands by name."""
    parser = argparse.ArgumentParser(
        prog="minitl",
        description="Transfer learning on your own pictures, on a GPU or a plain CPU.",
    )
    parser.add_argument("--version", action="version", version=f"minitl {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", dest="command", parser_class=Command
    )
    for module in COMMANDS:
        command = module.add(commands)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser, commands.choices
