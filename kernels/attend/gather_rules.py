"""When attention to selected blocks goes block by block, and in what sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Bytes of partial results that exist at a time. 8 blocks of 32 heads of 128 channels in bf16 are
# 66 KB per row: a pass then takes 8K rows, and a block of 128 tokens at 128K still meets 8K * 8 /
# 1024 * 4 = 256 rows of its KV head, two full tiles.
PARTIAL_BUDGET = 512 << 20
TILE_ROWS = 128  # two warp groups of 64 rows, the least that a Hopper matrix instruction takes


@dataclass(frozen=True)
class GatherSizes:
    """Tile sizes of the two kernels."""

    keys: int
    rows: int
    warps: int
    stages: int


def most_blocks(pages: int, page_size: int, block: int) -> int:
    """Blocks that so many pages may hold."""
    return -(-pages * page_size // block)


def sizes(
    block: int, page_size: int, head_dim: int, dtype: torch.dtype, capability: tuple[int, int]
) -> GatherSizes:
    """Sizes for blocks and pages of so many tokens.

    One choice and no search at run time: see `kernels/triton_sizes.py`. At 128 channels 128 rows,
    64 keys, 8 warps and 2 stages compile without spills and with 96 KB of shared memory for sm_90
    and sm_100; 128 keys spill, 4 warps spill. sm_80 spills with 128 rows and takes 64; sm_100 does
    where the products are small (64 channels, or pages of less than 64 keys), and takes 64 too.
    Wider heads leave room for half the rows, and the widest for half the keys. fp32, which has no
    tensor-core product, is there for comparison.
    """
    if dtype == torch.float32:
        return GatherSizes(min(32, page_size, block), 32, 4, 1)
    keys = min(32 if head_dim > 192 else 64, page_size, block)
    blackwell = capability >= (10, 0) and (head_dim <= 64 or keys < 64)
    small = head_dim > 128 or capability < (9, 0) or blackwell
    return GatherSizes(keys, TILE_ROWS // 2 if small else TILE_ROWS, 8, 2)


def rows_per_pass(heads: int, listed: int, v_dim: int, itemsize: int) -> int:
    """Rows whose partial results fit the budget; a multiple of a tile."""
    per_row = heads * max(listed, 1) * (v_dim * itemsize + 4)
    return max(TILE_ROWS, PARTIAL_BUDGET // per_row // TILE_ROWS * TILE_ROWS)


def pays(rows: int, heads: int, listed: int, sequences: int, blocks: int, kv_heads: int) -> bool:
    """Whether going by blocks of keys is the faster way for so many rows.

    A block is selected by rows * heads * listed / (sequences * blocks * kv_heads) rows on average.
    Below a quarter of a tile the tensor cores multiply padding, and every row's partial results
    still have to be written and read; then a program for every row and KV head, which reads its own
    blocks, is better. Decode is always such a case. `blocks` is what the page tables could hold: no
    length is known on the host.
    """
    if rows < TILE_ROWS:
        return False
    return rows * heads * listed >= TILE_ROWS // 4 * sequences * blocks * kv_heads
