"""The door of the attend op: validation, then the first implementation that supports the call."""

from __future__ import annotations

from functools import partial
from math import inf

import torch

from .. import gpu
from ..ops import Implementation, Op
from ..store import PageLayout
from . import cpu, cuda, cudnn, flash, gather, reference, triton
from . import dense_rules as rules
from .call import AttendCall
from .keys import BlockLists, Keys

ATTEND = Op(
    "attend",
    reference.attend,
    (
        Implementation("cpu", cpu.attend, cpu.supports),
        Implementation("cuda", cuda.attend, cuda.supports),
        Implementation("gather", gather.attend, gather.supports),
        *(
            Implementation(way, partial(flash.attend, way), partial(flash.supports, way))
            for way in (rules.FLASH3, rules.FLASH2)
        ),
        Implementation(rules.CUDNN, cudnn.attend, cudnn.supports),
        Implementation("triton", triton.attend, triton.supports),
    ),
)


def attend(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    keys: Keys,
    scale: float,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    value_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of ragged query rows over paged keys; prefill chunks and decode rows may
    mix.

    q: [T, H, d]; k_pages, v_pages: as `layout` allocates them, of q's dtype; sink_logits: float32
    [H], an extra logit in each head's denominator; softcap: c * tanh(score / c) on scaled scores.
    value_dim: the values are the first value_dim channels of the keys (latent attention), and
    v_pages hold none.
    Returns out [T, H, dv] (`out_dtype`, default q's) and lse float32 [T, H] (natural log, sink
    included). A row without visible keys gives out 0 and lse -inf (or the sink logit). Row results
    depend on that row's keys alone (with AMX also on whether pages have fewer than 32 tokens: its
    tiles take 32 keys at a time), as long as values are finite: a key that a row does not see
    weighs 0 where its neighbours do, and 0 times infinity is NaN. Raises ValueError when shapes,
    dtypes or options are unusable.
    """
    _check_tensors(layout, q, k_pages, v_pages)
    _check_values(q.shape[2], layout.dims(k_pages, v_pages)[1], value_dim)
    _check_keys(keys, q.shape[0], q.shape[1], k_pages.shape[1])
    if not 0.0 < scale < inf or (softcap is not None and not 0.0 < softcap < inf):
        raise ValueError(f"attend: scale and softcap must be positive, got {scale} and {softcap}")
    if sink_logits is not None and (
        sink_logits.shape != q.shape[1:2] or sink_logits.dtype != torch.float32
    ):
        raise ValueError(
            f"attend: sink_logits must be float32 [{q.shape[1]}], got {tuple(sink_logits.shape)}"
        )
    dtype = out_dtype or q.dtype
    call = AttendCall(
        layout, q, k_pages, v_pages, keys, scale, dtype, softcap, sink_logits, value_dim
    )
    out, lse = ATTEND(call)
    return out, lse


def dense_ways(call: rules.Call | None = None) -> dict[str, str]:
    """Who computes dense attention of prompts on this machine's GPU: for every way "chosen", or why
    not. call: by default a prompt of 8192 tokens, in bf16, with 128 channels and pages of 64.
    """
    if reason := gpu.gpu_missing():
        return dict.fromkeys((*rules.WAYS, rules.OWN), reason)
    here = (9, 0) if gpu.interpreted() else torch.cuda.get_device_capability()
    usual = rules.Call(here, torch.bfloat16, 128, 128, 64, ((0, 8192),))
    missing = {way: flash.missing(way) for way in (rules.FLASH3, rules.FLASH2)}
    return rules.decide(call or usual, missing | {rules.CUDNN: cudnn.missing()})


def _check_tensors(layout: PageLayout, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    head_dim, _ = layout.dims(k, v)
    if q.ndim != 3 or q.shape[2] != head_dim:
        raise ValueError(f"attend: q {tuple(q.shape)} must be [T, H, {head_dim}] for these pages")
    if not k.shape[1] or not q.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"attend: {q.shape[1]} query heads are not a multiple of {k.shape[1]} KV heads"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attend: q is {q.dtype}, K {k.dtype}, V {v.dtype}; they must agree")


def _check_values(head_dim: int, v_head_dim: int, value_dim: int | None) -> None:
    if value_dim is not None and (v_head_dim or not 0 < value_dim <= head_dim):
        raise ValueError(
            f"attend: value_dim must be 1 .. {head_dim} of pages without values, "
            f"got {value_dim} and values of {v_head_dim}"
        )


def _check_keys(keys: Keys, rows: int, heads: int, kv_heads: int) -> None:
    if keys.positions.shape != (rows,):
        raise ValueError(f"attend: positions must be int64 [{rows}]")
    if keys.fault is not None:
        raise ValueError(f"attend: {keys.fault}")
    if keys.blocks is not None:
        _check_blocks(keys.blocks, rows, heads, kv_heads)


def _check_blocks(blocks: BlockLists, rows: int, heads: int, kv_heads: int) -> None:
    if (
        blocks.ids.ndim != 3
        or blocks.ids.shape[1] not in (heads, kv_heads)
        or blocks.ids.dtype != torch.int32
    ):
        raise ValueError(f"attend: block ids must be int32 [lists, {heads} or {kv_heads}, n]")
    if blocks.list_of_row is None:
        if blocks.ids.shape[0] != rows:
            raise ValueError(f"attend: {rows} rows need as many lists, got {blocks.ids.shape[0]}")
    else:
        _check_list_of_row(blocks.list_of_row, rows, blocks.ids.shape[0])
    if blocks.block < 4 or blocks.block & (blocks.block - 1):
        raise ValueError(f"attend: block must be a power of two of at least 4, not {blocks.block}")


def _check_list_of_row(list_of_row: torch.Tensor, rows: int, lists: int) -> None:
    if list_of_row.shape != (rows,) or list_of_row.dtype != torch.int32:
        raise ValueError(f"attend: list_of_row must be int32 [{rows}]")
    if rows and list_of_row.device.type == "cpu" and not gpu.interpreted():
        least, most = (int(end) for end in list_of_row.aminmax())
        if least < 0 or most >= lists:
            raise ValueError(
                f"attend: list_of_row holds {least} .. {most}, but there are {lists} lists"
            )
