"""What a call of `compressed` on the processor allocates: an upper bound, for the memory plan."""

from __future__ import annotations

from .. import native

# As csrc/cpu/isa/compressed.cpp and attend.h have them; where they differ by instruction set, what
# takes more.
PASS, LEAST_PASS, SUB, LANES = 256, 128, 32, 16
ROUND = 256  # partial results that wait to be merged
ROW = 24 + 16 * 16  # of a row and what it sees of a segment


def unit_rows() -> int:
    """Rows that share a panel of entries, where the heads of a token are no more."""
    return 128 if native.chosen_isa() == "amx" else 64


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
    segments wait to be merged. The rest is a unit's own and grows with the context only by what a
    list is chosen from.
    """
    unit = max(heads // owners, unit_rows())
    most = -(-entries // PASS) * PASS
    kept = min(rows * heads, 2 * threads * unit) * (most + most // LEAST_PASS)
    partial = unit * (value_dim + LANES + 1)
    waiting = (2 * threads + min(LANES * threads, ROUND)) * partial
    panels = PASS * (dim + value_dim + 1) + dim + value_dim
    chosen = 2 * most + 4096  # weights of entries and of blocks, which are no more
    own = unit * dim + SUB * (dim + value_dim + 2 * PASS + 1) + 2 * partial + panels + chosen
    return 4 * (kept + waiting + threads * own + 2 * rows) + threads * (unit * ROW + 3 * 4096)
