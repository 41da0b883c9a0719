"""`minitl inspect`: show what a weights file holds."""

import argparse
import json
from typing import Any

from minitl.errors import UserError


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="show what a weights file holds, compare it with another, test it",
        description="Show what a weights file holds. A run folder stands for its best weights, and a name "
        "for weights of the catalogue (minitl pull --list).",
    )
    command.set_defaults(run=run)
    command.add_argument("file", metavar="FILE.h5", help="a weights file, a run folder or a name")
    command.add_argument("--keys", action="store_true", help="list every array")
    command.add_argument("--compare", metavar="OTHER.h5", help="show where the two files differ")
    command.add_argument(
        "--self-test",
        action="store_true",
        help="compute the stored picture's logits again and compare them",
    )
    command.add_argument("--json", action="store_true", help="print all of it as JSON")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl import hdf5
    from minitl.convert.golden import TOLERANCE, self_test
    from minitl.convert.inspection import compare, describe
    from minitl.convert.locate import find_weights

    path = find_weights(options.file)
    found = describe(path, options.keys)
    if options.compare:
        found["compare"] = compare(path, find_weights(options.compare))
    test = self_test(hdf5.read(path), str(path)) if options.self_test else None
    if test is not None:
        found["self_test"] = vars(test) | {"passed": test.passed}
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found)
    if test is not None and not test.passed:
        raise UserError(
            f"{path} does not pass its self-test: the logits differ by {test.difference:.2g} of the largest, "
            f"more than {TOLERANCE:g}; its weights, its preprocessing or this installation are wrong"
        )


def _show(found: dict[str, Any]) -> None:
    from minitl.text import printable

    classes = found["class_names"]
    named = "not named"
    if classes is not None:
        named = f"{len(classes)}: {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
    rows = {
        "file": found["file"],
        "architecture": f"{found['arch']} {json.dumps(found['arch_options'])}",
        "parameters": f"{found['parameters']:,}",
        "classes": named,
        "preprocessing": json.dumps(found["preprocessing"])
        if found["preprocessing"]
        else "unknown",
        "source": found["source"] or "not recorded",
        "source sha256": found["source_sha256"] or "not recorded",
        "license": found["license"] or "not recorded",
        "digest": f"{found['digest']} (verified)",
        "self-test": "possible (--self-test)" if found["golden"] else "no picture stored",
    }
    if found["checkpoint_epoch"] is not None:
        rows["checkpoint"] = f"after epoch {found['checkpoint_epoch']}"
    if found["appended_bytes"]:
        rows["appended"] = (
            f"{found['appended_bytes']:,} bytes behind the file's end, which are no part of it and which "
            "no checksum covers"
        )
    if "self_test" in found:
        test = found["self_test"]
        rows["self-test"] = (
            f"{'passed' if test['passed'] else 'FAILED'}: largest difference {test['difference']:.2g} of the "
            f"largest logit; class {test['computed_class']}, stored {test['stored_class']}"
        )
    for name, value in rows.items():
        print(f"{name + ':':16}{printable(str(value))}")
    for name, shape in found.get("arrays", {}).items():
        print(f"  {name:44} float32 {tuple(shape)}")
    if "compare" in found:
        _show_comparison(found["compare"], printable)


def _show_comparison(found: dict[str, Any], printable: Any) -> None:
    here, there = found["files"]
    print()
    print(printable(f"{here} and {there}:"))
    for name, (a, b) in found["attributes"].items():
        print(printable(f"  {name}: {_short(a)} | {_short(b)}"))
    print(f"  equal to the bit: {found['equal']} arrays")
    for title, names in (("only in", found["only_here"]), ("only in", found["only_there"])):
        file = here if names is found["only_here"] else there
        for name in names:
            print(printable(f"  {title} {file}: {name}"))
    for name, (a, b) in found["misshapen"].items():
        print(f"  {name}: shape {tuple(a)} | {tuple(b)}")
    if found["different"]:
        print(f"  {'different':44}  largest difference  relative to the largest value")
    for name, row in found["different"].items():
        print(f"  {name:44}  {_number(row['max_abs']):>18}  {_number(row['relative']):>29}")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:157]}..."


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
