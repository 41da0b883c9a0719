"""The matrices of Winograd's algorithm, and the transforms of tiles by them as LLVM IR.

Points come in pairs a, -a, whose rows differ only in the sign of the odd columns. So each matrix is kept as
a butterfly (sum and difference) times a matrix of even and odd halves, which saves half the work. See
winograd.py for what the matrices are for.
"""

from collections.abc import Callable, Sequence

from llvmlite import ir

from minitl.kernels.cpu.microkernel import I64, Emitter, make_intrinsic

Matrix = Sequence[Sequence[float]]

# Points 0, +-1, (+-2,) infinity. Halves: for a pair of points the even columns, then the odd columns.
BUTTERFLY: dict[int, Matrix] = {
    2: [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, -1, 0], [0, 0, 0, 1]],
    4: [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, -1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, -1, 0],
        [0, 0, 0, 0, 0, 1],
    ],
}
PIXEL_HALVES: dict[int, Matrix] = {  # B^T = butterfly @ these
    2: [[1, 0, -1, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, -1, 0, 1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, 0, -4, 0, 1, 0],
        [0, -4, 0, 1, 0, 0],
        [0, 0, -1, 0, 1, 0],
        [0, -2, 0, 2, 0, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
FILTER_HALVES: dict[int, Matrix] = {  # G = butterfly @ these
    2: [[1, 0, 0], [1 / 2, 0, 1 / 2], [0, 1 / 2, 0], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, 0, -1 / 6],
        [0, -1 / 6, 0],
        [1 / 24, 0, 1 / 6],
        [0, 1 / 12, 0],
        [0, 0, 1],
    ],
}
RESULT_HALVES: dict[int, Matrix] = {  # A = butterfly @ these
    2: [[1, 0], [1, 0], [0, 1], [0, 1]],
    4: [
        [1, 0, 0, 0],
        [1, 0, 1, 0],
        [0, 1, 0, 1],
        [1, 0, 4, 0],
        [0, 2, 0, 8],
        [0, 0, 0, 1],
    ],
}


def _combine(emit: Emitter, row: Sequence[float], values: list[ir.Value]) -> ir.Value:
    """Return the sum of coefficient * value over the entries of the row that are not zero."""
    terms = sorted(
        ((c, v) for c, v in zip(row, values, strict=True) if c), key=lambda term: term[0] != 1
    )
    coefficient, total = terms[0]
    if coefficient != 1:
        total = emit.builder.fmul(emit.constant(coefficient), total)
    for coefficient, value in terms[1:]:
        if coefficient == 1:
            total = emit.builder.fadd(total, value)
        elif coefficient == -1:
            total = emit.builder.fsub(total, value)
        else:
            total = emit.multiply_add(emit.constant(coefficient), value, total)
    return total


def _transform(*matrices: Matrix, finishes: bool = False) -> Callable[..., None]:
    """Return what writes: target = M source M^T, with M the product of the matrices.

    Steps and channels are in floats. The last vector of channels is moved back to end with the row, so there
    must be at least one vector's worth. One that finishes results adds `added`, a row of channels, then what
    stands at `other`, laid out as the target, unless that is 0, and with `relu` cuts off what is below zero.
    """

    def apply(emit: Emitter, values: list[ir.Value]) -> list[ir.Value]:
        for matrix in reversed(matrices):
            values = [_combine(emit, row, values) for row in matrix]
        return values

    def write(
        emit: Emitter,
        source: ir.Value,
        row_step: ir.Value,
        column_step: ir.Value,
        target: ir.Value,
        target_row_step: ir.Value,
        target_column_step: ir.Value,
        channels: ir.Value,
        added: ir.Value | None = None,
        other: ir.Value | None = None,
        relu: ir.Value | None = None,
    ) -> None:
        builder = emit.builder
        size = len(matrices[-1][0])

        def place(base: ir.Value, i: int, i_step: ir.Value, j: int, j_step: ir.Value) -> ir.Value:
            rows, columns = builder.mul(i_step, I64(i)), builder.mul(j_step, I64(j))
            return emit.at(base, builder.add(rows, columns))

        def some_channels(values: list[ir.Value]) -> list[ir.Value]:
            (channel,) = values
            last = builder.sub(channels, I64(emit.lanes))
            here = builder.select(builder.icmp_signed("<", channel, last), channel, last)
            base = emit.at(source, here)
            columns = []
            for j in range(size):
                column = [place(base, i, row_step, j, column_step) for i in range(size)]
                columns.append(apply(emit, [emit.load(at, emit.vector) for at in column]))
            rows = [apply(emit, [column[i] for column in columns]) for i in range(len(columns[0]))]
            results = [value for row in rows for value in row]

            def places(base: ir.Value) -> list[ir.Value]:
                base = emit.at(base, here)
                return [
                    place(base, i, target_row_step, j, target_column_step)
                    for i, row in enumerate(rows)
                    for j in range(len(row))
                ]

            if finishes:
                plus = emit.load(emit.at(added, here), emit.vector)
                results = [builder.fadd(value, plus) for value in results]

                def add_other(values: Sequence[ir.Value]) -> list[ir.Value]:
                    others = [emit.load(at, emit.vector) for at in places(other)]
                    return [builder.fadd(*pair) for pair in zip(values, others, strict=True)]

                results = emit.when(other, results, add_other)
                results = emit.when(relu, results, lambda values: [emit.relu(v) for v in values])
            for value, at in zip(results, places(target), strict=True):
                emit.store(value, at)
            return [builder.add(channel, I64(emit.lanes))]

        rounds = builder.sdiv(builder.add(channels, I64(emit.lanes - 1)), I64(emit.lanes))
        emit.repeat(rounds, [I64(0)], some_channels)

    return write


def _transposed(matrix: Matrix) -> Matrix:
    return list(zip(*matrix, strict=True))


VARIANTS = [(lanes, m) for lanes in (8, 16) for m in (2, 4)]
transform_pixels = make_intrinsic(
    {v: _transform(BUTTERFLY[v[1]], PIXEL_HALVES[v[1]]) for v in VARIANTS}
)
transform_filters = make_intrinsic(
    {v: _transform(BUTTERFLY[v[1]], FILTER_HALVES[v[1]]) for v in VARIANTS}
)
transform_results = make_intrinsic(
    {
        v: _transform(_transposed(RESULT_HALVES[v[1]]), BUTTERFLY[v[1]], finishes=True)
        for v in VARIANTS
    }
)
transform_dy = make_intrinsic(
    {v: _transform(BUTTERFLY[v[1]], RESULT_HALVES[v[1]]) for v in VARIANTS}
)
transform_dw = make_intrinsic(
    {v: _transform(_transposed(FILTER_HALVES[v[1]]), BUTTERFLY[v[1]]) for v in VARIANTS}
)
