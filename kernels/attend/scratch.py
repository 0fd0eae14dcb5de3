"""What a call of attention allocates: upper bounds, for the memory plan."""

from __future__ import annotations

from .. import native, triton_sizes
from . import cuda, dense_rules, gather_rules, latent_rules, tiles

# As csrc/cpu/isa/attend.h has them: rows of a unit with block lists of several parts, of other sets
# and with tiles. (With tiles, units are twice as large where lists are summed at once, and then use
# but one of their two partial results.)
LISTED_ROWS, LISTED_ROWS_OF_TILES = 512, 1536
SEEN = 44 + 17 * 16  # bytes of a row and of what it sees of a segment
LANES = 16
# Beside that, as csrc/cpu/isa/listed_pages.h has it: bytes of the page tables that a call makes at
# a time for rows that share little of what they list.
LIST_TABLES = 4 << 20


def cpu_scratch_bytes(head_dim: int, v_dim: int, threads: int) -> int:
    """Bytes of the units that so many threads have at work, which are largest with block lists.

    Two partial results, the query and what it sees for each row; besides the scores of 32 rows and
    the keys and values of a pass, where they are gathered; and partial results of segments that
    wait to be merged. Nothing grows with the context.
    """
    rows = LISTED_ROWS_OF_TILES if native.chosen_isa() == "amx" else LISTED_ROWS
    partial = 4 * (v_dim + LANES + 1)
    own = 2 * rows * (partial + 4 * head_dim + SEEN) + 4 * 256 * (head_dim + 2 * v_dim)
    waiting = (min(LANES * threads, 256) + 2 * threads) * LISTED_ROWS * partial
    return threads * (own + (128 << 10)) + waiting


def gpu_scratch_bytes(
    rows: int,
    sequences: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    v_dim: int,
    keys: int,
    latent: bool = False,
) -> int:
    """Bytes of a step of so many rows and sequences, the longest of so many keys. latent: the
    values are the first v_dim channels of the keys.

    The largest of what calls of different kinds take, for they come one after the other: pieces of
    K and V and partial results of dense prompts; partial results of selected blocks, and the index
    of their entries (64-bit keys and places, sorted out of place); in decode one partial result
    for every part of the keys; and scores that are ranked.
    """
    dense = dense_rules.scratch_bytes(rows, heads, kv_heads, max(head_dim, v_dim))
    gathered = gather_rules.PARTIAL_BUDGET * 3 // 2
    splits = max(-(-keys // tiles.DENSE_SPLIT), cuda.MOST_SPLITS)
    if latent:
        splits = max(splits, latent_rules.splits(keys, heads // kv_heads, kv_heads, 1))
    few = min(rows, cuda.ROWS_PER_SEQUENCE * sequences)
    decode = max(few * cuda.MOST_SPLITS, sequences * splits) * heads * (v_dim + 2) * 4
    return max(dense, gathered, decode, triton_sizes.SCORES)
