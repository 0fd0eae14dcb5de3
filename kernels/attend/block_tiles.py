"""Rows by the blocks that they selected: what the gather kernels walk over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class TilesCall(NamedTuple):
    """Lists of blocks, one per row, to be turned round: the argument of `block_tiles`.

    ids: int32 [T, owners, n], ascending, -1 padded; sequence, own: int64 [T], the row's sequence
    and its own block; blocks: of a sequence, at the most; tile: entries of a tile, at the most.
    """

    ids: torch.Tensor
    sequence: torch.Tensor
    own: torch.Tensor
    sequences: int
    blocks: int
    kv_heads: int
    tile: int

    @property
    def groups(self) -> int:
        """Blocks of all sequences, of every KV head."""
        return self.sequences * self.blocks * self.kv_heads

    @property
    def most_tiles(self) -> int:
        """Tiles that these shapes can need: full ones, and one that is not for every group."""
        entries = self.ids.numel()
        return entries // self.tile + min(self.groups, entries)


@dataclass(frozen=True)
class BlockTiles:
    """Entries (row, owner, place in its list) in the order of the blocks that they name.

    order: int32 [N], entry (row * owners + owner) * listed + place; group: int32 [tiles],
    (sequence * blocks + block) * kv_heads + kv_head; first, count: int32 [tiles], where a tile's
    entries begin in `order`, and how many they are: 0 in the tiles at the end that nothing needs,
    for their number depends on shapes alone.
    """

    order: torch.Tensor
    group: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor
