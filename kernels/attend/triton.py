"""Paged attention by the Triton kernel."""

from __future__ import annotations

from typing import Any

import torch

from .. import gpu
from . import latent
from .call import AttendCall, contiguous
from .tiles import (
    DENSE_SPLIT,
    INT32_MAX,
    LIST_SPLIT,
    Tile,
    boxes_pay,
    decode_tile,
    parts_of,
    power_of_two,
    prefill_tile,
)


def supports(call: AttendCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if reason := call.layout.triton_refusal(call.k_pages, call.v_pages):
        return reason
    if reason := call.output_refusal():
        return reason
    if call.head_dim > 1024 or call.v_dim > 1024:
        return "more than 1024 channels"
    return gpu.triton_refusal(call.q, call.k_pages, None if call.value_dim else call.v_pages)


def attend(call: AttendCall) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.attend.attend`.

    Sequences of one row are cut into parts of their keys, joined by a second kernel; the keys of
    longer ones are taken by one program per tile. Which of the two is in the call is not known on
    the host unless the numbers of rows and sequences say so: the other kernel's programs then end
    at once.
    """
    rows, sequences = call.rows, call.sequences
    out, lse = call.results()
    if not rows:
        return out, lse
    launcher = _Launcher(call)
    single = rows == 1 or rows == sequences
    blocks = call.keys.blocks
    listed = (blocks is not None and blocks.ids.shape[2] * blocks.block) or 0
    if blocks is not None and listed <= LIST_SPLIT:
        launcher.run_rows(out, lse, (0, INT32_MAX))
        return out, lse
    if single or sequences > 1:
        launcher.run_split(out, lse, listed, single)
    if not single:
        longer = (0 if sequences == 1 else 2, INT32_MAX)
        if blocks is None:
            launcher.run(launcher.prefill_tile(), out, lse, longer)
        else:
            launcher.run_rows(out, lse, longer)
    return out, lse


class _Launcher:
    """Runs the kernels over the rows of one call."""

    def __init__(self, call: AttendCall) -> None:
        self._call = call._replace(sink_logits=contiguous(call.sink_logits))
        self._latent = latent.refusal(call) is None

    def decode_tile(self) -> Tile:
        """The tile of one row; a list of its own for every head leaves one head to a tile."""
        call, blocks = self._call, self._call.keys.blocks
        per_head = blocks is not None and blocks.ids.shape[1] != call.kv_heads
        return decode_tile(
            1 if per_head else call.group,
            call.head_dim,
            call.v_dim,
            call.q.itemsize,
            call.layout.page_size,
            0 if blocks is None else blocks.block,
        )

    def prefill_tile(self) -> Tile:
        """The tile of many rows."""
        call = self._call
        return prefill_tile(
            call.group,
            call.head_dim,
            call.v_dim,
            call.q.itemsize,
            call.layout.page_size,
            gpu.capability(call.q),
        )

    def run_rows(self, out: torch.Tensor, lse: torch.Tensor, rows_between: tuple[int, int]) -> None:
        """Tiles of one row each, over all keys of its list."""
        if self._latent:
            latent.run(self._call, out, lse, rows_between, 0, by_row=True)
        else:
            self.run(self.decode_tile(), out, lse, rows_between)

    def run_split(self, out: torch.Tensor, lse: torch.Tensor, listed: int, by_row: bool) -> None:
        """Sequences of one row (by_row: all rows): parts of their keys, then the join."""
        from .join_kernel import join_splits

        call, (rows, heads, v_dim) = self._call, out.shape
        parts = rows if by_row else call.sequences
        size = LIST_SPLIT if listed else DENSE_SPLIT
        length = call.keys.page_table.shape[1] * call.layout.page_size
        if listed:  # a list's blocks may be longer than any sequence
            length = min(length, listed)
        splits = latent.splits(call, length) if self._latent else max(-(-length // size), 1)
        part = out.new_empty((parts, heads, splits, v_dim), dtype=torch.float32)
        part_lse = out.new_empty((parts, heads, splits), dtype=torch.float32)
        bounds = (0, INT32_MAX) if by_row else (1, 1)
        if self._latent:
            latent.run(call, part, part_lse, bounds, splits, by_row)
        else:
            self.run(self.decode_tile(), part, part_lse, bounds, size, splits, by_row)
        join_splits[(parts, heads)](
            part,
            part_lse,
            out,
            lse,
            call.sink_logits,
            call.keys.cu_rows,
            splits,
            HEADS=heads,
            V_DIM=v_dim,
            V_PAD=power_of_two(v_dim),
            SINKS=call.sink_logits is not None,
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

        call, keys, blocks = self._call, self._call.keys, self._call.keys.blocks
        q, k, v = call.q, call.k_pages, call.v_pages
        kv_parts = -(-call.group // tile.heads)
        tiles = call.sequences
        if by_tile:
            tiles += call.rows // (tile.rows // tile.slots)
        boxes = self._boxes(tile, split)
        table, cu_rows = keys.page_table.contiguous(), keys.cu_rows.contiguous()
        attend_tiles[(tiles, call.kv_heads * kv_parts, splits)](
            q,
            k,
            k if call.value_dim else v,
            *(boxes or (None, None)),
            out,
            lse,
            table,
            cu_rows,
            keys.positions.contiguous(),
            contiguous(keys.lo),
            contiguous(keys.hi),
            call.sink_logits,
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
            v.stride(0),
            v.stride(1),
            min(keys.window or 0, INT32_MAX),
            min(keys.sinks, INT32_MAX),
            call.scale,
            call.softcap or 1.0,
            *rows_between,
            splits,
            **self._constants(tile, split, by_tile),
            BOXES=boxes is not None,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    def _boxes(self, tile: Tile, split: int) -> tuple[Any, Any] | None:
        """K and V of all pages as rows, from which a bulk copy takes a tile; None: it does not."""
        k, v, blocks = self._call.k_pages, self._call.v_pages, self._call.keys.blocks
        if blocks is not None and blocks.block < tile.keys:  # a tile lies in several pages
            return None
        if split or not boxes_pay(
            gpu.capability(k), k.dtype.itemsize, (k.shape[3], v.shape[3]), tile.keys
        ):
            return None
        if self._call.value_dim or not all(each.is_contiguous() for each in (k, v)):
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
        call, keys, blocks = self._call, self._call.keys, self._call.keys.blocks
        main, rest = parts_of(call.head_dim)
        return {
            "HEADS": call.heads,
            "GROUP": call.group,
            "TAKEN": tile.heads,
            "SLOTS": tile.slots,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.keys,
            "BLOCK": 0 if blocks is None else blocks.block,
            "PAGE": call.layout.page_size,
            "DIM": call.head_dim,
            "MAIN": main,
            "REST": rest,
            "V_DIM": call.v_dim,
            "V_PAD": max(power_of_two(call.v_dim), 16),
            "VALUES_IN_KEYS": call.value_dim is not None,
            "LO": keys.lo is not None,
            "HI": keys.hi is not None,
            "WINDOW": keys.window is not None,
            "SOFTCAP": call.softcap is not None,
            "SINKS": call.sink_logits is not None,
            "LISTS": blocks is not None,
            "OWNERS": 0 if blocks is None else blocks.ids.shape[1],
            "LIST_OF_ROW": blocks is not None and blocks.list_of_row is not None,
            "SPLIT": split,
            "BY_TILE": by_tile,
            "TRIM": blocks is None and not split,
            "UPCAST": gpu.upcast(call.q),
        }
