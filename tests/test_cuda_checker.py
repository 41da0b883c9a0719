"""The checker of CUDA kernels is checked: it finds each planted mistake, and nothing where there is none."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.cuda_on_cpu import host_module
from tests.cuda_on_cpu.host_module import HostModule, KernelError

pytestmark = pytest.mark.skipif(not host_module.HERE_IT_RUNS, reason=host_module.REASON)

FOLDER = host_module.SHIM.parent
ORDERS = [{"order": 0}, {"order": 1}, {"order": 2, "seed": 1}, {"order": 2, "seed": 2}]


def defects(mode="check"):
    return HostModule(FOLDER / "defects.cu", mode)


def legal(mode="check"):
    return HostModule(FOLDER / "legal.cu", mode)


def floats(n=64):
    return np.arange(n, dtype=np.float32)


X = floats(1024)  # what asynchronous copies read
COUNTER = np.zeros(1, np.uint32)
INT = np.int32

# Kernel: what the checker says, and how `launch` launches it.
RACE, BARRIER, WARP, MASK = "DATA RACE", "BARRIER DIVERGENCE", "WARP DIVERGENCE", "WRONG MASK"
BOUNDS, UNINITIALISED, UNDEFINED = (
    "OUT OF BOUNDS",
    "UNINITIALISED SHARED READ",
    "UNDEFINED BEHAVIOUR",
)
PROXY, FENCE, SUMS, OPERAND = "NO PROXY FENCE", "NO WGMMA FENCE", "SUMS IN FLIGHT", "WRONG OPERAND"
WGMMA = {"threads": 128, "shared_mem": 2 * (2 * 4096 + 512)}
DEFECTS = {
    "no_barrier": {"says": RACE},
    "no_barrier_before_reuse": {"says": RACE},
    "no_barrier_in_tree": {"says": RACE},
    "sum_without_atomics": {"says": RACE},
    "all_write_one": {"says": RACE},
    "atomic_and_plain": {"says": RACE, "dtype": np.int32},
    "halves_of_a_word": {"says": RACE, "dtype": np.uint16},
    "barrier_in_branch": {"says": "DEADLOCK"},
    "barrier_in_each_branch": {"says": BARRIER},
    "return_before_barrier": {"says": "DEADLOCK"},
    "barrier_in_unequal_loop": {"says": "DEADLOCK"},
    "no_syncwarp": {"says": RACE, "threads": 32},
    "shuffle_instead_of_syncwarp": {"says": RACE, "threads": 32},
    "syncwarp_of_half_a_warp": {"says": f"{RACE}|{WARP}", "threads": 32},
    "shuffle_in_branch": {"says": WARP, "threads": 32},
    "shuffle_by_some": {"says": f"{MASK}|DEADLOCK", "threads": 32},
    "mask_without_caller": {"says": MASK, "threads": 32},
    "shuffle_from_outside_mask": {"says": MASK, "threads": 32},
    "shuffle_after_return": {"says": f"{MASK}|DEADLOCK", "threads": 32},
    "shuffle_in_part_of_a_warp": {"says": MASK, "threads": 40},
    "vote_against_shuffle": {"says": WARP, "threads": 32},
    "product_in_branch": {"says": f"{MASK}|DEADLOCK", "threads": 32},
    "uninitialised": {"says": UNINITIALISED},
    "uninitialised_dynamic": {"says": UNINITIALISED, "shared_mem": 256},
    "left_by_another_block": {"says": UNINITIALISED, "blocks": 2},
    "write_past_end": {"says": BOUNDS, "size": 100, "blocks": 2},
    "read_past_end": {"says": BOUNDS, "before": [floats(50)], "after": [INT(50)]},
    "read_before_begin": {"says": BOUNDS, "before": [floats()]},
    "far_outside": {"says": BOUNDS},
    "vector_past_end": {"says": BOUNDS, "size": 102, "after": [INT(102)]},
    "shared_past_end": {"says": UNDEFINED},
    "dynamic_shared_past_end": {"says": BOUNDS, "shared_mem": 256},
    "registers_past_end": {"says": UNDEFINED, "after": [INT(8)]},
    "no_array": {"says": "NULL POINTER", "before": [np.uintp(0)]},
    "others_registers": {"says": "ANOTHER THREAD'S LOCAL MEMORY"},
    "write_to_const": {"says": "WRITE TO CONST"},
    "misaligned": {"says": "misaligned access|MISALIGNED", "size": 300},
    "misaligned_shared": {"says": "misaligned access|MISALIGNED"},
    "index_overflows": {"says": UNDEFINED, "after": [INT(70000)]},
    "shift_too_far": {"says": UNDEFINED, "after": [INT(32)]},
    "divides_by_zero": {"says": UNDEFINED, "after": [INT(0)]},
    "asserts": {"says": "assert", "after": [INT(3)]},
    "blocks_write_one": {"says": RACE, "blocks": 2},
    "reads_other_block": {"says": RACE, "blocks": 2},
    "last_block_without_fence": {"says": RACE, "blocks": 3, "threads": 32, "after": [COUNTER]},
    "fence_without_barrier": {"says": RACE, "blocks": 3, "threads": 32, "after": [COUNTER]},
    "copy_without_wait": {"says": UNINITIALISED, "before": [X]},
    "copy_without_commit": {"says": UNINITIALISED, "before": [X]},
    "copy_without_barrier": {"says": RACE, "before": [X]},
    "copy_waited_for_too_few": {"says": UNINITIALISED, "before": [X]},
    "copy_into_what_is_read": {"says": RACE, "before": [X]},
    "copy_never_waited_for": {"says": "UNFINISHED COPY", "before": [X]},
    "copy_misaligned": {"says": "MISALIGNED", "before": [X]},
    "copy_past_end": {"says": BOUNDS, "before": [X]},
    "copy_to_global": {"says": "NOT SHARED MEMORY", "before": [X], "size": 256},
    "matrix_misaligned": {"says": "MISALIGNED", "threads": 32},
    "matrix_without_barrier": {"says": RACE, "threads": 32},
    "product_without_proxy_fence": {"says": PROXY, **WGMMA},
    "product_with_proxy_fence_too_late": {"says": PROXY, **WGMMA},
    "product_without_barrier": {"says": f"{RACE}|{UNINITIALISED}", **WGMMA},
    "product_without_fence": {"says": FENCE, **WGMMA},
    "product_with_fence_too_early": {"says": FENCE, **WGMMA},
    "product_read_too_early": {"says": SUMS, **WGMMA},
    "product_waited_for_too_few": {"says": SUMS, **WGMMA},
    "product_without_commit": {"says": SUMS, **WGMMA},
    "product_never_waited_for": {"says": "UNFINISHED PRODUCT", **WGMMA},
    "product_of_what_is_overwritten": {"says": RACE, **WGMMA},
    "product_overwritten_without_barrier": {"says": RACE, **WGMMA},
    "product_waited_for_in_branch": {"says": f"{MASK}|DEADLOCK|{SUMS}", **WGMMA},
    "product_uninitialised": {"says": UNINITIALISED, **WGMMA},
    "product_past_end": {"says": BOUNDS, **WGMMA},
    "product_of_misplaced_atoms": {"says": OPERAND, **WGMMA},
    "product_of_misplaced_atoms_across": {"says": OPERAND, **WGMMA},
    "product_beyond_the_row": {"says": OPERAND, **WGMMA},
    "product_with_odd_stride": {"says": OPERAND, **WGMMA},
    "product_without_swizzle": {"says": OPERAND, **WGMMA},
    "product_of_global_memory": {"says": "NOT SHARED MEMORY", **WGMMA},
    "product_by_three_warps": {"says": "DEADLOCK|WRONG WARPGROUP", **WGMMA},
    "product_in_each_branch": {"says": "WARPGROUP DIVERGENCE", **WGMMA},
    "product_of_different_operands": {"says": "WARPGROUP DIVERGENCE", **WGMMA},
    "product_by_part_of_a_warpgroup": {"says": "WRONG WARPGROUP", **WGMMA, "threads": 96},
    "product_of_another_shape": {"says": SUMS, **WGMMA},
    "product_of_early_fenced_copy": {"says": PROXY, **WGMMA, "before": [X]},
    "product_overwritten_by_copy": {"says": RACE, **WGMMA, "before": [X]},
    "product_of_the_other_warpgroup_overwritten": {"says": RACE, **WGMMA, "threads": 256, "size": 256},
}  # fmt: skip


def launch(module, name, *, threads=64, blocks=1, size=128, dtype=np.float32, before=(), after=(),
           shared_mem=0, **order):  # fmt: skip
    y = np.zeros(size, dtype)
    after = [a.copy() for a in after]
    kernel = module.get_function(name)
    kernel((blocks,), (threads,), (*before, y, *after), shared_mem, **order)
    return y


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_mistake_is_found_in_any_order(name):
    settings = dict(DEFECTS[name])
    says = settings.pop("says")
    for order in ORDERS:
        with pytest.raises(KernelError, match=says) as caught:
            launch(defects(), name, **settings, **order)
        assert str(caught.value).startswith(f"{name}: ")


def test_every_kernel_of_the_file_is_launched():
    source = (FOLDER / "defects.cu").read_text()
    right = {"last_block", "copies_in_order", "product_in_order"}
    assert set(re.findall(r"^KERNEL (\w+)\(", source, re.M)) == {*DEFECTS, *right}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("no_barrier", "y[threadIdx.x] = s[63 - threadIdx.x];"),
        ("write_past_end", "KERNEL write_past_end"),
        ("barrier_in_each_branch", "__syncthreads();"),
        ("sum_without_atomics", "KERNEL sum_without_atomics"),
        ("product_without_proxy_fence", "PRODUCT(d, OPERAND(0), OPERAND(TILE));"),
        ("product_without_proxy_fence", "s[i] = 0x3f80;"),
        ("product_without_fence", "PRODUCT(d, OPERAND(0), OPERAND(TILE));"),
        ("product_read_too_early", "if (FLAW == READ_EARLY)"),
        ("product_of_what_is_overwritten", "if (FLAW == OVERWRITTEN)"),
        ("product_past_end", "PRODUCT(d, OPERAND(0), wgmma_operand(s + TILE, 0, 4096));"),
        ("product_with_odd_stride", "wgmma_operand(s + TILE, 0, 1024 - 128)"),
        ("product_of_different_operands", "threadIdx.x / 32 * 16"),
    ],
)
def test_messages_name_the_line(name, line):
    settings = dict(DEFECTS[name])
    settings.pop("says")
    with pytest.raises(KernelError) as caught:
        launch(defects(), name, **settings)
    lines = (FOLDER / "defects.cu").read_text().splitlines()
    named = re.findall(r"defects\.cu:(\d+)", str(caught.value))
    assert any(line in lines[int(number) - 1] for number in named)


def test_late_copies_are_what_finds_a_missing_wait():
    early = launch(defects(), "copies_in_order", before=[X], async_late=0)
    late = launch(defects(), "copies_in_order", before=[X], async_late=1)
    np.testing.assert_array_equal(early, late)
    expected = X.reshape(4, 256)[:, ::-1].sum(0)[:64]
    np.testing.assert_array_equal(late[:64], expected)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_product_in_order(order):
    for mode in ("check", "fast"):
        for late in (0, 1):
            y = launch(defects(mode), "product_in_order", **WGMMA, async_late=late, **order)
            np.testing.assert_array_equal(y, 17)


def test_sums_are_not_there_before_the_wait_even_if_nobody_checks():
    assert np.isnan(launch(defects("fast"), "product_read_too_early", **WGMMA)[:128]).all()


# ------------------------------------------------------------------------- what must stay clean

x = floats()
BLOCK_SUM = np.full(64, x.sum())
shuffled = x.astype(np.float64)
lane, warp = np.arange(64) % 32, np.arange(64) // 32 * 32
shuffled = (
    shuffled
    + shuffled[np.where(lane % 8 < 4, warp + lane + 4, warp + lane) % 64]
    + shuffled[warp + np.where(lane >= 3, lane - 3, lane)]
)
shuffled = shuffled + shuffled[warp + lane // 16 * 16 + 5]
LEGAL = {  # kernel: (what is left in y, shared memory)
    "reverse_by_syncwarp": (x.reshape(2, 32)[:, ::-1].ravel(), 0),
    "tree": (BLOCK_SUM, 0),
    "block_sums": (BLOCK_SUM, 0),
    "half_warps": (x + x.reshape(-1, 2)[:, ::-1].ravel(), 0),
    "whole_warp_returns": (np.r_[np.full(32, x[:32].sum()), np.zeros(32)], 0),
    "neighbours_in_a_word": (x[::-1].astype(np.uint16), 0),
    "dynamic_in_two_parts": (x[::-1] * np.tile([4, 2, 1, 0.5], 16), 64 * 12),
    "counter": (np.r_[np.uint32(53), np.zeros(63, np.uint32)], 0),
    "shuffles": (shuffled, 0),
}


@pytest.mark.parametrize("mode", ["check", "fast"])
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("name", LEGAL)
def test_legal_kernels_stay_clean(name, order, mode):
    expected, shared_mem = LEGAL[name]
    dtype = expected.dtype if expected.dtype.kind == "u" or name == "shuffles" else np.float32
    y = launch(legal(mode), name, size=64, dtype=dtype, before=[x], shared_mem=shared_mem, **order)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_last_block_may_read_what_others_wrote_before_their_fence(order):
    y = launch(
        defects(), "last_block", threads=32, blocks=3, after=[np.zeros(1, np.uint32)], **order
    )
    assert y[96] == 96


def test_vectors_and_arrays_that_share_memory():
    given, y = floats(256).reshape(64, 4), np.zeros((64, 4), np.float32)
    legal().get_function("vectors")((1,), (64,), (given, y))
    np.testing.assert_array_equal(y, given[::-1])
    y = floats()
    legal().get_function("in_place")((1,), (64,), (y, y))
    np.testing.assert_array_equal(y, floats() + 1)
    whole = floats(100)
    legal().get_function("in_place")((1,), (32,), (whole[:40], whole[60:]))
    np.testing.assert_array_equal(whole[60:92], floats(32) + 1)
    np.testing.assert_array_equal(whole[:60], floats(60))


def test_a_view_keeps_its_alignment():
    def run(y):
        defects().get_function("vector_past_end")((1,), (16,), (y, INT(64)))

    whole = np.zeros(100, np.float32)
    run(whole[4:])
    with pytest.raises(KernelError, match="misaligned"):
        run(whole[5:])


# ------------------------------------------------------------------------------- how it is called


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X, X), "takes 1"),
        ((3,), "is a int; pass an array or a NumPy scalar"),
        ((X.astype(np.float64),), "array of float64, for a pf4"),
        ((X.view(np.int32),), "array of int32, for a pf4"),
        ((np.float32(1),), "value of float32, for a pf4"),
        ((X[::2],), "not C-contiguous"),
    ],
)
def test_arguments_must_fit(args, message):
    with pytest.raises(KernelError, match=message):
        defects().get_function("write_past_end")((1,), (32,), args)


def test_scalars_must_be_of_the_parameters_type():
    kernel = defects().get_function("divides_by_zero")
    for wrong in (np.int64(1), np.uint32(1), np.float32(1)):
        with pytest.raises(KernelError, match="for a i4"):
            kernel((1,), (32,), (floats(), wrong))
    kernel((1,), (32,), (floats(), INT(1)))


def test_launches_must_be_possible():
    kernel = defects().get_function("write_past_end")
    for grid, block, message in (
        ((1,), (1025,), "at most 1024"),
        ((0,), (32,), "positive"),
        ((1, 65536), (32,), "too large"),
    ):
        with pytest.raises(KernelError, match=message):
            kernel(grid, block, (X,))
    with pytest.raises(KernelError, match="shared memory"):
        kernel((1,), (32,), (X,), 49 * 1024)
    with pytest.raises(KernelError, match="no kernel nothing"):
        defects().get_function("nothing")


def test_fast_mode_notices_writes_just_outside():
    with pytest.raises(KernelError, match="out of bounds"):
        launch(defects("fast"), "write_past_end", size=100, blocks=2)


def test_another_library_takes_hardly_any_pieces_of_memory():
    """A process may have 65,530 of them, and the tests load hundreds of libraries."""

    def relu(flags):
        module = HostModule(host_module.KERNELS / "elementwise.cu", "fast", ("T=float", *flags))
        module.get_function("relu_forward")((1,), (256,), (X, np.empty_like(X), np.int64(X.size)))

    def pieces():
        return len(Path("/proc/self/maps").read_text().splitlines())

    relu([])
    before = pieces()
    relu(["ANOTHER=1"])
    assert pieces() - before < 50


def test_float_atomics_are_not_there(tmp_path):
    source = tmp_path / "atomics.cu"
    source.write_text('extern "C" __global__ void k(float* y) { atomicAdd(y, 1.f); }')
    with pytest.raises(KernelError, match="g\\+\\+ failed"):
        HostModule(source)


# --------------------------------------- twins, against the PTX ISA's tables written down once more

lanes = np.arange(32)
group, in_group = lanes // 4, lanes % 4


def bf16(a):
    return (a.astype(np.float32).view(np.uint32) >> 16).astype(np.uint32)


def matrices(k):
    random = np.random.default_rng(0)
    shapes = (16, k), (k, 8)
    return [random.integers(-8, 9, shape).astype(np.float32) for shape in shapes]


def full_d(d):
    full = np.zeros((16, 8), np.float32)
    for i in range(4):
        full[group + 8 * (i >= 2), 2 * in_group + i % 2] = d[:, i]
    return full


def test_bf16_products():
    a, b = matrices(16)
    fragment_a, fragment_b = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    for i in range(8):
        row = group + 8 * (i in (2, 3, 6, 7))
        column = 2 * in_group + i % 2 + 8 * (i >= 4)
        fragment_a[:, i // 2] |= bf16(a[row, column]) << np.uint32(16 * (i % 2))
    for i in range(4):
        row = 2 * in_group + i % 2 + 8 * (i >= 2)
        fragment_b[:, i // 2] |= bf16(b[row, group]) << np.uint32(16 * (i % 2))
    d = np.zeros((32, 4), np.float32)
    legal().get_function("multiply_bf16")((1,), (32,), (fragment_a, fragment_b, d))
    np.testing.assert_array_equal(full_d(d), a @ b)


def test_tf32_products():
    a, b = matrices(8)
    rows = [a[group + 8 * (i % 2), in_group + 4 * (i // 2)] for i in range(4)]
    fragment_a = np.stack(rows, 1).view(np.uint32)
    fragment_b = np.stack([b[in_group + 4 * i, group] for i in range(2)], 1).view(np.uint32)
    fragment_a = fragment_a | np.uint32(0x1FFF)  # the unit ignores what tf32 has no room for
    d = np.zeros((32, 4), np.float32)
    legal().get_function("multiply_tf32")((1,), (32,), (fragment_a, fragment_b, d))
    np.testing.assert_array_equal(full_d(d), a @ b)


@pytest.mark.parametrize("mode", ["check", "fast"])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_products_of_two_warpgroups(order, mode):
    random = np.random.default_rng(0)
    a, b = (random.integers(-8, 9, (rows, 256)).astype(np.float32) for rows in (128, 64))
    kernel = legal(mode).get_function("multiply_wgmma")
    kernel.max_dynamic_shared_size_bytes = size = 3 * (128 + 64) * 128
    for late in (0, 1):
        y = np.zeros((128, 64), np.float32)
        given = [bf16(x).astype(np.uint16) for x in (a, b)]
        kernel((1,), (256,), (*given, y), size, async_late=late, **order)
        np.testing.assert_array_equal(y, a @ b.T)


@pytest.mark.parametrize("transposed", [False, True])
def test_loading_matrices(transposed):
    given = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    y = np.zeros((32, 4), np.uint32)
    kernel = legal().get_function("load_matrices")
    kernel((1,), (32,), (given, y, INT(transposed)))
    source = given.transpose(0, 2, 1) if transposed else given
    for i in range(4):
        expected = source[i, group, 2 * in_group] | (
            source[i, group, 2 * in_group + 1].astype(np.uint32) << 16
        )
        np.testing.assert_array_equal(y[:, i], expected)


def test_rounding_to_tf32():
    half = 2.0**-11  # half of the last place at 1
    given = np.float32([1, 1 + half, 1 + half * 0.999, -1 - half, np.inf, 3e-39])
    y = np.zeros(6, np.uint32)
    legal().get_function("round_to_tf32")((1,), (6,), (given, y))
    above = 1 + 2 * half  # ties go away from zero
    np.testing.assert_array_equal(y.view(np.float32)[:5], np.float32([1, above, 1, -above, np.inf]))
