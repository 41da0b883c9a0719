"""The inner loops of convolution, written as LLVM IR because compilers do not find them.

A convolution is fast when a processor does little but multiply-add. It can do two vector multiply-adds
and two loads in each cycle, and a multiply-add takes four cycles, so at least eight sums must be under
way, and each loaded value must serve several of them. So a small tile of the result, `height` rows by
`vectors` vectors of `lanes` numbers, stays in registers for the whole sum. One step of the sum loads
`vectors` vectors and broadcasts `height` numbers, then does height * vectors multiply-adds:

    lanes  registers  tile    sums  vectors  broadcast  used   loads per multiply-add
    8      16         6 x 2   12    2        1          15     8 / 12
    16     32         12 x 2  24    2        1          27     14 / 24
    16     32         13 x 2  26    2        1          29     15 / 26

AVX2 and NEON take 8 lanes (NEON as two registers each, of its 32), AVX-512 takes 16. `multiply_rows`
could hold 14 rows in AVX-512's vector registers, but every row has an address of its own, and 12 of those
together with the loop's own addresses are what the 16 integer registers can hold. `add_outer_products`
reads its rows side by side from one address and takes 13, because 64, 128, 256 and 512 filters then leave
almost no part of the last tile empty. Left to itself, LLVM vectorises such loops but keeps the sums in
memory, a quarter of the speed or less.

Numba calls the IR through `intrinsic`. Each tile is wrapped in a function of its own that is not inlined:
it is compiled once, not at every place of use. Addresses are plain integers, steps between elements are
in floats; nothing is checked here.
"""

import platform
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from minitl.kernels.cpu.jit import EVERY_WIDTH, config, kernel

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
LINES_ASKED = 2  # in a round of `add_outer_products`
UNROLL = 4  # steps of the sum in one round of the loop

LINE = 16  # floats in a cache line
# What llvm.prefetch is told: whether to write; the cache it should reach, 3 for the nearest.
PREFETCH_READ, PREFETCH_WRITE, PREFETCH_FAR = (0, 3), (1, 3), (0, 2)

RESULTS_FAR, ROWS_FAR = 1, 2  # see `multiply_rows`

# Rows of a tile, by lanes.
ROWS_HEIGHT = {8: 6, 16: 12}
OUTER_HEIGHT = {8: 6, 16: 13}


@cache
def host_lanes() -> int:
    """Return the lanes that suit this machine: 16, 8, or 0 where the tiles would not be fast.

    Where NUMBA_CPU_FEATURES says what Numba is to compile for, that counts.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 8
    features: dict[str, bool] = llvmlite.binding.get_host_cpu_features()
    if config.CPU_FEATURES is not None:
        features = {name[1:]: name[0] == "+" for name in config.CPU_FEATURES.split(",") if name}
    if features.get("avx512f") and features.get("avx512vl"):
        return 16
    return 8 if features.get("avx2") and features.get("fma") else 0


@cache
def compiled_lanes() -> tuple[int, ...]:
    """Return the lanes that kernels are compiled for: those of this machine, which saves much of the time.

    For tests on a machine with 16 lanes, MINITL_EVERY_WIDTH in the environment adds 8.
    """
    narrower = (8,) if host_lanes() == 16 and EVERY_WIDTH else ()
    return (*narrower, host_lanes())


class Emitter:
    """Writes the pieces of a kernel: vectors, addresses and loops."""

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self.builder = builder
        self.lanes = lanes
        self.vector = ir.VectorType(F32, lanes)

    def at(self, address: ir.Value, floats: ir.Value | int) -> ir.Value:
        """Return the address that many floats (or 32-bit integers) further."""
        if isinstance(floats, int):
            return self.builder.add(address, I64(4 * floats))
        return self.builder.add(address, self.builder.shl(floats, I64(2)))

    def load(self, address: ir.Value, kind: ir.Type) -> ir.Value:
        """Load one value, which need not be aligned to more than four bytes."""
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = 4
        return value

    def store(self, vector: ir.Value, address: ir.Value) -> None:
        """Store a vector, with the alignment of one float."""
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        self.builder.store(vector, pointer).align = 4

    def prefetch(self, address: ir.Value, how: tuple[int, int]) -> None:
        """Ask for the cache line at an address."""
        function = self.builder.module.globals.get("llvm.prefetch.p0")
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), I32, I32, I32])
            function = ir.Function(self.builder.module, kind, "llvm.prefetch.p0")
        pointer = self.builder.inttoptr(address, ir.IntType(8).as_pointer())
        self.builder.call(function, [pointer, *map(I32, how), I32(1)])

    def load_vectors(self, address: ir.Value, count: int) -> list[ir.Value]:
        """Load vectors that follow each other."""
        return [self.load(self.at(address, j * self.lanes), self.vector) for j in range(count)]

    def broadcast(self, scalar: ir.Value) -> ir.Value:
        """Return a vector with the scalar in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """Return a * b + c, fused where the processor can."""
        name = f"llvm.fmuladd.v{self.lanes}f32"
        function = self.builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(self.vector, [self.vector] * 3)
            function = ir.Function(self.builder.module, kind, name)
        return self.builder.call(function, [a, b, c])

    def relu(self, value: ir.Value) -> ir.Value:
        """Return a vector with what is below zero replaced by zero; a NaN stays."""
        zero = self.constant(0)
        return self.builder.select(self.builder.fcmp_ordered("<", value, zero), zero, value)

    def constant(self, number: float) -> ir.Value:
        """Return a vector of equal numbers."""
        return ir.Constant(self.vector, [float(number)] * self.lanes)

    def offset(self, address: ir.Value) -> ir.Value:
        """Load an entry of a table."""
        return self.builder.sext(self.load(address, I32), I64)

    def row(self, base: ir.Value, outside: ir.Value, offset_address: ir.Value) -> ir.Value:
        """Return the address of the row that a table entry names; a negative entry is `outside`."""
        offset = self.offset(offset_address)
        negative = self.builder.icmp_signed("<", offset, I64(0))
        return self.builder.select(negative, outside, self.at(base, offset))

    def when(
        self,
        number: ir.Value,
        values: Sequence[ir.Value],
        body: Callable[[Sequence[ir.Value]], Sequence[ir.Value]],
    ) -> list[ir.Value]:
        """Write `if number: values = body(values)` and return the values after it."""
        builder = self.builder
        before = builder.block
        then, after = builder.append_basic_block("then"), builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("!=", number, I64(0)), then, after)
        builder.position_at_end(then)
        results = body(values)
        builder.branch(after)
        end = builder.block
        builder.position_at_end(after)
        last = [builder.phi(value.type) for value in values]
        for phi, old, new in zip(last, values, results, strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, end)
        return last

    def repeat(
        self,
        count: ir.Value,
        values: Sequence[ir.Value],
        body: Callable[[list[ir.Value]], Sequence[ir.Value]],
    ) -> list[ir.Value]:
        """Write `for _ in range(count): values = body(values)` and return the last values."""
        builder = self.builder
        before = builder.block
        loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed(">", count, I64(0)), loop, after)

        builder.position_at_end(loop)
        left = builder.phi(I64)
        current = [builder.phi(value.type) for value in values]
        results = body(current)
        remaining = builder.sub(left, I64(1))
        end = builder.block  # not `loop` where the body holds a loop itself
        for phi, first, next_ in zip(
            [left, *current], [count, *values], [remaining, *results], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(next_, end)
        builder.cbranch(builder.icmp_signed(">", remaining, I64(0)), loop, after)

        builder.position_at_end(after)
        last = [builder.phi(value.type) for value in values]
        for phi, first, next_ in zip(last, values, results, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(next_, end)
        return last

    def repeat_unrolled(
        self,
        count: ir.Value,
        values: Sequence[ir.Value],
        body: Callable[[list[ir.Value]], Sequence[ir.Value]],
    ) -> list[ir.Value]:
        """Write the same loop as `repeat`, UNROLL steps in a round, then what is left over."""

        def round_of_steps(current: list[ir.Value]) -> list[ir.Value]:
            for _ in range(UNROLL):
                current = list(body(current))
            return current

        rounds, rest = self.divide_by_unroll(count)
        return self.repeat(rest, self.repeat(rounds, values, round_of_steps), body)

    def divide_by_unroll(self, count: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return count // UNROLL and count % UNROLL."""
        shift = I64(UNROLL.bit_length() - 1)
        return self.builder.ashr(count, shift), self.builder.and_(count, I64(UNROLL - 1))


def make_intrinsic(variants: dict[tuple[int, ...], Callable[..., None]]) -> Any:
    """Make a Numba function that runs one of several pieces of IR.

    variants: from a key, whose first number is the lanes, to a function that writes the IR for these lanes.
    The made function takes one tuple of int64: the key, then what the IR is given. Variants for other lanes
    than `compiled_lanes` are left out.
    """

    @intrinsic
    def choose(typing_context: Any, arguments: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, _: Any, values: list[ir.Value]) -> Any:
            count = len(values[0].type)
            numbers = [builder.extract_value(values[0], i) for i in range(count)]
            for key, write in variants.items():
                if key[0] not in compiled_lanes():
                    continue
                chosen: ir.Value = ir.Constant(ir.IntType(1), 1)
                for number, wanted in zip(numbers, key, strict=False):
                    chosen = builder.and_(chosen, builder.icmp_signed("==", number, I64(wanted)))
                with builder.if_then(chosen):
                    write(Emitter(builder, key[0]), *numbers[len(key) :])
            return context.get_dummy_value()

        return types.void(arguments), codegen

    return choose


def _rows_tile(lanes: int, vectors: int) -> Callable[..., None]:
    height = ROWS_HEIGHT[lanes]
    rows_ahead = -(
        -height * UNROLL // LINE
    )  # in a round, so that a line of each is asked for in time

    def write(
        emit: Emitter,
        a: ir.Value,
        outside: ir.Value,
        table: ir.Value,
        table_step: ir.Value,
        taps: ir.Value,
        depth: ir.Value,
        b: ir.Value,
        start: ir.Value,
        c: ir.Value,
        c_table: ir.Value,
        add: ir.Value,
        other: ir.Value,
        relu: ir.Value,
        far: ir.Value,
    ) -> None:
        def prefetch_rows(
            base: ir.Value, offsets: list[ir.Value], how: tuple[int, int]
        ) -> list[ir.Value]:
            for offset in offsets:
                for start in range(0, vectors * lanes, LINE):
                    emit.prefetch(emit.at(emit.at(base, offset), start), how)
            return []

        def tap(values: list[ir.Value]) -> list[ir.Value]:
            table, b, *sums = values
            rows = [emit.row(a, outside, emit.at(table, i)) for i in range(height)]
            next_rows = emit.at(table, height)

            def look_ahead(values: Sequence[ir.Value]) -> list[ir.Value]:
                row, line = values
                for j in range(rows_ahead):
                    entry = emit.at(emit.at(next_rows, row), j)
                    emit.prefetch(emit.at(line, emit.offset(entry)), PREFETCH_FAR)
                row = emit.builder.add(row, I64(rows_ahead))
                wraps = emit.builder.icmp_signed("==", row, I64(height))
                return [
                    emit.builder.select(wraps, I64(0), row),
                    emit.builder.select(wraps, emit.at(line, LINE), line),
                ]

            def round_of_steps(values: list[ir.Value]) -> list[ir.Value]:
                k, b, row, line, *sums = values
                row, line = emit.when(rows_far, [row, line], look_ahead)
                values = [k, b, *sums]
                for _ in range(UNROLL):
                    values = step(values)
                k, b, *sums = values
                return [k, b, row, line, *sums]

            def step(values: list[ir.Value]) -> list[ir.Value]:
                k, b, *sums = values
                right = emit.load_vectors(b, vectors)
                for i in range(height):
                    left = emit.broadcast(emit.load(emit.at(rows[i], k), F32))
                    for j in range(vectors):
                        q = i * vectors + j
                        sums[q] = emit.multiply_add(left, right[j], sums[q])
                return [emit.builder.add(k, I64(1)), emit.at(b, vectors * lanes), *sums]

            rounds, rest = emit.divide_by_unroll(depth)
            k, b, _, _, *sums = emit.repeat(rounds, [I64(0), b, I64(0), a, *sums], round_of_steps)
            _, b, *sums = emit.repeat(rest, [k, b, *sums], step)
            return [emit.at(table, table_step), b, *sums]

        offsets = [emit.offset(emit.at(c_table, i)) for i in range(height)]
        rows_far = emit.builder.and_(far, I64(ROWS_FAR))
        results_far = emit.builder.and_(far, I64(RESULTS_FAR))
        emit.when(results_far, [], lambda _: prefetch_rows(c, offsets, PREFETCH_WRITE))
        emit.when(other, [], lambda _: prefetch_rows(other, offsets, PREFETCH_READ))
        sums = [emit.constant(0)] * (height * vectors)
        _, _, *sums = emit.repeat(taps, [table, b, *sums], tap)
        adds = emit.builder.icmp_signed("!=", add, I64(0))
        offsets = [emit.offset(emit.at(c_table, i)) for i in range(height)]
        rows = [emit.at(c, offset) for offset in offsets]
        # Everything is loaded before anything is stored: rows may be copies of each other.
        for i in range(height):
            before = emit.load_vectors(emit.builder.select(adds, rows[i], start), vectors)
            for j in range(vectors):
                q = i * vectors + j
                sums[q] = emit.builder.fadd(before[j], sums[q])

        def add_other(sums: Sequence[ir.Value]) -> list[ir.Value]:
            others: list[ir.Value] = []
            for offset in offsets:
                others += emit.load_vectors(emit.at(other, offset), vectors)
            return [emit.builder.fadd(*pair) for pair in zip(sums, others, strict=True)]

        sums = emit.when(other, sums, add_other)
        sums = emit.when(relu, sums, lambda sums: [emit.relu(total) for total in sums])
        for i in range(height):
            for j in range(vectors):
                emit.store(sums[i * vectors + j], emit.at(rows[i], j * lanes))

    return write


def _outer_tile(lanes: int, vectors: int) -> Callable[..., None]:
    height = OUTER_HEIGHT[lanes]

    def write(
        emit: Emitter,
        a: ir.Value,
        a_step: ir.Value,
        b: ir.Value,
        b_step: ir.Value,
        vector_step: ir.Value,
        count: ir.Value,
        before: ir.Value,
        c: ir.Value,
        far: ir.Value,
    ) -> None:
        def ask(values: Sequence[ir.Value]) -> list[ir.Value]:
            (entry,) = values
            for i in range(LINES_ASKED):
                emit.prefetch(emit.load(emit.at(entry, 2 * i), I64), PREFETCH_FAR)
            return [emit.at(entry, 2 * LINES_ASKED)]

        def round_of_steps(values: list[ir.Value]) -> list[ir.Value]:
            entry, *values = values
            entries = emit.when(far, [entry], ask)
            for _ in range(UNROLL):
                values = step(values)
            return [*entries, *values]

        def step(values: list[ir.Value]) -> list[ir.Value]:
            a, b, *sums = values
            places = [b, emit.at(b, vector_step)][:vectors]
            right = [emit.load(place, emit.vector) for place in places]
            for i in range(height):
                left = emit.broadcast(emit.load(emit.at(a, i), F32))
                for j in range(vectors):
                    q = i * vectors + j
                    sums[q] = emit.multiply_add(left, right[j], sums[q])
            return [emit.at(a, a_step), emit.at(b, b_step), *sums]

        sums = [emit.constant(0)] * (height * vectors)
        for start in range(0, height * vectors * lanes, LINE):
            emit.prefetch(emit.at(c, start), PREFETCH_WRITE)
        rounds, rest = emit.divide_by_unroll(count)
        _, *values = emit.repeat(rounds, [far, a, b, *sums], round_of_steps)
        _, _, *sums = emit.repeat(rest, values, step)
        for q, total in enumerate(sums):
            start = emit.load(emit.at(before, q * lanes), emit.vector)
            emit.store(emit.builder.fadd(start, total), emit.at(c, q * lanes))

    return write


def _write_gather(
    emit: Emitter,
    source: ir.Value,
    outside: ir.Value,
    table: ir.Value,
    count: ir.Value,
    starts: ir.Value,
    vectors: ir.Value,
    target: ir.Value,
    row_step: ir.Value,
    vector_step: ir.Value,
) -> None:
    def row(values: list[ir.Value]) -> list[ir.Value]:
        table, target = values
        row = emit.row(source, outside, table)

        def copy(values: list[ir.Value]) -> list[ir.Value]:
            starts, target = values
            start = emit.builder.sext(emit.load(starts, I32), I64)
            emit.store(emit.load(emit.at(row, start), emit.vector), target)
            return [emit.at(starts, 1), emit.at(target, vector_step)]

        emit.repeat_unrolled(vectors, [starts, target], copy)
        return [emit.at(table, 1), emit.at(target, row_step)]

    emit.repeat(count, [table, target], row)


def _write_transpose(
    emit: Emitter,
    source: ir.Value,
    row_step: ir.Value,
    factors: ir.Value,
    target: ir.Value,
    column_step: ir.Value,
) -> None:
    lanes = emit.lanes
    rows = []
    for _ in range(lanes):
        rows.append(emit.load(source, emit.vector))
        source = emit.at(source, row_step)
    # In every square of 2, 4, 8, ... rows and columns, swap the two quarters beside the diagonal.
    distance = 1
    while distance < lanes:
        kind = ir.VectorType(I32, lanes)
        left = [e + (lanes - distance if e & distance else 0) for e in range(lanes)]
        right = [e + (lanes if e & distance else distance) for e in range(lanes)]
        for i in range(lanes):
            if not i & distance:
                pair = rows[i], rows[i + distance]
                for row, order in ((i, left), (i + distance, right)):
                    rows[row] = emit.builder.shuffle_vector(*pair, ir.Constant(kind, order))
        distance *= 2
    factor = emit.load(factors, emit.vector)
    for row in rows:
        emit.store(emit.builder.fmul(row, factor), target)
        target = emit.at(target, column_step)


def _write_ask(emit: Emitter, address: ir.Value, lines: ir.Value) -> None:
    def line(values: list[ir.Value]) -> list[ir.Value]:
        emit.prefetch(values[0], PREFETCH_FAR)
        return [emit.at(values[0], LINE)]

    emit.repeat(lines, [address], line)


TILES = [(lanes, vectors) for lanes in (8, 16) for vectors in (1, 2)]
_rows = make_intrinsic({tile: _rows_tile(*tile) for tile in TILES})
_outer = make_intrinsic({tile: _outer_tile(*tile) for tile in TILES})
_transpose = make_intrinsic({(8,): _write_transpose, (16,): _write_transpose})
_gather_rows = make_intrinsic({(8,): _write_gather, (16,): _write_gather})
_ask = make_intrinsic({(8,): _write_ask, (16,): _write_ask})


@kernel()
def multiply_rows(  # type: ignore[no-untyped-def]
    lanes,
    vectors,
    a,
    outside,
    table,
    table_step,
    taps,
    depth,
    b,
    start,
    c,
    c_table,
    add,
    other,
    relu,
    far,
):
    """Compute one tile of a product whose left rows are found through a table.

    With W = vectors * lanes and every name but the numbers an address:

        c[c_table[i] + j] = start[j] + sum over t < taps, k < depth of A(t, i)[k] * b[(t * depth + k) * W + j]

    for i < ROWS_HEIGHT[lanes], j < W, where A(t, i) is a + table[t * table_step + i], or `outside` if that
    entry is negative. Tables are int32, in floats. With add, the sum is added to c instead of to start: long
    sums are taken in several calls, because one chain of thousands of additions loses too many digits.

    What follows a finished sum is done before it leaves the registers: `other`, if not 0, is an address from
    which other[c_table[i] + j] is added, and with `relu` what is below zero is cut off.

    far: what is not in a near cache yet and should be asked for in time, the sum of RESULTS_FAR (the rows of
    c, at the beginning) and ROWS_FAR (while the sum is under way, the rows that the next tile starts from,
    table[t * table_step + ROWS_HEIGHT[lanes] + i]). The processor by itself notices when one row after the
    other is read, but not so many at a time.
    """
    _rows(
        (
            lanes,
            vectors,
            a,
            outside,
            table,
            table_step,
            taps,
            depth,
            b,
            start,
            c,
            c_table,
            add,
            other,
            relu,
            far,
        )
    )


@kernel()
def add_outer_products(  # type: ignore[no-untyped-def]
    lanes, vectors, a, a_step, b, b_step, vector_step, count, before, c, far
):
    """Add the sum of `count` outer products to one tile.

        c[i * W + v * lanes + j] = before[i * W + v * lanes + j] + sum over p < count of
            a[p * a_step + i] * b[p * b_step + v * vector_step + j]

    for i < OUTER_HEIGHT[lanes], v < vectors, j < lanes; W = vectors * lanes. `before` may be c.

    far: 0, or the address of LINES_ASKED * (count // UNROLL) addresses, int64, of what will be needed later
    and is asked for meanwhile.
    """
    _outer((lanes, vectors, a, a_step, b, b_step, vector_step, count, before, c, far))


@kernel()
def gather_rows(  # type: ignore[no-untyped-def]
    lanes, source, outside, table, count, starts, vectors, target, row_step, vector_step
):
    """Copy vectors out of rows that are found through a table.

        target[v * vector_step + p * row_step + j] = source[table[p] + starts[v] + j]

    for p < count, v < vectors, j < lanes, or outside[starts[v] + j] where table[p] is negative. starts is
    int32 as well. Whole rows are read in turn, so that the processor sees what comes next.
    """
    _gather_rows(
        (lanes, source, outside, table, count, starts, vectors, target, row_step, vector_step)
    )


@kernel()
def transpose_square(lanes, source, row_step, factors, target, column_step):  # type: ignore[no-untyped-def]
    """Transpose a square of numbers, each row times its factor.

        target[k * column_step + j] = source[j * row_step + k] * factors[j]

    for j, k < lanes. A loop does the same, but is compiled to scattered stores, one number at a time.
    """
    _transpose((lanes, source, row_step, factors, target, column_step))


@kernel()
def ask_for(lanes, address, lines):  # type: ignore[no-untyped-def]
    """Ask for cache lines that will soon be needed, from an address on."""
    _ask((lanes, address, lines))
