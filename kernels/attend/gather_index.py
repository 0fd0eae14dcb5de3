"""Block lists turned round: for every block of keys, the rows that selected it, cut into tiles."""

from __future__ import annotations

import torch

from .block_tiles import BlockTiles, TilesCall


def block_tiles(call: TilesCall) -> BlockTiles:
    """The lists' tiles. Only blocks before a row's own one count, each once; entries of a block are
    in the order of rows. Nothing is brought to the host.
    """
    ids, kv_heads, groups, tile = call.ids, call.kv_heads, call.groups, call.tile
    owners = ids.shape[1]
    kv_head = torch.arange(owners, device=ids.device) // (owners // kv_heads)
    group = (call.sequence[:, None, None] * call.blocks + ids) * kv_heads + kv_head[:, None]
    past = (ids >= 0) & (ids < call.own[:, None, None])
    past[..., 1:] &= ids[..., 1:] != ids[..., :-1]
    key = torch.where(past, group, groups).int().flatten()
    key, order = key.sort(stable=True)
    edges = torch.searchsorted(key, torch.arange(groups + 1, device=key.device, dtype=torch.int32))
    size = edges.diff()
    upto = ((size + tile - 1) // tile).cumsum(0)
    i = torch.arange(call.most_tiles, device=key.device)
    owner = torch.searchsorted(upto, i, right=True)
    used = owner < groups
    owner = owner.clamp(max=max(groups - 1, 0))
    inside = (i - upto[owner] + (size[owner] + tile - 1) // tile) * tile
    count = torch.where(used, (size[owner] - inside).clamp(max=tile), 0)
    first = torch.where(used, edges[owner] + inside, 0)
    return BlockTiles(order.int(), owner.int(), first.int(), count.int())
