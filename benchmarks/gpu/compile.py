"""Compile every kernel for this machine's GPU on all cores, so that no later stage waits for it."""

import importlib
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from minitl.device import architecture
from minitl.kernels.cuda import compiler

Defines = dict[str, object]


def variants() -> list[tuple[str, Defines]]:
    """Return (stem, macros) of everything that a launcher may ask for."""
    found: list[tuple[str, Defines]] = []
    for path in sorted(compiler.FOLDER.glob("*.cu")):
        launcher: Any = importlib.import_module(f"minitl.kernels.cuda.{path.stem}")
        found += ((path.stem, defines) for defines in launcher.VARIANTS)
    return found


def main() -> None:
    """Compile, and say how long it took."""
    started, target = time.monotonic(), architecture(0)
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(compiler.cubin_path, stem, target, d) for stem, d in variants()]
        for job in jobs:
            job.result()
    print(f"{len(jobs)} variants for {target} in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
