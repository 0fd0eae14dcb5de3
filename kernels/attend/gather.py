"""Paged attention to selected blocks on a GPU, by blocks of keys: every block gathers the rows that
selected it (as in FSA and FlashMoBA), so that tiles are full though each row has blocks of its own.
"""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from ..ops import Implementation, Op
from ..store import RowLayout
from . import gather_rules as rules
from . import index_cuda
from .block_tiles import TilesCall
from .call import AttendCall
from .gather_index import block_tiles
from .keys import BlockLists, Keys

BLOCK_TILES = Op(
    "block_tiles",
    block_tiles,
    (Implementation("cuda", index_cuda.block_tiles, index_cuda.supports),),
)


def supports(call: AttendCall) -> str | None:
    """None when the kernels can serve this call and it pays, otherwise the reason."""
    if not isinstance(call.layout, RowLayout):
        return "pages have the CPU's layout"
    keys, blocks = call.keys, call.keys.blocks
    if blocks is None or blocks.ids.shape[2] < 2:
        return "no lists of several blocks"
    if blocks.block < 16:
        return "blocks of fewer than 16 tokens"
    if keys.lo is not None or keys.hi is not None or keys.window is not None:
        return "lists with further bounds"
    if call.value_dim is not None or max(call.head_dim, call.v_dim) > 256:
        return "more than 256 channels, or values in the keys"
    if reason := call.output_refusal():
        return reason
    if any(pages.stride(2) != pages.shape[3] for pages in (call.k_pages, call.v_pages)):
        return "the rows of a page are not contiguous"
    most = rules.most_blocks(keys.page_table.shape[1], call.layout.page_size, blocks.block)
    listed = blocks.ids.shape[2]
    if not rules.pays(call.rows, call.heads, listed, call.sequences, most, call.kv_heads):
        return "too few rows for so many blocks"
    return gpu.triton_refusal(call.q, call.k_pages, call.v_pages)


def attend(call: AttendCall) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.attend.attend`. Rows are taken in passes, as many at a time as leave
    partial results within `gather_rules.PARTIAL_BUDGET`; a row's result depends on no pass.
    """
    out, lse = call.results()
    rows, heads, v_dim = out.shape
    blocks = call.keys.blocks
    if blocks is None:
        raise ValueError("attend by blocks of keys needs lists of blocks")
    step = rules.rows_per_pass(heads, blocks.ids.shape[2], v_dim, out.itemsize)
    sinks = None if call.sink_logits is None else call.sink_logits.contiguous()
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        keys = _cut(call.keys, blocks, part)
        some = call._replace(q=call.q[part], keys=keys, sink_logits=sinks)
        Pass(some).run(out[part], lse[part])
    return out, lse


def _cut(keys: Keys, blocks: BlockLists, part: slice) -> Keys:
    """These rows alone, each with a list of its own."""
    lists = part if blocks.list_of_row is None else blocks.list_of_row[part].long()
    return Keys(
        keys.cu_rows.clamp(part.start, part.stop) - part.start,
        keys.positions[part],
        keys.page_table.contiguous(),
        blocks=BlockLists(blocks.ids[lists].contiguous(), None, blocks.block),
    )


class Pass:
    """The two kernels over some rows, each with a list of its own, and the index between them."""

    def __init__(self, call: AttendCall) -> None:
        blocks = call.keys.blocks
        if blocks is None:
            raise ValueError("attend by blocks of keys needs lists of blocks")
        self._call, self._ids = call, blocks.ids
        self._block, self._page = blocks.block, call.layout.page_size
        # A softcap is taken on natural exponents, everything else in powers of two.
        self._scale = call.scale if call.softcap is not None else call.scale * sizes.LOG2E
        channels, capability = max(call.head_dim, call.v_dim), gpu.capability(call.q)
        self._sizes = rules.sizes(self._block, self._page, channels, call.q.dtype, capability)

    def run(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Fills out [n, H, dv] and lse [n, H]."""
        rows, heads, v_dim = out.shape
        listed = self._ids.shape[2]
        # Partial results as the answer will be: of a rounded answer they may be rounded too.
        part = out.new_empty((rows, heads, listed, v_dim))
        part_lse = lse.new_empty((rows, heads, listed))
        self._attend(part, part_lse)
        self._combine(part, part_lse, out, lse)

    def _attend(self, part: torch.Tensor, part_lse: torch.Tensor) -> None:
        from .gather_kernels import gather_tiles

        call, keys, ids = self._call, self._call.keys, self._ids
        rows, owners, listed = ids.shape
        group = call.heads // owners
        padded = sizes.power_of_two(group)
        codes = max(self._sizes.rows // padded, 1)
        row = torch.arange(rows, device=ids.device)
        sequence = torch.searchsorted(keys.cu_rows.long(), row, right=True) - 1
        most = rules.most_blocks(keys.page_table.shape[1], self._page, self._block)
        own = keys.positions // self._block
        tiles = BLOCK_TILES(
            TilesCall(ids, sequence, own, call.sequences, most, call.kv_heads, codes)
        )
        gather_tiles[(tiles.group.shape[0],)](
            call.q,
            call.k_pages,
            call.v_pages,
            keys.page_table,
            tiles.order,
            tiles.group,
            tiles.first,
            tiles.count,
            part,
            part_lse,
            *self._strides(),
            keys.page_table.shape[1],
            most,
            owners,
            listed,
            call.kv_heads,
            self._scale,
            call.softcap or 1.0,
            **self._constants(group),
            BC=codes,
            num_warps=self._sizes.warps,
            num_stages=self._sizes.stages,
        )

    def _combine(
        self,
        part: torch.Tensor,
        part_lse: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:
        from .gather_kernels import combine_rows

        call, keys, ids = self._call, self._call.keys, self._ids
        tile = max(self._sizes.rows // sizes.power_of_two(call.group), 1)
        combine_rows[(sizes.most_tiles(call.rows, call.sequences, tile), call.kv_heads)](
            call.q,
            call.k_pages,
            call.v_pages,
            keys.page_table,
            keys.cu_rows,
            keys.positions,
            ids,
            part,
            part_lse,
            call.sink_logits,
            out,
            lse,
            *self._strides(),
            keys.page_table.shape[1],
            call.sequences,
            call.heads,
            ids.shape[1],
            ids.shape[2],
            self._scale,
            call.softcap or 1.0,
            **self._constants(call.group),
            BT=tile,
            SP=sizes.power_of_two(call.sequences),
            SINKS=call.sink_logits is not None,
            PER_HEAD=ids.shape[1] != call.kv_heads,
            num_warps=self._sizes.warps,
            num_stages=self._sizes.stages,
        )

    def _strides(self) -> tuple[int, ...]:
        q, k, v = self._call.q, self._call.k_pages, self._call.v_pages
        table = self._call.keys.page_table
        return (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], table.stride(0))

    def _constants(self, group: int) -> dict[str, int | bool]:
        call = self._call
        dim, v_dim = call.head_dim, call.v_dim
        return {
            "D": dim,
            "DV": v_dim,
            "BD": max(sizes.power_of_two(dim), 16),
            "BDV": max(sizes.power_of_two(v_dim), 16),
            "GROUP": group,
            "BG": sizes.power_of_two(group),
            "BLOCK": self._block,
            "PAGE": self._page,
            "BN": self._sizes.keys,
            "CAP": call.softcap is not None,
            "UPCAST": gpu.upcast(call.q),
        }
