"""What a call of attention on a GPU allocates: an upper bound, for the memory plan."""

from __future__ import annotations

from .. import triton_sizes
from . import cuda, dense_rules, gather_rules, latent_rules, tiles


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
