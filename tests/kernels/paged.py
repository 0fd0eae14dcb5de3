"""Random paged attention problems for the kernel tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from saccade.kernels.attend import Keys
from saccade.kernels.store import PageLayout, write_pages

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Problem:
    """Sequences of given lengths whose last `chunk` tokens are the query rows."""

    layout: PageLayout
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    keys: Keys


def slots_of(table: torch.Tensor, positions: torch.Tensor, page: int) -> torch.Tensor:
    """int64 slots of these positions of one sequence with page ids `table`."""
    return table.long()[positions // page] * page + positions % page


def make(lengths, chunks, heads=4, kv_heads=2, dim=32, v_dim=32, page=64, dtype=torch.float32, seed=0) -> Problem:
    """Pages are shuffled, unused ones and the rest of the last pages hold NaN, as memory of a former owner may."""
    generator = torch.Generator().manual_seed(seed)
    layout = PageLayout(page)
    per_seq = [-(-length // page) for length in lengths]
    total = sum(per_seq) + 2
    k, v = layout.allocate(total, kv_heads, dim, v_dim, dtype)
    k.fill_(torch.nan)
    v.fill_(torch.nan)
    order = torch.randperm(total, generator=generator).int()
    table = torch.full((len(lengths), max(per_seq) + 1), -1, dtype=torch.int32)
    used, positions = 0, []
    for s, (length, chunk) in enumerate(zip(lengths, chunks, strict=True)):
        table[s, : per_seq[s]] = order[used : used + per_seq[s]]
        used += per_seq[s]
        where = torch.arange(length)
        new_k = torch.randn((length, kv_heads, dim), generator=generator).to(dtype)
        new_v = torch.randn((length, kv_heads, v_dim), generator=generator).to(dtype)
        write_pages(layout, k, v, new_k, new_v, slots_of(table[s], where, page))
        positions.append(where[length - chunk :])
    rows = sum(chunks)
    q = torch.randn((rows, heads, dim), generator=generator).to(dtype)
    cu = torch.tensor([0, *torch.tensor(chunks).cumsum(0).tolist()], dtype=torch.int32)
    return Problem(layout, q, k, v, Keys(cu, torch.cat(positions), table))
