"""Tiles of the Triton attention kernel: pure functions of shapes and GPU, with their reasons.

A tile may depend on everything but on what else is in the batch: sequences of one row (decode) and
longer ones may have different tiles, but a sequence of n rows has the same in every company.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

# Keys per program of a sequence with one row. 128K keys of 8 KV heads are then 1024 programs, 8K
# are 64; what a program writes is below 1 % of what it reads. A list is shorter than a context:
# smaller parts, so that 4096 listed keys of 8 KV heads still are 64 programs.
DENSE_SPLIT = 1024
LIST_SPLIT = 512
INT32_MAX = 2**31 - 1  # the kernels' positions; a wider window or more sinks mean every key


@dataclass(frozen=True)
class Tile:
    """rows: of the matrix products of a program; keys: of one step of its loop."""

    rows: int
    heads: int  # of a KV head's group, side by side in a tile
    slots: int  # of the product's rows for each query row; at least `heads`, a divisor of `rows`
    keys: int
    warps: int
    stages: int


def power_of_two(least: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(least - 1, 0).bit_length()


def parts_of(dim: int) -> tuple[int, int]:
    """(main, rest): powers of two that hold `dim` channels; rest 0: none.

    512 + 64 channels as 1024 would waste half of the products and of shared memory.
    """
    main = power_of_two(dim)
    if main == dim or dim < 32:
        return max(main, 16), 0
    main //= 2
    rest = max(power_of_two(dim - main), 16)
    return (2 * main, 0) if rest >= main else (main, rest)


def decode_tile(group: int, dim: int, v_dim: int, itemsize: int, page: int, block: int) -> Tile:
    """One row: heads of the group, at least the 16 rows of a tensor-core product.

    Loads are all that matters: 16 rows cost nothing beside them, and small tiles leave room for
    several programs per SM. Wide latents fill the registers with the output: more warps. Listed
    blocks of fewer than 16 tokens lie in a tile together, from whatever pages.
    """
    most = 16 if max(dim, v_dim) > 256 else 64
    packed = min(power_of_two(group), most)
    keys = 32 if max(dim, v_dim) > 256 or itemsize == 4 else 64
    if not 0 < block < 16:
        keys = min(page, block or page, keys)
    rows = max(packed, 16)
    return Tile(rows, packed, rows, keys, 8 if v_dim > 256 else 4, 3)


def prefill_tile(
    group: int, dim: int, v_dim: int, itemsize: int, page: int, capability: tuple[int, int]
) -> Tile:
    """Many rows. A page is one box, so a tile of keys is no larger than a page.

    128 rows and 8 warps hold a 128 x 128 output in half of the registers; Hopper multiplies 64
    rows per warp group. Ampere has less shared memory: two buffers, not three.
    fp32 is for comparison: three products of tf32 for one, small tiles.
    """
    packed = power_of_two(group)
    wide = max(dim, v_dim) > 256
    if itemsize == 4:
        rows, keys, warps, stages = 32, 16, 4, 1
    elif wide or max(dim, v_dim) > 128:
        rows, keys, warps, stages = 64, 32, 8, 2
    elif capability >= (9, 0):
        rows, keys, warps, stages = 128, 64, 8, 3
    else:
        rows, keys, warps, stages = 128, 32, 8, 3
    if page < 32 and itemsize == 2 and not wide:  # tensor memory of sm_100: 8 warps spill there
        rows, warps, stages = 64, 4, 3
    packed = min(packed, rows)
    return Tile(rows, packed, packed, min(page, keys), warps, stages)


def boxes_pay(capability: tuple[int, int], itemsize: int, dims: tuple[int, int], keys: int) -> bool:
    """Whether tiles of K and V of prompts come by bulk copies (TMA), whose addresses no thread
    computes: fewer registers, and no instructions but one for each tile.

    Hopper and later; boxes have powers of two of rows and channels. fp32 is for comparison.
    `SACCADE_TRITON_TMA=0`: never.
    """
    if capability < (9, 0) or itemsize != 2 or os.environ.get("SACCADE_TRITON_TMA") == "0":
        return False
    most = 256 if capability < (10, 0) else 128  # wider ones spill on sm_100
    return keys >= 16 and all(16 <= dim <= most and dim & (dim - 1) == 0 for dim in dims)
