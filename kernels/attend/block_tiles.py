"""Rows by the blocks that they selected: what the gather kernels walk over."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
