"""Compile every kernel for this machine's GPU on all cores, so that no later stage waits for it."""

import time

from minitl.device import architecture
from minitl.kernels.cuda import compiler


def main() -> None:
    """Compile, and say how long it took."""
    started, target = time.monotonic(), architecture(0)
    paths = [job.result() for job in compiler.compile_ahead(compiler.variants(target), target)]
    print(f"{len(paths)} variants for {target} in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
