"""Compile every kernel for this machine's GPU on all cores, so that no later stage waits for it.

Those of the CPU, which the doctor compares with, are compiled beside.
"""

import time

from minitl import doctor
from minitl.device import architecture
from minitl.kernels.cuda import compiler


def main() -> None:
    """Compile, and say how long it took."""
    started, target = time.monotonic(), architecture(0)
    references = doctor.start_compiling_references()
    paths = [job.result() for job in compiler.compile_ahead(compiler.variants(target), target)]
    print(f"{len(paths)} variants for {target} in {time.monotonic() - started:.1f} s")
    for process in references:
        process.join()
    print(f"with the CPU's in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
