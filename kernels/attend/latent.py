"""Launching the Triton kernel of latents: rows that keys and values in one (MLA, GLA) serve."""

from __future__ import annotations

from typing import Any

import torch

from .. import gpu
from . import latent_rules as rules
from .call import AttendCall, contiguous
from .tiles import INT32_MAX, parts_of


def refusal(call: AttendCall) -> str | None:
    """Why the kernel cannot serve single rows of this call, which Triton can; None: it can."""
    if call.value_dim is None:
        return "values of their own"
    blocks = call.keys.blocks
    if blocks is not None and blocks.ids.shape[1] != call.kv_heads:
        return "lists of every head"
    return rules.misfit(call.head_dim, call.v_dim)


def splits(call: AttendCall, keys: int) -> int:
    """Parts of the rows' keys, of which there are at most so many."""
    if call.keys.window is not None:
        keys = min(keys, call.keys.window + call.keys.sinks)
    return rules.splits(keys, call.group, call.kv_heads, -(-call.group // tile(call).rows))


def tile(call: AttendCall) -> rules.LatentTile:
    """The tile of the call's rows."""
    blocks = call.keys.blocks
    return rules.tile(
        call.group,
        call.q.itemsize,
        call.layout.page_size,
        0 if blocks is None else blocks.block,
        gpu.capability(call.q),
    )


def run(
    call: AttendCall,
    out: torch.Tensor,
    lse: torch.Tensor,
    rows_between: tuple[int, int],
    splits: int,
    by_row: bool,
) -> None:
    """The rows of sequences of so many rows. splits: of a row's keys, `out` and `lse` then hold
    them, by row or (not by_row) by sequence; 0: the answers themselves.
    """
    from .latent_kernel import attend_latents

    keys, blocks, chosen = call.keys, call.keys.blocks, tile(call)
    q, k = call.q, call.k_pages
    table = keys.page_table.contiguous()
    programs = call.kv_heads * -(-call.group // chosen.rows)
    attend_latents[((call.rows if by_row else call.sequences) * programs, max(splits, 1))](
        q,
        k,
        out,
        lse,
        table,
        keys.cu_rows.contiguous(),
        keys.positions.contiguous(),
        contiguous(keys.lo),
        contiguous(keys.hi),
        contiguous(call.sink_logits),
        None if blocks is None else blocks.ids.contiguous(),
        None if blocks is None else contiguous(blocks.list_of_row),
        table.shape[0],
        k.shape[0],
        table.shape[1],
        table.stride(0),
        0 if blocks is None else blocks.ids.shape[2],
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        min(keys.window or 0, INT32_MAX),
        min(keys.sinks, INT32_MAX),
        call.scale,
        call.softcap or 1.0,
        *rows_between,
        max(splits, 1),
        **_constants(call, chosen, bool(splits)),
        BY_ROW=by_row,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )


def _constants(call: AttendCall, chosen: rules.LatentTile, split: bool) -> dict[str, Any]:
    """What a variant of the kernel is compiled for."""
    keys, blocks = call.keys, call.keys.blocks
    main, rest = parts_of(call.head_dim)
    parts = -(-call.group // chosen.rows)
    return {
        "HEADS": call.heads,
        "GROUP": call.group,
        "BLOCK_M": chosen.rows,
        "BLOCK_N": chosen.keys,
        "BLOCK": 0 if blocks is None else blocks.block,
        "PAGE": call.layout.page_size,
        "DIM": call.head_dim,
        "MAIN": main,
        "REST": rest,
        "V_DIM": call.v_dim,
        "LO": keys.lo is not None,
        "HI": keys.hi is not None,
        "WINDOW": keys.window is not None,
        "SOFTCAP": call.softcap is not None,
        "SINKS": call.sink_logits is not None,
        "LISTS": blocks is not None,
        "LIST_OF_ROW": blocks is not None and blocks.list_of_row is not None,
        "SPREAD": chosen.spread,
        "LEAST": rules.least_keys(call.group) // chosen.keys if split else 0,
        "MOST": rules.most_splits(call.kv_heads, parts),
        "UPCAST": gpu.upcast(call.q),
    }
