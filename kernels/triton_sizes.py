"""Tile sizes of the Triton kernels of the sparse methods: pure functions, with their reasons.

There is no search at run time. Another number of keys per turn of a loop is another order of
additions, and the same tokens must come out in every run; and what a search would weigh, registers,
spills and shared memory, is known from compiling ahead of time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOG2E = 1.4426950408889634
RANKED = 2048  # scores that `triton_lists` takes at a time: eight of each of its threads
HEADS = 16  # query heads of one row scored at a time: a tensor-core product has no fewer rows
SCORES = 64 << 20  # bytes of scores that a pass over some rows may write


@dataclass(frozen=True)
class Ranking:
    """rows of a program; keys (blocks) of a turn; width of the sorted lists."""

    rows: int
    keys: int
    width: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Pooled:
    """rows of a program; keys (entries, blocks) of a turn."""

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Coarse:
    """rows of a program; keys (entries) of a turn of the first loop, blocks of the second."""

    rows: int
    keys: int
    blocks: int
    width: int
    warps: int
    stages: int


def power_of_two(least: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(least - 1, 0).bit_length()


def most_tiles(rows: int, sequences: int, tile: int) -> int:
    """Tiles of `tile` rows that sequences of together `rows` rows can need."""
    return rows // tile + min(sequences, rows)


def ranking(listed: int, dtype: torch.dtype) -> Ranking:
    """Sizes of a kernel that keeps the `listed` best of all blocks for every row.

    A block's rank is one 64-bit number, and sorting holds a second copy of a turn's: 64 rows of 64
    blocks are 32 registers of each of 256 threads for one copy. With wider lists sm_100 spills:
    half of the rows, and a quarter with more than 32 blocks. At least 16 rows: a tensor-core
    product has no fewer. fp32 is there for comparison.
    """
    width = max(power_of_two(listed), 2)
    if dtype == torch.float32:
        return Ranking(16, max(32, width), width, 4, 1)
    rows = 64 if width <= 8 else 32 if width <= 32 else 16
    return Ranking(rows, max(64, width), width, 8 if rows == 64 else 4, 2)


def split(channels: int) -> tuple[int, int]:
    """(main, rest): powers of two that together hold so many channels; rest 0: one holds them.

    Padding 512 + 64 channels to 1024 would nearly double the products and the shared memory.
    """
    main = max(power_of_two(channels), 16)
    if main == channels or channels <= 128:
        return main, 0
    half = main // 2
    rest = max(power_of_two(channels - half), 16)
    return (half, rest) if rest < half else (main, 0)


def coarse(
    listed: int,
    channels: int,
    value_channels: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> Coarse:
    """Sizes of attention over entries that also ranks blocks.

    128 rows and 64 entries at up to 128 channels, two warp groups of a Hopper product, no spills;
    with sm_80's product those rows spill, and half of them do not. Latents of 512 + 64 channels
    spill with 64 rows (the output alone is 128 registers of a thread), and with 16 rows and four
    warps: 32 rows, eight warps. fp32 is there for comparison.
    """
    width = max(power_of_two(listed), 2)
    widest = max(channels, value_channels)
    if dtype == torch.float32:
        return Coarse(16, 32, max(32, width), width, 4, 1)
    if widest > 256:
        return Coarse(32, 32, max(32, width), width, 8, 2)
    rows = 128 if widest <= 128 and capability >= (9, 0) else 64
    return Coarse(rows, 64, max(64, width), width, 8, 2)


def pooled(dtype: torch.dtype, capability: tuple[int, int]) -> Pooled:
    """Sizes of kernels that score entries and keep no list: 64 rows of 64 entries, one warp group
    of a Hopper product, 32 scores for each of its threads. sm_100 spills so, and takes half of the
    entries. fp32 is there for comparison.
    """
    if dtype == torch.float32:
        return Pooled(16, 32, 4, 1)
    return Pooled(64, 32 if capability >= (10, 0) else 64, 4, 2)


def turns(channels: int, dtype: torch.dtype, capability: tuple[int, int]) -> Pooled:
    """Sizes of attention over lists that rows change: those of `pooled`, of whose rows the output
    of 256 channels leaves room for half.
    """
    size = pooled(dtype, capability)
    return size if channels <= 128 else Pooled(min(size.rows, 32), 32, 4, size.stages)


def few_rows(dtype: torch.dtype) -> Pooled:
    """Sizes of products of few rows with weights: so many rows of weights, and numbers of each.

    A weight is read once, and nothing else takes time: 32 rows, so that one head's 384 are a
    dozen programs, of 128 numbers, 8 KiB at a time with three on the way. fp32 is there for
    comparison.
    """
    return Pooled(32, 64, 4, 1) if dtype == torch.float32 else Pooled(32, 128, 4, 3)


def rows_of(width: int) -> int:
    """Rows of a program where each takes `width` numbers: 2048 together, 16 for each thread of four
    warps, or one row.
    """
    return max(2048 // width, 1)


def row_warps(numbers: int) -> int:
    """Warps of a program that takes so many numbers: 16 for each thread, so that loads of
    16 bytes are in flight twice over and registers suffice.
    """
    return min(max(power_of_two(numbers) // 512, 1), 16)


def scored(channels: int, dtype: torch.dtype) -> int:
    """Blocks of a program that writes their scores for one row and its heads: two tiles of them,
    each 64 numbers of a thread at 128 channels, and short contexts still make many programs. With
    256 channels, 64 blocks spill. fp32 is there for comparison.
    """
    return 32 if channels > 128 or dtype == torch.float32 else 64


def passes(rows: int, scores: int) -> list[tuple[int, int]]:
    """(first, rows) of passes whose scores, so many of each row, have room together: prompts of
    many rows over long contexts must not take memory by both. Decode has one pass.
    """
    step = max(SCORES // (4 * max(scores, 1)), 1)
    return [(first, min(step, rows - first)) for first in range(0, rows, step)]
