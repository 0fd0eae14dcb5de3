"""Block lists turned round: for every block of keys, the rows that selected it, cut into tiles."""

from __future__ import annotations

import torch

from .block_tiles import BlockTiles


def block_tiles(
    ids: torch.Tensor,
    sequence: torch.Tensor,
    own: torch.Tensor,
    sequences: int,
    blocks: int,
    kv_heads: int,
    tile: int,
) -> BlockTiles:
    """The tiles, of at most `tile` entries, of lists int32 [T, owners, n], one per row.

    sequence, own: int64 [T], the row's sequence and its own block. Only blocks before that count,
    each once. Entries of a block are in the order of rows. Nothing is brought to the host.
    """
    owners = ids.shape[1]
    groups = sequences * blocks * kv_heads
    kv_head = torch.arange(owners, device=ids.device) // (owners // kv_heads)
    group = (sequence[:, None, None] * blocks + ids) * kv_heads + kv_head[:, None]
    past = (ids >= 0) & (ids < own[:, None, None])
    past[..., 1:] &= ids[..., 1:] != ids[..., :-1]
    key = torch.where(past, group, groups).int().flatten()
    key, order = key.sort(stable=True)
    edges = torch.searchsorted(key, torch.arange(groups + 1, device=key.device, dtype=torch.int32))
    size = edges.diff()
    upto = ((size + tile - 1) // tile).cumsum(0)
    most = key.shape[0] // tile + min(groups, key.shape[0])
    i = torch.arange(most, device=key.device)
    owner = torch.searchsorted(upto, i, right=True)
    used = owner < groups
    owner = owner.clamp(max=max(groups - 1, 0))
    inside = (i - upto[owner] + (size[owner] + tile - 1) // tile) * tile
    count = torch.where(used, (size[owner] - inside).clamp(max=tile), 0)
    first = torch.where(used, edges[owner] + inside, 0)
    return BlockTiles(order.int(), owner.int(), first.int(), count.int())
