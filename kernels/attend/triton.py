"""Paged attention by the Triton kernel."""

from __future__ import annotations

from typing import Any

import torch

from .. import gpu
from ..store import PageLayout, RowLayout
from .keys import Keys
from .tiles import (
    DENSE_SPLIT,
    LIST_SPLIT,
    Tile,
    boxes_pay,
    decode_tile,
    parts_of,
    power_of_two,
    prefill_tile,
)

INT32_MAX = 2**31 - 1  # the kernel's positions; a wider window or more sinks mean every key


def supports(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    keys: Keys,
    scale: float,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
    out_dtype: torch.dtype,
    value_dim: int | None = None,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not isinstance(layout, RowLayout):
        return "pages have the CPU's layout"
    if out_dtype not in (q.dtype, torch.float32):
        return f"output {out_dtype} for input {q.dtype}"
    if keys.blocks is not None and keys.blocks.block < 16:
        return "blocks of fewer than 16 tokens"
    for pages in (k_pages, v_pages):
        if pages.numel() and pages.stride(2) != pages.shape[3]:
            return "the rows of a page are not contiguous"
    if q.shape[2] > 1024 or v_pages.shape[3] > 1024:
        return "more than 1024 channels"
    return gpu.triton_refusal(q, k_pages, None if value_dim else v_pages)


def attend(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    keys: Keys,
    scale: float,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
    out_dtype: torch.dtype,
    value_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.attend.attend`.

    Sequences of one row are cut into parts of their keys, joined by a second kernel; the keys of
    longer ones are taken by one program per tile. Which of the two is in the call is not known on
    the host unless the numbers of rows and sequences say so: the other kernel's programs then end
    at once.
    """
    rows, heads, _ = q.shape
    sequences = keys.page_table.shape[0]
    out = q.new_empty((rows, heads, value_dim or v_pages.shape[3]), dtype=out_dtype)
    lse = q.new_empty((rows, heads), dtype=torch.float32)
    if not rows:
        return out, lse
    call = _Call(layout, q, k_pages, v_pages, keys, scale, softcap, sink_logits, value_dim or 0)
    single = rows == 1 or rows == sequences
    blocks = keys.blocks
    listed = (blocks is not None and blocks.ids.shape[2] * blocks.block) or 0
    if blocks is not None and listed <= LIST_SPLIT:
        call.run(call.decode_tile(), out, lse, (0, INT32_MAX))
        return out, lse
    if single or sequences > 1:
        call.run_split(out, lse, listed, single)
    if not single:
        tile = call.prefill_tile() if blocks is None else call.decode_tile()
        call.run(tile, out, lse, (0 if sequences == 1 else 2, INT32_MAX))
    return out, lse


class _Call:
    """The arguments of one call, as the kernel takes them."""

    def __init__(
        self,
        layout: PageLayout,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        keys: Keys,
        scale: float,
        softcap: float | None,
        sink_logits: torch.Tensor | None,
        value_dim: int,
    ) -> None:
        self._layout, self._q, self._k, self._v, self._keys = layout, q, k, v, keys
        self._scale, self._softcap, self._value_dim = scale, softcap, value_dim
        self._sink_logits = None if sink_logits is None else sink_logits.contiguous()
        self._group = q.shape[1] // k.shape[1]
        self._v_dim = value_dim or v.shape[3]
        self._per_head = False
        if keys.blocks is not None:
            self._per_head = keys.blocks.ids.shape[1] != k.shape[1]

    def decode_tile(self) -> Tile:
        """The tile of one row; a list of its own for every head leaves one head to a tile."""
        blocks = self._keys.blocks
        return decode_tile(
            1 if self._per_head else self._group,
            self._q.shape[2],
            self._v_dim,
            self._q.dtype.itemsize,
            self._layout.page_size,
            0 if blocks is None else blocks.block,
        )

    def prefill_tile(self) -> Tile:
        """The tile of many rows."""
        return prefill_tile(
            self._group,
            self._q.shape[2],
            self._v_dim,
            self._q.dtype.itemsize,
            self._layout.page_size,
            gpu.capability(self._q),
        )

    def run_split(self, out: torch.Tensor, lse: torch.Tensor, listed: int, by_row: bool) -> None:
        """Sequences of one row (by_row: all rows): parts of their keys, then the join."""
        from .join_kernel import join_splits

        rows, heads, v_dim = out.shape
        parts = rows if by_row else self._keys.page_table.shape[0]
        size = LIST_SPLIT if listed else DENSE_SPLIT
        length = self._keys.page_table.shape[1] * self._layout.page_size
        if listed:  # a list's blocks may be longer than any sequence
            length = min(length, listed)
        splits = max(-(-length // size), 1)
        part = out.new_empty((parts, heads, splits, v_dim), dtype=torch.float32)
        part_lse = out.new_empty((parts, heads, splits), dtype=torch.float32)
        bounds = (0, INT32_MAX) if by_row else (1, 1)
        self.run(self.decode_tile(), part, part_lse, bounds, size, splits, by_row)
        join_splits[(parts, heads)](
            part,
            part_lse,
            out,
            lse,
            self._sink_logits,
            self._keys.cu_rows,
            splits,
            HEADS=heads,
            V_DIM=v_dim,
            V_PAD=power_of_two(v_dim),
            SINKS=self._sink_logits is not None,
            BY_ROW=by_row,
            num_warps=4,
        )

    def run(
        self,
        tile: Tile,
        out: torch.Tensor,
        lse: torch.Tensor,
        rows_between: tuple[int, int],
        split: int = 0,
        splits: int = 1,
        by_tile: bool = True,
    ) -> None:
        """Runs the tiles of sequences of so many rows; not by_tile: of sequences of one row."""
        from .triton_kernel import attend_tiles

        q, k, v, keys = self._q, self._k, self._v, self._keys
        blocks = keys.blocks
        kv_parts = -(-self._group // tile.heads)
        tiles = keys.page_table.shape[0]
        if by_tile:
            tiles += q.shape[0] // (tile.rows // tile.slots)
        boxes = self._boxes(tile, split)
        table, cu_rows = keys.page_table.contiguous(), keys.cu_rows.contiguous()
        attend_tiles[(tiles, k.shape[1] * kv_parts, splits)](
            q,
            k,
            k if self._value_dim else v,
            *(boxes or (None, None)),
            out,
            lse,
            table,
            cu_rows,
            keys.positions.contiguous(),
            _dense(keys.lo),
            _dense(keys.hi),
            self._sink_logits,
            None if blocks is None else blocks.ids.contiguous(),
            None if blocks is None else _dense(blocks.list_of_row),
            table.shape[0],
            k.shape[0],
            table.shape[1],
            table.stride(0),
            0 if blocks is None else blocks.ids.shape[2],
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            min(keys.window or 0, INT32_MAX),
            min(keys.sinks, INT32_MAX),
            self._scale,
            self._softcap or 1.0,
            *rows_between,
            splits,
            **self._constants(tile, split, by_tile),
            BOXES=boxes is not None,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    def _boxes(self, tile: Tile, split: int) -> tuple[Any, Any] | None:
        """K and V of all pages as rows, from which a bulk copy takes a tile; None: it does not."""
        k, v = self._k, self._v
        if split or not boxes_pay(
            gpu.capability(k), k.dtype.itemsize, (k.shape[3], v.shape[3]), tile.keys
        ):
            return None
        if self._value_dim or not all(each.is_contiguous() for each in (k, v)):
            return None
        from triton.tools.tensor_descriptor import TensorDescriptor

        rows = k.numel() // k.shape[3]
        if rows > INT32_MAX:
            return None
        return (
            TensorDescriptor(k, [rows, k.shape[3]], [k.shape[3], 1], [tile.keys, k.shape[3]]),
            TensorDescriptor(v, [rows, v.shape[3]], [v.shape[3], 1], [tile.keys, v.shape[3]]),
        )

    def _constants(self, tile: Tile, split: int, by_tile: bool) -> dict[str, Any]:
        """What a variant of the kernel is compiled for."""
        keys, blocks, dim = self._keys, self._keys.blocks, self._q.shape[2]
        main, rest = parts_of(dim)
        return {
            "HEADS": self._q.shape[1],
            "GROUP": self._group,
            "TAKEN": tile.heads,
            "SLOTS": tile.slots,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.keys,
            "BLOCK": 0 if blocks is None else blocks.block,
            "PAGE": self._layout.page_size,
            "DIM": dim,
            "MAIN": main,
            "REST": rest,
            "V_DIM": self._v_dim,
            "V_PAD": max(power_of_two(self._v_dim), 16),
            "VALUES_IN_KEYS": self._value_dim > 0,
            "LO": keys.lo is not None,
            "HI": keys.hi is not None,
            "WINDOW": keys.window is not None,
            "SOFTCAP": self._softcap is not None,
            "SINKS": self._sink_logits is not None,
            "LISTS": blocks is not None,
            "OWNERS": 0 if blocks is None else blocks.ids.shape[1],
            "LIST_OF_ROW": blocks is not None and blocks.list_of_row is not None,
            "SPLIT": split,
            "BY_TILE": by_tile,
            "TRIM": blocks is None and not split,
            "UPCAST": gpu.upcast(self._q),
        }


def _dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()
