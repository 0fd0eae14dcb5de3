"""Heads that choose their tokens: what a layer, its pages and its method have for them.

Such a head keeps a list of tokens; where these lie in the text is of no matter to its pages. A page
of kept tokens holds, under one page id, a piece of the list of every such head of every layer, so
that a sequence has one table for all of them, as long as the longest list may be (`KeptRule`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from ...kernels.store import PageLayout, zeroed
from ..kept_rule import KeptRule
from ..kept_step import KeptStep, Replaced

if TYPE_CHECKING:
    from .base import LayerCache, LayerShape, Step


@dataclass(frozen=True)
class ExpertShape:
    """The expert-choice heads of a layer, beside its ordinary ones: each has a router and keeps
    about one token in `sparsity`. They have the head_dim and scale of the others.
    """

    heads: int
    sparsity: int
    include_first: bool  # the first token of a text is always kept
    calibrated: bool  # the checkpoint has a threshold for the score of each


@dataclass(frozen=True)
class KeptCache:
    """What the expert-choice heads of a layer keep: as LayerCache, but the tokens in the pages are
    those of each head's own list.
    """

    k: torch.Tensor
    v: torch.Tensor
    positions: torch.Tensor  # int32 [pages, E, page size]
    scores: torch.Tensor  # float32 [pages, E, page size]
    step: KeptStep = field(default_factory=KeptStep)  # what the step at work changes

    @property
    def single(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V as pages of one head: page `page * E + head`."""
        k, v = (each.view(-1, 1, *each.shape[2:]) for each in (self.k, self.v))
        return k, v

    def save(self, layout: PageLayout, slots: torch.Tensor) -> None:
        """Remembers K and V at slots int64 [N] of pages of one head, which the step overwrites."""
        at = slots // layout.page_size, slots % layout.page_size
        self.step.replace(Replaced(slots, *layout.gather_tokens(*self.single, *at)))

    def undo(self, layout: PageLayout) -> bool:
        """Takes back a step that broke, so that it can be run again; False: it cannot be."""
        gone = self.step.undo()
        for each in gone or ():
            layout.put(*self.single, each.k, each.v, each.slots)
        return gone is not None

    @staticmethod
    def allocate(
        layout: PageLayout,
        pages: int,
        heads: int,
        dims: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> KeptCache:
        """Zeroed pages of `heads` heads; dims: of K and V. Each head's page is also taken as a page
        of its own (see KeptLists), so they lie page by page.
        """
        single = layout.allocate(pages * heads, 1, *dims, dtype, device)
        k, v = (each.view(pages, heads, *each.shape[2:]) for each in single)
        slots = (pages, heads, layout.page_size)
        return KeptCache(
            k, v, zeroed(slots, torch.int32, device), zeroed(slots, torch.float32, device)
        )


@dataclass(frozen=True)
class Chosen:
    """The rows that expert-choice heads choose: N pairs of a head and a row, sorted by both."""

    rows: torch.Tensor  # int64 [N]
    heads: torch.Tensor  # int64 [N]
    scores: torch.Tensor  # float32 [N], of the router
    slots: torch.Tensor  # int64 [N]: where in its head's list the row's token is kept
    lengths: torch.Tensor  # int64 [N]: tokens in the list when the row attends, its own included
    replaces: torch.Tensor  # bool [N]: the slot held another token before

    def moved(self, rows: int) -> Chosen:
        """The same with rows counted from another one."""
        return replace(self, rows=self.rows + rows) if rows else self

    def of_pairs(self, pairs: torch.Tensor) -> Chosen:
        """Some of the pairs, int64 in order."""
        return Chosen(*(getattr(self, each.name)[pairs] for each in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Chosen]) -> Chosen:
        """What was chosen of different rows, sorted anew."""
        if len(parts) == 1:
            return parts[0]
        every = Chosen(
            *(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Chosen))
        )
        most = int(every.rows.max()) + 1 if len(every.rows) else 1
        return every.of_pairs((every.heads * most + every.rows).argsort())


@dataclass(frozen=True)
class EveryPair(Chosen):
    """All pairs of a head and a row, sorted by both, where every row is its sequence's only one. A
    pair that was not chosen has slot -1, length 0, score 0: the shape does not tell what was
    chosen, so that nobody has to wait for a GPU to know it.
    """

    @property
    def chosen(self) -> torch.Tensor:
        """bool [N]: the head chose the row."""
        return self.slots >= 0


@runtime_checkable
class ExpertMethod(Protocol):
    """A method of layers with expert-choice heads. The layer asks which rows these choose, computes
    q, k and v of those alone, and then lets them attend; `attend` serves the other heads.
    """

    def kept_rule(self, shape: LayerShape) -> KeptRule | None:
        """How many tokens each head keeps; None for a layer without such heads."""
        ...

    def choose(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: Any,
        scores: torch.Tensor,
        thresholds: torch.Tensor | None,
        every: bool = False,
    ) -> Chosen:
        """By the router's scores float32 [T, E]; thresholds: float32 [E], of the checkpoint. every:
        all pairs, an EveryPair; each sequence has one row.
        """
        ...

    def attend_chosen(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: Any,
        chosen: Chosen,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
    ) -> torch.Tensor:
        """Stores k and v [N, d] of the chosen rows and returns their attention output, float32
        [N, dv], for q [N, d].
        """
        ...


@runtime_checkable
class WholeTextMethod(Protocol):
    """A method that may need a text as a whole: what its first rows see depends on the last ones.

    Such texts are read in one step, and neither continued nor reused.
    """

    @property
    def needs_whole_text(self) -> bool:
        """Whether it does with these options."""
        ...
