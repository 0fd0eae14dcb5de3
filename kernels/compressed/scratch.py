"""What a call of `compressed` on the processor allocates: an upper bound, for the memory plan."""

from __future__ import annotations

# As csrc/cpu/isa/compressed.cpp and attend.h have them; where they differ by instruction set, what
# takes more.
PASS, LEAST_PASS, SUB, LANES = 256, 128, 32, 16
UNIT_ROWS = 64  # that share a panel of entries, where the heads of a token are no more
SHARING = 4  # units of a sequence, from which on they share all panels
MOST_PANELS = 64 << 20  # bytes of those
ROUND = 256  # partial results that wait to be merged
ROW = 24 + 16 * 16  # of a row and what it sees of a segment


def cpu_scratch_bytes(
    rows: int,
    heads: int,
    owners: int,
    dim: int,
    value_dim: int,
    entries: int,
    threads: int,
) -> int:
    """Bytes of a call of so many rows, of which the last sees so many entries.

    A unit keeps an exponential per row and entry, and a factor per row and pass; with few units
    threads share them, so that up to two units per thread are at work; then partial results of
    segments wait to be merged. Many units of a sequence share panels of all its entries. The rest
    is a unit's own and grows with the context only by what a list is chosen from.
    """
    unit = max(heads // owners, UNIT_ROWS)
    most = -(-entries // PASS) * PASS
    kept = min(rows * heads, 2 * threads * unit) * (most + most // LEAST_PASS)
    partial = unit * (value_dim + LANES + 1)
    waiting = (2 * threads + min(LANES * threads, ROUND)) * partial
    panels = PASS * (dim + value_dim + 1) + dim + value_dim
    chosen = 2 * most + 4096  # weights of entries and of blocks, which are no more
    own = unit * dim + SUB * (dim + value_dim + 2 * PASS + 1) + 2 * partial + panels + chosen
    sharing = rows * (heads // owners) // (SHARING * UNIT_ROWS)  # sequences that may
    shared = min(MOST_PANELS, 4 * sharing * owners * (most // LEAST_PASS) * (panels + LANES))
    floats = kept + waiting + threads * own + 2 * rows
    return 4 * floats + shared + threads * (unit * ROW + 3 * 4096)
