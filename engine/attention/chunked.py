"""Memory-efficient chunked attention: exact, with working memory that depends on the chunk sizes
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...kernels.attend import Keys
from ...kernels.merge import merge
from .base import Aux, LayerCache, LayerShape, PageField, Step, causal_keys, per_sequence


@dataclass(frozen=True)
class QueryChunk:
    """Up to q_chunk rows of the step, and their keys in pieces of k_chunk positions."""

    rows: slice
    pieces: tuple[Keys, ...]


@dataclass(frozen=True)
class Chunked:
    """Rabe & Staats 2021 (arXiv 2112.05682): partial results over key chunks, merged as they come.

    The paper keeps every key chunk's partial result and merges at the end; merging online needs
    less. Key chunks lie at absolute positions; chunks wholly in the future or outside the window
    are never visited; the last one has its true size. Rows are independent, so q_chunk changes
    memory and never the result.
    """

    q_chunk: int = 1024
    k_chunk: int = 4096

    def __post_init__(self) -> None:
        if self.q_chunk < 1 or self.k_chunk < 1:
            raise ValueError(
                f"chunked: q_chunk and k_chunk must be at least 1, "
                f"got {self.q_chunk}, {self.k_chunk}"
            )

    reads_are_planned: ClassVar[bool] = True

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere."""
        return 1

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """Nothing beyond K and V."""
        return {}

    def plan(self, shape: LayerShape, step: Step) -> tuple[QueryChunk, ...]:
        """The chunks of rows, each with its key pieces."""
        total = step.positions.shape[0]
        return tuple(
            self._rows(shape, step, begin, min(begin + self.q_chunk, total))
            for begin in range(0, total, self.q_chunk)
        )

    def _rows(self, shape: LayerShape, step: Step, begin: int, end: int) -> QueryChunk:
        positions = step.positions[begin:end]
        cu_rows = (step.cu_rows - begin).clamp(0, end - begin)
        hi = (positions + 1).int()
        lo = torch.zeros_like(hi) if shape.window is None else (hi - shape.window).clamp(min=0)
        first, last = int(lo.min()) // self.k_chunk, -(-int(hi.max()) // self.k_chunk)
        pieces = []
        for piece in range(first, last):
            start, stop = piece * self.k_chunk, (piece + 1) * self.k_chunk
            pieces.append(
                Keys(cu_rows, positions, step.page_table, lo.clamp(min=start), hi.clamp(max=stop))
            )
        return QueryChunk(slice(begin, end), tuple(pieces))

    def summarize(
        self, cache: LayerCache, step: Step, plan: tuple[QueryChunk, ...], aux: Aux
    ) -> None:
        """Nothing to finish."""

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: tuple[QueryChunk, ...],
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Attention output [T, H, dv]: fp32 partial results, rounded once."""
        out = torch.empty((*q.shape[:2], shape.v_head_dim), dtype=q.dtype)
        for chunk in plan:
            rows = q[chunk.rows]
            total: tuple[torch.Tensor, torch.Tensor] | None = None
            for keys in chunk.pieces:
                part = cache.attend(rows, keys, shape.scale, shape.softcap, None, torch.float32)
                total = part if total is None else merge(*total, *part)
            if total is not None:
                out[chunk.rows] = _with_sink(*total, aux.sink_logits).to(q.dtype)
        return out

    def keys_read(
        self, shape: LayerShape, step: Step, plan: tuple[QueryChunk, ...]
    ) -> torch.Tensor:
        """All visible keys."""
        return per_sequence(step, causal_keys(step, shape.window))


def _with_sink(
    out: torch.Tensor, lse: torch.Tensor, sink_logits: torch.Tensor | None
) -> torch.Tensor:
    """The sink logit, one more key of the denominator, comes last: to no piece in particular."""
    if sink_logits is None:
        return out
    return merge(out, lse, torch.zeros_like(out), sink_logits.expand_as(lse).contiguous())[0]
