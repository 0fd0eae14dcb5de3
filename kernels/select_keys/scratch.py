"""What a call of `select_keys` on the processor allocates: an upper bound, for the memory plan."""

from __future__ import annotations

# As csrc/cpu/isa/select_keys.cpp and best.h have them.
KEYS, ROWS, LISTED = 512, 32, 256


def cpu_scratch_bytes(
    rows: int, heads: int, owners: int, dim: int, blocks: int, threads: int
) -> int:
    """Bytes of a call of so many rows, `owners` lists each, over so many blocks.

    For 32 rows at a time a score for every block, which blocks are taken, and the best so far; a
    thread has the queries of those rows that share keys, and their scores of 512.
    """
    kept = min(rows, ROWS)
    best = LISTED * 8 + 16
    tile = max(heads, ROWS) * (dim + 2 * KEYS) * 4 + 2 * 4096
    return kept * owners * (blocks * 4 + best) + kept * blocks + threads * tile
