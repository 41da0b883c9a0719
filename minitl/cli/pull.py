"""`minitl pull`: fetch weights for ImageNet by name."""

import argparse
import json
from typing import Any

from minitl.errors import UserError


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "pull",
        help="fetch ImageNet weights from their official source and convert them",
        description="Fetch ImageNet weights from their official source, verify and convert them. They are "
        "kept in the user's cache folder, or in the folder $MINITL_CACHE.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "name", metavar="NAME", nargs="?", help="the weights, such as resnet50.torchvision_v2"
    )
    command.add_argument("--list", action="store_true", help="list all names, with their licences")
    command.add_argument(
        "--offline",
        action="store_true",
        help="use what is in the cache, never the network; MINITL_OFFLINE=1 says so to all commands",
    )
    command.add_argument("--json", action="store_true", help="print the list as JSON")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.convert.pull import pull

    if options.list:
        _show_list(options.json)
    elif options.name is None:
        raise UserError("give the NAME of weights; minitl pull --list shows all")
    else:
        print(pull(options.name, offline=options.offline, check=True))


def _show_list(as_json: bool) -> None:
    from minitl.convert.pull import cache_folder, catalogue, is_cached

    folder = cache_folder()
    rows = [{**vars(entry), "cached": is_cached(entry)} for entry in catalogue().values()]
    if as_json:
        print(json.dumps({"cache": str(folder), "weights": rows}, indent=2))
        return
    print(f"kept in {folder} (choose another folder with MINITL_CACHE); * is there already")
    print("hash: what a download is compared with; hub: the server's own word, asked for first\n")
    print(f"  {'name':40}  {'architecture':16}  hash     top-1      size  licence")
    for row in rows:
        top1 = "" if row["top1"] is None else f"{row['top1']:.1f} %"
        size = "" if row["megabytes"] is None else f"{row['megabytes']} MB"
        mark = "*" if row["cached"] else " "
        verified = "hub" if row["stated"] else row["algorithm"]
        print(
            f"{mark} {row['name']:40}  {row['arch']:16}  {verified:6}  {top1:>6}  {size:>7}  {row['license']}"
        )
