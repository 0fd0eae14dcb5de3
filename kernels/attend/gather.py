"""Paged attention to selected blocks on a GPU, by blocks of keys: every block gathers the rows that
selected it (as in FSA and FlashMoBA), so that tiles are full though each row has blocks of its own.
"""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from ..ops import Implementation, Op
from ..store import PageLayout, RowLayout
from . import gather_rules as rules
from . import index_cuda
from .gather_index import block_tiles
from .keys import BlockLists, Keys

BLOCK_TILES = Op(
    "block_tiles",
    block_tiles,
    (Implementation("cuda", index_cuda.block_tiles, index_cuda.supports),),
)


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
    """None when the kernels can serve this call and it pays, otherwise the reason."""
    if not isinstance(layout, RowLayout):
        return "pages have the CPU's layout"
    if keys.blocks is None or keys.blocks.ids.shape[2] < 2:
        return "no lists of several blocks"
    if keys.blocks.block < 16:
        return "blocks of fewer than 16 tokens"
    if keys.lo is not None or keys.hi is not None or keys.window is not None:
        return "lists with further bounds"
    if value_dim is not None or max(q.shape[2], v_pages.shape[3]) > 256:
        return "more than 256 channels, or values in the keys"
    if out_dtype not in (q.dtype, torch.float32):
        return f"output {out_dtype} for input {q.dtype}"
    if any(pages.stride(2) != pages.shape[3] for pages in (k_pages, v_pages)):
        return "the rows of a page are not contiguous"
    if not rules.pays(
        q.shape[0],
        q.shape[1],
        keys.blocks.ids.shape[2],
        keys.page_table.shape[0],
        rules.most_blocks(keys.page_table.shape[1], layout.page_size, keys.blocks.block),
        k_pages.shape[1],
    ):
        return "too few rows for so many blocks"
    return gpu.triton_refusal(q, k_pages, v_pages)


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
    """See `saccade.kernels.attend.attend`. Rows are taken in passes, as many at a time as leave
    partial results within `gather_rules.PARTIAL_BUDGET`; a row's result depends on no pass.
    """
    rows, heads, v_dim = q.shape[0], q.shape[1], v_pages.shape[3]
    out = q.new_empty((rows, heads, v_dim), dtype=out_dtype)
    lse = q.new_empty((rows, heads), dtype=torch.float32)
    blocks = keys.blocks
    if blocks is None:
        raise ValueError("attend by blocks of keys needs lists of blocks")
    listed = blocks.ids.shape[2]
    step = rules.rows_per_pass(heads, listed, v_dim, out_dtype.itemsize)
    sinks = None if sink_logits is None else sink_logits.contiguous()
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        call = Pass(layout, q[part], k_pages, v_pages, _cut(keys, blocks, part), scale, softcap)
        call.run(out[part], lse[part], sinks)
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
    """The two kernels over some rows, and the index between them."""

    def __init__(
        self,
        layout: PageLayout,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        keys: Keys,
        scale: float,
        softcap: float | None,
    ) -> None:
        if keys.blocks is None:
            raise ValueError("attend by blocks of keys needs lists of blocks")
        self._q, self._k, self._v, self._keys, self._ids = q, k, v, keys, keys.blocks.ids
        self._block, self._page = keys.blocks.block, layout.page_size
        self._softcap = softcap
        # A softcap is taken on natural exponents, everything else in powers of two.
        self._scale = scale if softcap is not None else scale * sizes.LOG2E
        self._group = q.shape[1] // k.shape[1]
        channels, capability = max(q.shape[2], v.shape[3]), gpu.capability(q)
        self._sizes = rules.sizes(self._block, self._page, channels, q.dtype, capability)

    def run(self, out: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor | None) -> None:
        """Fills out [n, H, dv] and lse [n, H]."""
        rows, heads, v_dim = out.shape
        listed = self._ids.shape[2]
        # Partial results as the answer will be: of a rounded answer they may be rounded too.
        part = out.new_empty((rows, heads, listed, v_dim))
        part_lse = lse.new_empty((rows, heads, listed))
        self._attend(part, part_lse)
        self._combine(part, part_lse, sinks, out, lse)

    def _attend(self, part: torch.Tensor, part_lse: torch.Tensor) -> None:
        from .gather_kernels import gather_tiles

        keys, ids = self._keys, self._ids
        rows, owners, listed = ids.shape
        heads, sequences = self._q.shape[1], keys.page_table.shape[0]
        group = heads // owners
        padded = sizes.power_of_two(group)
        codes = max(self._sizes.rows // padded, 1)
        row = torch.arange(rows, device=ids.device)
        sequence = torch.searchsorted(keys.cu_rows.long(), row, right=True) - 1
        most = rules.most_blocks(keys.page_table.shape[1], self._page, self._block)
        tiles = BLOCK_TILES(
            ids,
            sequence,
            keys.positions // self._block,
            sequences,
            most,
            self._k.shape[1],
            codes,
        )
        gather_tiles[(tiles.group.shape[0],)](
            self._q,
            self._k,
            self._v,
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
            self._k.shape[1],
            self._scale,
            self._softcap or 1.0,
            **self._constants(group),
            BC=codes,
            num_warps=self._sizes.warps,
            num_stages=self._sizes.stages,
        )

    def _combine(
        self,
        part: torch.Tensor,
        part_lse: torch.Tensor,
        sinks: torch.Tensor | None,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:
        from .gather_kernels import combine_rows

        keys, ids = self._keys, self._ids
        rows, heads, _ = out.shape
        sequences = keys.page_table.shape[0]
        tile = max(self._sizes.rows // sizes.power_of_two(self._group), 1)
        combine_rows[(sizes.most_tiles(rows, sequences, tile), self._k.shape[1])](
            self._q,
            self._k,
            self._v,
            keys.page_table,
            keys.cu_rows,
            keys.positions,
            ids,
            part,
            part_lse,
            sinks,
            out,
            lse,
            *self._strides(),
            keys.page_table.shape[1],
            sequences,
            heads,
            ids.shape[1],
            ids.shape[2],
            self._scale,
            self._softcap or 1.0,
            **self._constants(self._group),
            BT=tile,
            SP=sizes.power_of_two(sequences),
            SINKS=sinks is not None,
            PER_HEAD=ids.shape[1] != self._k.shape[1],
            num_warps=self._sizes.warps,
            num_stages=self._sizes.stages,
        )

    def _strides(self) -> tuple[int, ...]:
        q, k, v = self._q, self._k, self._v
        table = self._keys.page_table
        return (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], table.stride(0))

    def _constants(self, group: int) -> dict[str, int | bool]:
        dim, v_dim = self._q.shape[2], self._v.shape[3]
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
            "CAP": self._softcap is not None,
            "UPCAST": gpu.upcast(self._q),
        }
