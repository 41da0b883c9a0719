"""`minitl cache`: what frozen layers computed, kept for later runs."""

import argparse
import datetime
from pathlib import Path
from typing import Any


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "cache",
        help="list or empty the cache of features",
        description="What frozen layers computed is kept in the user's cache folder, or in the folder "
        "$MINITL_CACHE, so that later epochs and runs need not compute it again. It can be deleted at any "
        "time. Compiled kernels are always in the user's cache folder, which $XDG_CACHE_HOME moves on Linux.",
    )
    command.set_defaults(run=run)
    what = command.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="show what is kept (default)")
    what.add_argument("--clear", action="store_true", help="delete all of it")
    command.add_argument(
        "--feature-cache",
        metavar="DIR",
        type=Path,
        help="the folder, if a run was given another one",
    )
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.console import say
    from minitl.train.feature_cache import cache_folder, clear, kept
    from minitl.train.features import megabytes

    folder = options.feature_cache or cache_folder()
    if options.clear:
        say(f"{folder}: freed {megabytes(clear(folder, say))}")
        return
    found = kept(folder)
    if not found:
        say(f"{folder}: empty")
        return
    say(f"{'pictures':>9}{'size':>9}  {'last added':12}{'network':20}{'cut behind':20}weights")
    for one in found:
        day = datetime.date.fromtimestamp(one.used).isoformat()
        network, cut = one.about.get("arch", "?"), one.about.get("cut", "?")
        weights = one.about.get("weights", "?")[:12]
        size = megabytes(one.bytes)
        say(f"{one.pictures:9,}{size:>9}  {day:12}{network:20}{cut:20}{weights}")
    total = megabytes(sum(one.bytes for one in found))
    say(f"{total} in {folder}; delete it with minitl cache --clear")
