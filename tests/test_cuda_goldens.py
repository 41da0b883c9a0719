"""The twins of the GPU's instructions against what a real GPU returned, as far as that was recorded."""

import json

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cuda import compiler
from tests.cuda_on_cpu import goldens, host_module

pytestmark = pytest.mark.skipif(not host_module.HERE_IT_RUNS, reason=host_module.REASON)


def on_cpu(name: str, arrays: list[np.ndarray]) -> None:
    module = host_module.HostModule(goldens.SOURCE, "check")
    threads, shared_mem = goldens.launch_size(name)
    module.get_function(name)((1,), (threads,), arrays, shared_mem)


@pytest.fixture(scope="module")
def twins() -> dict:
    return goldens.record(on_cpu, "the CPU")


@pytest.mark.skipif(not goldens.RECORD.exists(), reason="no GPU has recorded its results yet")
def test_the_twins_do_what_the_hardware_did(twins: dict) -> None:
    recorded = json.loads(goldens.RECORD.read_text())
    assert goldens.differences(twins, recorded) == []


@pytest.mark.skipif(not goldens.RECORD.exists(), reason="no GPU has recorded its results yet")
def test_the_record_is_of_the_present_header() -> None:
    recorded = json.loads(goldens.RECORD.read_text())
    assert recorded["header_sha256"] == goldens.header_digest(), (
        "ptx.cuh changed since its results were recorded on a GPU; record them again: "
        "python -m benchmarks gpu --out DIR"
    )


def test_every_instruction_has_a_kernel(twins: dict) -> None:
    header = (compiler.FOLDER / "ptx.cuh").read_text()
    for name in twins["results"]:
        assert f" {name.split('_golden')[0]}(" in header, name
    text = header[header.index("#else") :]
    wrappers = {line.split("(")[0].split()[-1] for line in text.splitlines() if "DEVICE" in line}
    used = goldens.SOURCE.read_text()
    unused = {w for w in wrappers if f"{w}(" not in used and f"{w}<" not in used}
    assert unused <= {"shared_address"}, f"no kernel in goldens.cu records {unused}"


def test_results_by_hand(twins: dict) -> None:
    """A record is worth nothing if its kernels do not tell the instructions' effects apart."""

    def words(name: str) -> np.ndarray:
        return np.array([int(w, 16) for w in twins["results"][name]], np.uint32)

    x = goldens.cases()["to_tf32_golden"][0]
    finite = np.isfinite(x)
    rounded = words("to_tf32_golden").view(np.float32)
    assert (np.abs(rounded[finite] - x[finite]) <= np.abs(x[finite]) * 2.0**-11).all()
    assert (words("to_tf32_golden") & 0x1FFF == 0)[finite].all()
    # Row g of matrix j is what lane 8 j + g pointed to.
    loaded = words("ldmatrix_x4_golden").reshape(32, 4)
    lane = np.arange(32)
    first = (8 * (8 * 2 + lane // 4) + 2 * (lane % 4)).astype(np.uint32)
    np.testing.assert_array_equal(loaded[:, 2], first | (first + 1) << 16)
    a, b, _ = goldens.cases()["mma_m16n8k8_tf32_golden"]
    left, right = np.zeros((16, 8)), np.zeros((8, 8))
    for number in range(32):
        g, q = number // 4, number % 4
        left[[g, g + 8, g, g + 8], [q, q, q + 4, q + 4]] = a.view(np.float32)[
            4 * number : 4 * number + 4
        ]
        right[[q, q + 4], g] = b.view(np.float32)[2 * number : 2 * number + 2]
    product = left @ right
    sums = words("mma_m16n8k8_tf32_golden").view(np.float32).reshape(32, 4)
    for number in range(32):
        g, q = number // 4, number % 4
        expected = product[[g, g, g + 8, g + 8], [2 * q, 2 * q + 1, 2 * q, 2 * q + 1]]
        np.testing.assert_array_equal(sums[number], expected + number - np.arange(4))


@pytest.mark.parametrize("name", goldens.warpgroup_cases())
def test_products_of_a_warpgroup_by_hand(twins: dict, name: str) -> None:
    a, b, _ = goldens.cases()[name]
    suffix = name.removeprefix(goldens.BY_WARPGROUP)
    left, right = ((x.astype(np.uint32) << 16).view(np.float32) for x in (a, b))
    a_across, b_across = ("across" in suffix and other not in suffix for other in ("_b_", "_a_"))
    product = (left.T if a_across else left) @ (right if b_across else right.T)
    thread = np.arange(128)
    row, column = thread // 32 * 16 + thread % 32 // 4, thread % 4 * 2
    expected = np.zeros((128, 4), np.float32)
    for j in range(product.shape[1] // 8):
        for i in range(4):
            sums = product[row + i // 2 * 8, 8 * j + column + i % 2] + thread - i + j
            expected[:, i] += (j + 1) * sums
    words = np.array([int(w, 16) for w in twins["results"][name]], np.uint32)
    np.testing.assert_array_equal(words.view(np.float32).reshape(128, 4), expected)


def test_a_difference_is_found(twins: dict) -> None:
    other = json.loads(json.dumps(twins))
    assert goldens.differences(twins, other) == []
    other["results"]["ldmatrix_x4_golden"][5] = "00000000"
    del other["results"]["cp_async_golden"]
    problems = goldens.differences(twins, other)
    assert len(problems) == 2 and "word 5" in problems[1]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_the_kernels_compile(architecture: str) -> None:
    headers = {path.name: path.read_bytes() for path in compiler.FOLDER.glob("*.cuh")}
    compiled = compiler.compile_source(
        goldens.SOURCE.read_bytes(), "goldens.cu", headers, architecture
    )
    found = compiled.resources()
    here = goldens.cases().keys() - (goldens.warpgroup_cases() if architecture == "sm_80" else {})
    assert found.keys() == here
    assert all(r.spilled == 0 for r in found.values())
