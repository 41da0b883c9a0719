"""Which tiles of results a convolution on the GPU is cut into, and into how many splits of its sums.

Everything here is arithmetic on shapes: the same shape gives the same plan, and so the same bits, on every
card.
"""

from functools import lru_cache
from typing import NamedTuple

STAGES = 4  # slices of shared memory in flight
WARP = 32

# Blocks of threads that keep a card busy: about one for each multiprocessor (108 on an A100, 132 on an H100).
ENOUGH_BLOCKS = 128
# Slices that a split should have at least: a few more than it takes to fill the pipeline.
ENOUGH_SLICES = 8


class Tile(NamedTuple):
    """Results of a block of threads (m x n) and of each of its warps."""

    m: int
    n: int
    warp_m: int
    warp_n: int

    @property
    def threads(self) -> int:
        """Threads in a block."""
        return WARP * (self.m // self.warp_m) * (self.n // self.warp_n)


class Plan(NamedTuple):
    """How a matrix product of rows x columns is cut."""

    tile: Tile
    splits: int

    def tiles(self, rows: int, columns: int) -> int:
        """Return how many tiles the results have."""
        return -(-rows // self.tile.m) * -(-columns // self.tile.n)


SMALL = Tile(64, 64, 32, 32)
# Largest first: the larger, the fewer times the operands are read.
LARGE = (
    Tile(128, 128, 64, 32),
    Tile(128, 64, 64, 32),
    Tile(64, 128, 64, 32),
    SMALL,
)
# dw in 4-byte numbers reads them word by word, which takes registers.
LARGE_WORDS = (Tile(128, 64, 32, 32), Tile(64, 128, 32, 32), SMALL)


def tiles_for(ctype: str, pieces: tuple[int, int], dw: bool) -> tuple[Tile, ...]:
    """Return the tiles that the kernels are compiled for, largest first.

    ctype: float, double or bf16. pieces: elements that are copied at a time (see conv2d.py). Double sums
    and copies in pieces need registers, so there only the small tile is without spills.
    """
    vector = 16 // {"bf16": 2, "float": 4, "double": 8}[ctype]
    if ctype == "double" or min(pieces) < vector:
        return (SMALL,)
    return LARGE_WORDS if dw and ctype == "float" else LARGE


@lru_cache(maxsize=1024)
def choose(
    rows: int,
    columns: int,
    slices: int,
    copies: int,
    tiles: tuple[Tile, ...],
    dw: bool,
    split: bool,
) -> Plan:
    """Return the plan for `copies` products of rows x columns (one for each group and phase).

    slices: of the sums, each 64 bytes deep. dw: results are few and sums long, so splitting costs little
    and comes before smaller tiles. split: whether splitting is allowed.
    """
    fitting = [t for t in tiles if t.m < 2 * rows and t.n < 2 * columns] or [tiles[-1]]
    plans = [Plan(t, 1) for t in fitting]
    plan = plans[0]
    if not dw:
        enough = (p for p in plans if p.tiles(rows, columns) * copies >= ENOUGH_BLOCKS)
        plan = next(enough, plans[-1])
    blocks = plan.tiles(rows, columns) * copies
    if not split or blocks >= ENOUGH_BLOCKS:
        return plan
    # Two blocks fit on a multiprocessor; more than this many splits only add partial sums.
    wanted = -(-2 * ENOUGH_BLOCKS // blocks) if dw else ENOUGH_BLOCKS // blocks
    return plan._replace(splits=max(1, min(wanted, slices // ENOUGH_SLICES)))
