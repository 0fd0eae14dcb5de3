"""Tiles and splits of the kernel of latents: pure functions of shapes and GPU, with their reasons.

Nothing here may depend on what else is in the batch. What the comments say of registers and shared
memory is the compiler's word (see benchmarks/aot.py), not a timing.
"""

from __future__ import annotations

from dataclasses import dataclass

from .tiles import parts_of, power_of_two

MOST_CHANNELS = 512 + 64  # of a tile's two products; wider ones do not fit shared memory
PROGRAMS = 128  # one wave of the 132 multiprocessors of an H200, one program on each
CUDA_CORE_HEADS = 4  # of a group


@dataclass(frozen=True)
class LatentTile:
    """rows: heads of a program, padded; keys: of one turn of its loop; spread: those of a turn may
    lie in several blocks or pages.
    """

    rows: int
    keys: int
    spread: bool
    warps: int
    stages: int


def misfit(dim: int, v_dim: int) -> str | None:
    """Why latents of so many channels, the first v_dim of them values, do not fit the kernel; None:
    they do. Its first product is by channels that are values, and perhaps by some more.
    """
    main, rest = parts_of(dim)
    if main + rest > MOST_CHANNELS:
        return f"{dim} channels, more than {MOST_CHANNELS}"
    if v_dim > main:
        return f"values of {v_dim} of {dim} channels, more than the first {main}"
    return None


def tensor_cores_pay(group: int) -> bool:
    """Whether so many heads that share a latent are too many for a kernel that multiplies without
    tensor cores.

    A channel of two bytes is a key's and a value's: 2 FLOP per byte and head. Outside of the tensor
    cores an H200 makes 67 TFLOP/s of fp32 at the very best, 16 FLOP for every byte that it reads;
    half of that is what four heads need.
    """
    return group > CUDA_CORE_HEADS


def tile(
    group: int, itemsize: int, page: int, block: int, capability: tuple[int, int]
) -> LatentTile:
    """The tile of one row's heads. block: tokens of a listed block; 0: there are no lists.

    Up to 64 heads read a latent once; a sum of 512 channels of each is 128 registers of every
    thread of 8 warps. Hopper holds two tiles of 64 keys of 576 channels beside 64 queries (216 KB)
    and multiplies 64 rows by a warp group, but spills over lists; Ampere spills with 64 keys, and
    Blackwell has no room.
    16 rows: half of the keys, so that two programs share a multiprocessor.
    Blocks or pages of 16 tokens or fewer: tiles of 64 keys all the same, each with an address of
    its own; these take so many registers that half of the heads must do.
    fp32 is for comparison: three products of tf32 for one, small tiles.
    """
    rows = min(max(power_of_two(group), 16), 64)
    least = min(page, block or page)
    if itemsize == 4:
        return LatentTile(16, 16, least < 16, 4, 1)
    if least < 32:
        return LatentTile(min(rows, 32), 64, True, 8, 2)
    if rows == 16:
        return LatentTile(rows, 32, False, 8, 3)
    wide = rows == 32 or (capability[0] == 9 and not block)
    return LatentTile(rows, min(64 if wide else 32, least), False, 8, 2)


def least_keys(group: int) -> int:
    """The fewest keys of a split. It writes 4 bytes for each channel of every head, and reads 2 for
    each of every key: with eight keys for a head a quarter of what it reads. No fewer than 256,
    which take as long as starting, and no more than 1024, so that 8K keys still are 8 splits.
    """
    return min(max(power_of_two(8 * group), 256), 1024)


def most_splits(kv_heads: int, parts: int) -> int:
    """Splits of the longest row, of which each latent's heads are so many programs: one wave. More
    would write more, and at larger batches there are programs enough.
    """
    return max(PROGRAMS // (kv_heads * parts), 8)


def splits(keys: int, group: int, kv_heads: int, parts: int) -> int:
    """Splits that a row of at most so many keys may need: see `LEAST` and `MOST` of the kernel. A
    window and its sinks may begin and end within tiles: one split more.
    """
    return min(-(-keys // least_keys(group)) + 1, most_splits(kv_heads, parts))
