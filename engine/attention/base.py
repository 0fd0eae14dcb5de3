"""The one abstraction: what a layer looks like, what a step looks like, and what a method does with
them. What only some methods have is in `protocols.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ...kernels.attend import Keys, attend
from ...kernels.store import PageLayout
from ..branches import BranchShape, Compressor
from ..recurrent_shape import RecurrentShape
from .experts import Chosen, ExpertShape, KeptCache

if TYPE_CHECKING:
    from .watch import Watch

# Page fields: the last raw keys, in layers that convolve them, and the states of recurrent layers.
KEY_TAIL, STATE = "key_tail", "recurrent_state"


@dataclass(frozen=True)
class LatentShape:
    """What a latent layer keeps per token: `groups` latents, each `rank` channels and, behind
    them, the token's rotary key of `rope` channels, which all heads share.
    """

    groups: int
    rank: int
    rope: int


@dataclass(frozen=True)
class IndexShape:
    """An indexer: query heads and their channels; it has one key per token.

    pooled: the layer makes keys of blocks of them (Aux.compress), for the method to choose by.
    """

    heads: int
    dim: int
    pooled: bool = False


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
    gammas: str = ""  # names the measured gains on its first token's weight; empty: it has none
    latent: LatentShape | None = None  # pages hold latents (num_kv_heads: groups), no K and V
    index: IndexShape | None = None  # an indexer beside queries and keys
    rotates: bool = True  # its queries and keys turn with the position
    key_taps: int = 0  # tokens over which keys are convolved; 0: they are not
    experts: ExpertShape | None = None  # further heads, which keep tokens of their choice
    branches: BranchShape | None = None  # it computes gates for several branches
    recurrent: RecurrentShape | None = None  # it keeps a state, no keys; no method is asked

    @property
    def kept_heads(self) -> int:
        """KV heads that a page holds."""
        return self.num_kv_heads * (self.branches.sets if self.branches else 1)

    @property
    def kept(self) -> tuple[int, int]:
        """Channels of K and of V that a page holds per token and KV head."""
        if self.latent is None:
            return self.head_dim, self.v_head_dim
        return self.latent.rank + self.latent.rope, 0

    @property
    def fields(self) -> dict[str, PageField]:
        """What pages of this layer keep besides, whatever its method: see `engine/snapshots.py`."""
        if self.recurrent is not None:
            return _recurrent_fields(self.recurrent)
        if self.key_taps < 2:
            return {}
        return {KEY_TAIL: PageField((2, self.key_taps - 1, self.num_kv_heads, self.head_dim))}

    @property
    def convolutions(self) -> list[tuple[int, int]]:
        """Taps and dilation of each convolution over the tokens whose last inputs pages keep."""
        if self.recurrent is not None:
            return [(tail.taps, tail.dilation) for tail in self.recurrent.tails]
        return [(self.key_taps, 1)] if self.key_taps > 1 else []


@dataclass(frozen=True)
class PageField:
    """Extra state that a method keeps per page: shape [num_pages, *shape], shared and copied with
    the page.

    by_head: shape is [slots, KV heads, ...], and kernels read all slots of one head.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None  # None: as K and V
    by_head: bool = False


def _recurrent_fields(shape: RecurrentShape) -> dict[str, PageField]:
    """Room for two states: see `engine/snapshots.py`."""
    return {
        STATE: PageField((2, shape.heads, shape.key_dim, shape.value_dim), torch.float32),
        **{tail.name: PageField((2, tail.reach, tail.channels)) for tail in shape.tails},
    }


# Compact page tables leave out multiples of this: whatever tile of keys a kernel takes at a time,
# its borders then lie where they would lie in a whole table, and so do the bits.
TABLE_STRIDE = 4096


class Angles(Protocol):
    """The model's rotary embedding, for methods that move a query to another position."""

    def cos_sin(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin, float32 [T, r/2], of any positions."""
        ...

    def turn(self, positions: torch.Tensor, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin, float32 [T, r/2]: what takes a query at each position, if it lies beyond
        `last`, to `last`. A row's bits depend on its position alone.
        """
        ...


@dataclass(frozen=True)
class Step:
    """The rows of one step that one method serves, over one layer group's pages."""

    # All are filled by Batch.
    cu_rows: torch.Tensor  # int32 [S+1]: rows of sequence s are cu_rows[s] .. cu_rows[s+1]
    positions: torch.Tensor  # int64 [T]: absolute position of each row
    slots: torch.Tensor  # int64 [T]: page id * page size + offset, where the row's K, V go
    page_table: torch.Tensor  # int32 [S, max pages]: page ids by position, -1: evicted
    prompt_lens: torch.Tensor  # int64 [S]: tokens of each sequence's prompt, outputs not counted
    rows: slice  # where these rows lie among all rows of the step
    page_size: int
    # In the group of an EvictingMethod: int64 [T], tokens that the row's sequence dropped behind
    # its sinks and that page_table leaves out, a multiple of TABLE_STRIDE; their difference from
    # `positions` is where page_table has a row's window.
    skipped: torch.Tensor | None = None
    angles: Angles | None = None  # of the model's rotary embedding
    # int32 [S, max pages]: pages of the tokens that expert-choice heads keep, in order of the lists
    kept_table: torch.Tensor | None = None
    # Positions (first, one past the last) of every sequence's rows, known on the host.
    spans: tuple[tuple[int, int], ...] | None = None


def causal_keys(step: Step, window: int | None = None, sinks: int = 0) -> torch.Tensor:
    """int64 [T]: keys that each row sees of those before it, by window and sinks or all."""
    seen = step.positions + 1
    if window is None:
        return seen
    return seen.clamp(max=window) + (seen - window).clamp(min=0, max=sinks)


def per_sequence(step: Step, rows: torch.Tensor) -> torch.Tensor:
    """float64 [S]: sums of rows [T] over each sequence."""
    if len(rows) == len(step.cu_rows) - 1:  # no sequence is empty: each has one row
        return rows.double()
    sums = torch.zeros(rows.shape[0] + 1, dtype=torch.float64)
    torch.cumsum(rows, 0, dtype=torch.float64, out=sums[1:])
    return sums[step.cu_rows[1:].long()] - sums[step.cu_rows[:-1].long()]


@dataclass(frozen=True)
class LayerCache:
    """The paged memory of one layer: K, V and the page fields of its methods, under the same page
    ids.
    """

    layer: int  # its index in the model
    layout: PageLayout
    k: torch.Tensor
    v: torch.Tensor
    fields: dict[str, torch.Tensor] = field(default_factory=dict)
    watch: Watch | None = None
    kept: KeptCache | None = None

    def attend(
        self,
        q: torch.Tensor,
        keys: Keys,
        scale: float,
        softcap: float | None = None,
        sink_logits: torch.Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        value_dim: int | None = None,
        seen: Keys | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`kernels.attend` over these pages, seen by whoever watches.

        seen: the same keys at absolute positions, where `keys` counts in a compact table.
        """
        if self.watch is not None:
            self.watch.read(seen or keys)
        return attend(
            self.layout, q, self.k, self.v, keys, scale, softcap, sink_logits, out_dtype, value_dim
        )


class UpMaps(Protocol):
    """A latent layer's maps from what its pages keep to keys and values."""

    def absorb(self, q: torch.Tensor) -> torch.Tensor:
        """[T, H, rank + rope] that scores what pages keep as q [T, H, d] scores the keys."""
        ...

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Values [T, H, dv] of the latents [T, H, rank] that each head summed."""
        ...

    def expand(self, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [N, H, d] and values [N, H, dv] of what pages keep, [N, G, rank + rope]."""
        ...


@dataclass(frozen=True)
class Aux:
    """What a trained layer gives to its method besides q, k and v.

    `rows` holds what it computed from hidden states, by name, each [T, ...]; the other fields are
    the same for every row. `up` turns latents into keys and values, `compress` windows of tokens
    into entries. `chosen` is for those who watch: what the layer's expert-choice heads have chosen.
    """

    sink_logits: torch.Tensor | None = None  # float32 [H]
    gammas: torch.Tensor | None = None  # float32 [H]: measured gains on the first token's weight
    rows: Mapping[str, torch.Tensor] = field(default_factory=dict)
    up: UpMaps | None = None
    chosen: Chosen | None = None
    compress: Compressor | None = None

    def of_rows(self, rows: slice) -> Aux:
        """The same for some of the rows."""
        return replace(self, rows={name: each[rows] for name, each in self.rows.items()})


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

    def keys_read(self, shape: LayerShape, step: Step, plan: Any) -> torch.Tensor:
        """float64 [S]: keys that one layer read, mean over query heads, summed over a sequence's
        rows; asked after every layer's `attend` (see PlannedMethod). What scoring reads (means,
        bounds) does not count.
        """
        ...
