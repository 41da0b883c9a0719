"""What a real GPU's instructions return, recorded once, for the twins on the CPU to be compared with.

    python -m tests.cuda_on_cpu.goldens ptx_goldens.json      on a machine with a GPU

The record names the header it was made of by its digest: when ptx.cuh changes, tests ask for a new one.
Products and sums are of small whole numbers, so the hardware's order of additions plays no part.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minitl.kernels.cuda import compiler

HERE = Path(__file__).parent
SOURCE = HERE / "goldens.cu"
RECORD = HERE / "ptx_goldens.json"
LANES, WARPGROUP = 32, 128
BY_WARPGROUP = "wgmma_m64k16_bf16_golden_"  # these kernels are for sm_90a alone
Launch = Callable[
    [str, list[np.ndarray]], None
]  # a kernel, and its arrays: inputs, then the output


def header_digest() -> str:
    """Return the digest of what the record is about."""
    return hashlib.sha256((compiler.FOLDER / "ptx.cuh").read_bytes()).hexdigest()


def launch_size(name: str) -> tuple[int, int]:
    """Return how many threads a kernel is launched with, and how many bytes of shared memory."""
    if not name.startswith(BY_WARPGROUP):
        return LANES, 0
    n = int(name.removeprefix(BY_WARPGROUP).split("_")[0])
    return WARPGROUP, (64 + n) * 128


def bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Return numbers that bfloat16 holds exactly, such as small whole ones, as its bits."""
    return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def warpgroup_cases() -> dict[str, list[np.ndarray]]:
    """Return what `cases` does, of those for sm_90a: a (64 x 64), b (64 x n), each maybe transposed."""
    found = {}
    for n, across in ((64, ""), (128, ""), (64, "ab"), (128, "ab"), (128, "a"), (128, "b")):
        random = np.random.default_rng(n)
        a, b = (random.integers(-4, 5, (rows, 64)) for rows in (64, n))
        given = [bfloat16(x.T.copy() if name in across else x) for name, x in (("a", a), ("b", b))]
        suffix = {"": "", "ab": "_across", "a": "_a_across", "b": "_b_across"}[across]
        found[f"{BY_WARPGROUP}{n}{suffix}"] = [*given, np.zeros(4 * WARPGROUP, np.float32)]
    return found


def cases() -> dict[str, list[np.ndarray]]:
    """Return the inputs of each kernel by its name, and last an array for its output."""
    lane = np.arange(LANES)
    # Ties, both signs, the smallest normal number, large ones, and those that round up to the next power.
    awkward = np.array(
        [0, -0.0, 1, -1, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-9, 2**-126, 3e38, -3e38,
         2 - 2**-20, -(2 - 2**-23), 1 / 3, -1e-20, 65504, np.inf, -np.inf, 1 + 2**-9, 1 + 2**-9 + 2**-23]
    )  # fmt: skip
    floats = np.resize(awkward, 2 * LANES).astype(np.float32)
    small = ((np.arange(8 * LANES) * 7) % 9 - 4).astype(np.float32)
    pairs = small.view(np.uint32) >> 16  # as bfloat16, which holds small whole numbers exactly
    packed = (pairs[0::2] | pairs[1::2] << 16).astype(np.uint32)
    words = small.view(np.uint32)
    halves = np.arange(LANES * 8, dtype=np.uint16)
    out = np.zeros(4 * LANES, np.uint32)
    sums = np.zeros(4 * LANES, np.float32)
    return {
        "to_tf32_golden": [floats[:LANES], np.zeros(LANES, np.uint32)],
        "pack_bf16_golden": [floats, np.zeros(LANES, np.uint32)],
        "mma_m16n8k8_tf32_golden": [words[: 4 * LANES], words[4 * LANES : 6 * LANES], sums],
        "mma_m16n8k16_bf16_golden": [packed[: 4 * LANES], packed[: 2 * LANES][::-1].copy(), sums.copy()],
        "ldmatrix_x4_golden": [halves, out],
        "ldmatrix_x4_transposed_golden": [halves, out.copy()],
        "cp_async_golden": [
            (np.arange(8 * LANES) + 1000 * lane.repeat(8)).astype(np.uint32),
            np.zeros(8 * LANES, np.uint32),
        ],
        **warpgroup_cases(),
    }  # fmt: skip


def record(launch: Launch, device: str, by_warpgroup: bool = True) -> dict[str, Any]:
    """Run every kernel, or those that need no sm_90a; return the record."""
    results = {}
    for name, arrays in cases().items():
        if name.startswith(BY_WARPGROUP) and not by_warpgroup:
            continue
        launch(name, arrays)
        results[name] = [f"{word:08x}" for word in arrays[-1].view(np.uint32).tolist()]
    return {"header_sha256": header_digest(), "device": device, "results": results}


def differences(found: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """Return what differs between two records' results, in words."""
    problems = []
    for name in sorted(found["results"].keys() | recorded["results"].keys()):
        ours, theirs = (r["results"].get(name, []) for r in (found, recorded))
        wrong = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
        if wrong or len(ours) != len(theirs):
            first = (
                f"word {wrong[0]}: {ours[wrong[0]]}, not {theirs[wrong[0]]}" if wrong else "length"
            )
            problems.append(f"{name}: {len(wrong)} words, {first}")
    return problems


def _gpu() -> tuple[Launch, str, bool]:
    import cupy

    major, minor = (int(d) for d in divmod(int(cupy.cuda.Device().compute_capability), 10))
    target = compiler.architecture((major, minor))
    headers = {path.name: path.read_bytes() for path in compiler.FOLDER.glob("*.cuh")}
    compiled = compiler.compile_source(SOURCE.read_bytes(), SOURCE.name, headers, target)
    module = cupy.cuda.function.Module()
    module.load(compiled.cubin)

    def launch(name: str, arrays: list[np.ndarray]) -> None:
        there = [cupy.asarray(array) for array in arrays]
        threads, shared_mem = launch_size(name)
        module.get_function(name)((1,), (threads,), tuple(there), shared_mem=shared_mem)
        arrays[-1][...] = cupy.asnumpy(there[-1])

    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return launch, f"{name}, {target}", target == "sm_90a"


def main() -> None:
    """Record on this machine's GPU."""
    launch, device, by_warpgroup = _gpu()
    target = Path(sys.argv[1])
    found = record(launch, device, by_warpgroup)
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{target}: {len(found['results'])} instructions of {device}")


if __name__ == "__main__":
    main()
