"""Command line of the benchmarks; `python -m benchmarks --help`."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

INSTALL = "pip install -e '.[bench]'"


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="minitl beside PyTorch on this machine: verified first, then timed by turns.",
    )
    commands = top.add_subparsers(dest="command", required=True)

    kernels = commands.add_parser("kernels", help="each operation of ResNet-18, ResNet-50, VGG-16")
    kernels.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        help="an operation, 'OPERATION SHAPE' or a network, with wildcards: 'conv2d_dw*', resnet18; "
        "may be repeated",
    )
    kernels.add_argument("--plot", metavar="FILE", type=Path, help="draw ratios and a roofline")
    kernels.add_argument(
        "--malloc",
        choices=("default", "tuned"),
        default="default",
        help="tuned: the C library keeps large blocks, which spares PyTorch its page faults (glibc)",
    )

    step = commands.add_parser("step", help="whole steps: training, frozen backbone, inference")
    step.add_argument("--models", nargs="+", default=None, metavar="NAME", help="resnet18 resnet50")
    step.add_argument(
        "--tasks", nargs="+", default=None, metavar="TASK", help="training frozen inference"
    )
    step.add_argument("--rounds", type=int, help="timed steps of each contender (15; quick: 5)")
    step.add_argument("--size", type=int, default=224, help="pixels of the pictures (224)")
    step.add_argument("--profile", action="store_true", help="show where minitl's step goes")
    step.add_argument("--no-startup", action="store_true", help="do not measure start-up")

    gpu = commands.add_parser("gpu", help="everything that needs a GPU, in at most 8 minutes")
    gpu.add_argument("--out", metavar="DIR", type=Path, required=True, help="where results go")
    gpu.add_argument("--seconds", type=float, default=465.0, help="for all of it (465)")

    finetune = commands.add_parser(
        "finetune", help="whole runs of fine-tuning beside the script a PyTorch user would write"
    )
    finetune.add_argument("data", metavar="DATA", type=Path, help="DATA/{train,val}/<class>/*")
    finetune.add_argument(
        "--weights", metavar="FILE.h5", type=Path, required=True, help="ResNet-18 or -50"
    )
    finetune.add_argument(
        "--tasks", nargs="+", default=["full", "frozen"], metavar="TASK", help="full frozen"
    )
    finetune.add_argument("--seeds", type=int, default=3, help="runs of each contender (3)")
    finetune.add_argument("--epochs", type=int, help="instead of 3 and 10: for a quick look")
    finetune.add_argument(
        "--torch-workers", type=int, default=2, metavar="N", help="of PyTorch's DataLoader (2)"
    )
    finetune.add_argument(
        "--rivals", nargs="+", default=None, metavar="NAME", help="usual channels_last (both)"
    )
    finetune.add_argument("--json", metavar="FILE", type=Path, help="write the figures")

    for command in (kernels, step):
        command.add_argument(
            "--quick", action="store_true", help="fewer shapes, in under 2 minutes"
        )
        command.add_argument("--batch", type=int, help="pictures in a batch (16)")
        command.add_argument(
            "--conv",
            choices=("auto", "exact", "f2", "f4"),
            default="auto",
            help="convolution algorithm (auto)",
        )
        command.add_argument("--json", metavar="FILE", type=Path, help="write the figures")
    return top


def run_kernels(arguments: argparse.Namespace) -> int:
    """Run `kernels`; return the exit status."""
    from benchmarks import kernels, machine, report
    from minitl.kernels.cpu.conv2d import set_conv_algorithm

    if arguments.malloc == "tuned" and not machine.malloc_is_tuned():
        command = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | machine.TUNED_MALLOC)
    set_conv_algorithm(arguments.conv)
    quick = arguments.quick
    patterns = tuple(arguments.only or (kernels.QUICK if quick else ("*",)))
    if not any(True for _ in kernels.select(patterns)):
        return fail(
            f"--only {' '.join(patterns)} matches nothing; try 'conv2d_forward *' or resnet18"
        )
    batch = arguments.batch or 16
    settings = {"batch": batch, "quick": quick, "conv": arguments.conv}
    result: dict[str, Any] = report.header("kernels", settings | {"malloc": arguments.malloc})
    report.show_header(result)
    result["peaks"] = peaks = machine.measure_peaks(quick=quick)
    print(
        f"Measured peaks: {peaks['gflops']:.0f} GFLOP/s multiply-add, {peaks['gbytes']:.1f} GB/s copy"
    )
    timing: dict[str, Any] = {"samples": 3, "least_samples": 3, "budget": 0.5} if quick else {}
    table = report.KernelTable()
    rows = kernels.run(patterns, batch, peaks, table.show, **timing)
    result |= {"rows": rows, "totals": kernels.totals(rows)}
    report.show_kernel_summary(rows, result["totals"])
    if arguments.json:
        report.write_json(arguments.json, result)
    if arguments.plot:
        from benchmarks.plot import plot

        plot(arguments.plot, result)
    return 0 if all(row["verified"] for row in rows) else 1


def run_step(arguments: argparse.Namespace) -> int:
    """Run `step`; return the exit status."""
    from benchmarks import report, rivals, step

    quick = arguments.quick
    models = arguments.models or (["resnet18"] if quick else ["resnet18", "resnet50"])
    for name in models:
        if name not in rivals.NETWORKS:
            return fail(f"no rival for {name!r}; choose from {', '.join(rivals.NETWORKS)}")
    words = {task.split()[0]: task for task in step.TASKS}
    tasks = arguments.tasks or list(words)
    for task in tasks:
        if task not in words:
            return fail(f"no task {task!r}; choose from {', '.join(words)}")
    batch = arguments.batch or (4 if quick else 16)
    rounds = arguments.rounds or (5 if quick else 15)
    settings = {"batch": batch, "size": arguments.size, "quick": quick, "conv": arguments.conv}
    result: dict[str, Any] = report.header("step", settings | {"rounds": rounds})
    report.show_header(result)
    result["groups"] = []
    for model in models:
        for task in tasks:
            group = step.compare(
                model,
                words[task],
                batch=batch,
                size=arguments.size,
                rounds=rounds,
                conv=arguments.conv,
                quick=quick,
                profile=arguments.profile,
                tell=lambda text: print(text, file=sys.stderr, flush=True),
            )
            report.show_step(group)
            if "profile" in group:
                ms = next(c["ms"] for c in group["contenders"] if c["name"] == "minitl")
                report.show_profile(group["profile"], ms)
            result["groups"].append(group)
    if not arguments.no_startup:
        result["startup"] = step.startup(
            models[-1], batch=batch, size=arguments.size, cold=not quick
        )
        report.show_startup(result["startup"])
    if arguments.json:
        report.write_json(arguments.json, result)
    return 0 if all(group["verified"] for group in result["groups"]) else 1


def run_gpu(arguments: argparse.Namespace) -> int:
    """Run `gpu`; return the exit status: 0 if every stage passed."""
    from benchmarks.gpu.run import run
    from minitl.device import get_device
    from minitl.errors import UserError

    try:
        get_device("cuda")
    except UserError as error:
        return fail(str(error))
    result = run(arguments.out, arguments.seconds)
    return 0 if all(s["outcome"] == "passed" for s in result["stages"].values()) else 1


def run_finetune(arguments: argparse.Namespace) -> int:
    """Run `finetune`; return the exit status: 1 where minitl learned less, or a process failed."""
    from benchmarks import finetune, report

    words = dict(zip(("usual", "channels_last"), finetune.RIVALS, strict=True))
    for given, known in ((arguments.tasks, finetune.TASKS), (arguments.rivals or [], words)):
        for word in given:
            if word not in known:
                return fail(f"no {word!r} here; choose from {', '.join(known)}")
    problem = finetune.problem_with(arguments.data, arguments.weights)
    if problem:
        return fail(problem)
    settings = {"seeds": arguments.seeds, "batch": finetune.BATCH, "epochs": arguments.epochs}
    settings |= {"torch_workers": arguments.torch_workers}
    result: dict[str, Any] = report.header("finetune", settings)
    report.show_header(result)
    result["groups"] = []
    for name in arguments.tasks:
        task = finetune.TASKS[name]
        try:
            group = finetune.compare(
                task._replace(epochs=arguments.epochs or task.epochs),
                arguments.data.absolute(),
                arguments.weights.absolute(),
                seeds=arguments.seeds,
                workers=arguments.torch_workers,
                rivals=[words[word] for word in arguments.rivals or words],
                tell=lambda text: print(text, file=sys.stderr, flush=True),
            )
        except finetune.Failed as failure:
            return fail(str(failure))
        report.show_finetune(name, group)
        result["groups"].append({"name": name, **group})
    if arguments.json:
        report.write_json(arguments.json, result)
    return 0 if all(g["same_accuracy"] and g["same_pictures"] for g in result["groups"]) else 1


def fail(message: str) -> int:
    """Say what was wrong; return the exit status for it."""
    print(f"error: {message}", file=sys.stderr)
    return 2


def main() -> int:
    """Parse the arguments and run."""
    arguments = parser().parse_args()
    for option in ("batch", "rounds", "size", "seeds", "epochs"):
        value = getattr(arguments, option, None)
        if value is not None and value < 1:
            return fail(f"--{option} must be at least 1; got {value}")
    wanted = ["torch"]
    if getattr(arguments, "plot", None):
        wanted.append("matplotlib")
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            return fail(f"this needs {name}; install the extra: {INSTALL}")
    for option in ("json", "plot"):
        path = getattr(arguments, option, None)
        if path is not None and not path.parent.is_dir():
            return fail(f"--{option} {path}: there is no folder {path.parent}; make it first")
    commands = {"kernels": run_kernels, "step": run_step, "gpu": run_gpu, "finetune": run_finetune}
    return commands[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main())
