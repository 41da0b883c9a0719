"""`minitl predict`: classify pictures."""

import argparse
import contextlib
import csv
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from minitl.cli.arguments import (
    add_device,
    add_follow_links,
    add_threads,
    add_threshold,
    add_workers,
    count,
    share,
)
from minitl.errors import UserError
from minitl.files import replaced_atomically

FORMATS = ("table", "csv", "jsonl")


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "predict",
        help="classify pictures",
        description="Classify pictures, files and whole folders; results are written as they are ready.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "model",
        metavar="RUN_OR_WEIGHTS",
        type=Path,
        help="a run folder, a weights file or a name (minitl pull --list)",
    )
    command.add_argument("images", metavar="IMAGE_OR_FOLDER", type=Path, nargs="+")
    command.add_argument(
        "--top", type=count, default=3, metavar="N", help="classes shown for each picture (3)"
    )
    command.add_argument(
        "--tta",
        metavar="VIEWS",
        help="test-time augmentation: average over views of each picture: flip (mirrored too), crops:5 "
        "(corners too), or both as flip,crops:5; takes as many times as long",
    )
    command.add_argument(
        "--unknown-below",
        type=share,
        metavar="X",
        help="call a picture unknown where its best class has a lower probability than this, 0 to 1 (never)",
    )
    add_threshold(command)
    command.add_argument(
        "--skip-bad", action="store_true", help="leave out unreadable pictures (default: stop)"
    )
    add_follow_links(command)
    add_workers(command)
    add_threads(command)
    add_device(command, device="cpu", precision="float32")
    output = command.add_argument_group("output")
    form = output.add_mutually_exclusive_group()
    form.add_argument(
        "--format", choices=FORMATS, help="table (default), csv, or jsonl: a JSON object a line"
    )
    form.add_argument("--json", action="store_true", help="one JSON list of all, at the end")
    output.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="write to a file, which appears when it is complete (standard output)",
    )
    output.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.data.scanner import list_pictures
    from minitl.data.views import Views
    from minitl.text import printable
    from minitl.train.console import Progress
    from minitl.train.predict import predictions

    total = len(list_pictures(options.images, options.follow_links))
    bad: list[str] = []

    def left_out(image: str, reason: str) -> None:
        bad.append(image)
        print(printable(f"left out {image}: {reason}"), file=sys.stderr)

    with contextlib.ExitStack() as stack:
        out = stack.enter_context(_output(options.out, options.overwrite))
        # Lines that come out on a terminal are progress enough, and would tear a bar apart.
        progress = None if out.isatty() else stack.enter_context(Progress("predicting", total))
        results = predictions(
            options.model,
            options.images,
            options.top,
            views=options.tta and Views.parse(options.tta),
            unknown_below=options.unknown_below,
            threshold=options.threshold,
            skip_bad=options.skip_bad,
            follow_links=options.follow_links,
            on_bad=left_out,
            on_batch=progress.update if progress else lambda pictures: None,
            workers=options.workers,
            threads=options.threads,
            device=options.device,
            precision=options.precision,
        )
        if options.json:
            everything = list(results)
            _refuse_nothing(bad, total)
            out.write(json.dumps(everything, indent=2, ensure_ascii=False) + "\n")
            return
        first = next(results, None)
        _refuse_nothing(bad, total)
        assert first is not None
        form = options.format or "table"
        if "tasks" in first:
            write = _task_writer(form, out, first)
        else:
            write = _writer(form, out, len(first["top"]))
        for result in itertools.chain([first], results):
            write(result)


def _refuse_nothing(bad: list[str], total: int) -> None:
    if len(bad) == total:
        raise UserError(f"none of the {total} pictures could be read")


@contextlib.contextmanager
def _output(path: Path | None, overwrite: bool) -> Iterator[TextIO]:
    """Yield standard output, or a file that takes its name when the block has gone well."""
    if path is None:
        yield sys.stdout
        return
    if path.exists() and (not overwrite or not path.is_file()):
        raise UserError(f"--out {path} exists; choose another name, or --overwrite it")
    # Names of files need not be text; what is not goes out as \udcXX, which JSON reads back.
    with (
        replaced_atomically(path) as temporary,
        temporary.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file
        file.flush()
        os.fsync(file.fileno())


def _writer(form: str, out: TextIO, top: int) -> Callable[[dict[str, Any]], object]:
    from minitl.text import printable
    from minitl.train.console import percent

    if form == "jsonl":
        # ASCII: a terminal or pipe of any encoding takes it, and names that are no text come back.
        return lambda result: out.write(json.dumps(result) + "\n")
    if form == "csv":
        table = csv.writer(out, lineterminator="\n")
        header = ["image", "class", "probability"]
        for number in range(1, top + 1):
            header += [f"top{number}", f"top{number}_probability"]
        table.writerow(header)
        return lambda result: table.writerow(
            [
                *(_text(result[name]) for name in ("image", "class")),
                result["probability"],
                *(value for name, share in result["top"] for value in (_text(name), share)),
            ]
        )

    def line(result: dict[str, Any]) -> None:
        best = ", ".join(f"{name} {percent(probability)}" for name, probability in result["top"])
        known = "" if result["class"] == result["top"][0][0] else f"{result['class']}: "
        out.write(printable(f"{result['image']}: {known}{best}") + "\n")

    return line


def _task_writer(
    form: str, out: TextIO, first: dict[str, Any]
) -> Callable[[dict[str, Any]], object]:
    """Return what writes predictions of several tasks. first: one of them, which says the columns."""
    from minitl.text import printable
    from minitl.train.task_predictions import as_columns, in_words

    if form == "jsonl":
        return lambda result: out.write(json.dumps(result) + "\n")
    if form == "csv":
        table = csv.writer(out, lineterminator="\n")
        table.writerow([_text(name) for name, _ in as_columns(first)])
        return lambda result: table.writerow(
            [_text(v) if isinstance(v, str) else v for _, v in as_columns(result)]
        )

    def line(result: dict[str, Any]) -> None:
        said = "; ".join(f"{name} {in_words(one)}" for name, one in result["tasks"].items())
        out.write(printable(f"{result['image']}: {said}") + "\n")

    return line


def _text(name: str) -> str:
    """Return a name so that any output takes it: what is not text is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
