"""The one abstraction: what a layer looks like, what a step looks like, and what a method does with
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ...kernels.store import PageLayout


@dataclass(frozen=True)
class LayerShape:
    """The attention geometry of one layer, as its checkpoint defines it."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    window: int | None = (
        None  # sliding window of the trained model, in tokens; None: full attention
    )
    softcap: float | None = None
    sinks: bool = False  # the layer has a learned sink logit per head


@dataclass(frozen=True)
class PageField:
    """Extra state that a method keeps per page: shape [num_pages, *shape], shared and copied with
    the page.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None  # None: as K and V


@dataclass(frozen=True)
class Step:
    """The rows of one step that one method serves, over one layer group's pages."""

    # All are filled by Batch.
    cu_rows: torch.Tensor  # int32 [S+1]: rows of sequence s are cu_rows[s] .. cu_rows[s+1]
    positions: torch.Tensor  # int64 [T]: absolute position of each row
    slots: torch.Tensor  # int64 [T]: page id * page size + offset, where the row's K, V go
    page_table: torch.Tensor  # int32 [S, max pages]: page ids by position, -1: evicted
    rows: slice  # where these rows lie among all rows of the step
    page_size: int


@dataclass(frozen=True)
class LayerCache:
    """The paged memory of one layer: K, V and the page fields of its methods, under the same page
    ids.
    """

    layout: PageLayout
    k: torch.Tensor
    v: torch.Tensor
    fields: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Aux:
    """What a trained layer computes from hidden states besides q, k and v."""

    sink_logits: torch.Tensor | None = None  # float32 [H]


class AttentionMethod(Protocol):
    """What a layer keeps beside K and V, and how it reads them.

    Implementations are frozen dataclasses; equal ones share a plan.
    """

    @property
    def align(self) -> int:
        """Prefill chunks begin on multiples of this many tokens."""
        ...

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """The page fields this method needs in a layer of this shape."""
        ...

    def plan(self, shape: LayerShape, step: Step) -> Any:
        """Whatever can be computed once per step, before the first layer, from lengths and page
        tables.
        """
        ...

    def summarize(self, cache: LayerCache, step: Step, plan: Any, aux: Aux) -> None:
        """Finishes the page fields that the step's tokens complete; K and V are stored already."""
        ...

    def attend(
        self, shape: LayerShape, cache: LayerCache, step: Step, plan: Any, q: torch.Tensor, aux: Aux
    ) -> torch.Tensor:
        """Attention output [T, H, dv] for q [T, H, d]."""
        ...
