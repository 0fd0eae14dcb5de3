"""Delta's anchor guard: an anchor whose weight outside of the window jumps is not followed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.merge import merge
from .base import LayerShape, PageField, Step


@dataclass(frozen=True)
class Anchors:
    """The anchors of a step that have followers, and where their state and the previous one lie.

    index: int64 [A], into the plan's exact rows. home, before: int64 [A], page * slots + slot of
    the anchor and of the one before it; has_before: bool [A], false where that one's complement is
    empty, so that nothing was written for it.
    """

    index: torch.Tensor
    home: torch.Tensor
    before: torch.Tensor
    has_before: torch.Tensor


def state_field(shape: LayerShape, page_size: int, gamma: int) -> PageField:
    """Per anchor and head, in the anchor's page: what followers take over, its lse, its weight.

    Raises ValueError unless pages and gamma nest.
    """
    if gamma % page_size and page_size % gamma:
        raise ValueError(
            f"delta: with anchor_guard, gamma={gamma} must divide or be divided by the page size "
            f"of {page_size}"
        )
    slots = max(1, page_size // gamma)
    return PageField((slots, shape.num_heads, shape.v_head_dim + 2), torch.float32)


def plan_anchors(
    step: Step,
    sequence: torch.Tensor,
    exact: torch.Tensor,
    tails: torch.Tensor,
    gamma: int,
    reach: int,
) -> Anchors:
    """The anchors among the `exact` rows; sequence, tails: int64 [T], of each row.

    reach: the first position whose complement is not empty.
    """
    positions = step.positions[exact]
    index = torch.nonzero((positions % gamma == 0) & (positions < tails[exact])).flatten()
    positions, owner = positions[index], sequence[exact[index]]
    earlier = positions - gamma
    has_before = earlier >= reach
    slots = max(1, step.page_size // gamma)
    return Anchors(
        index,
        _home(step, owner, positions, gamma, slots),
        _home(step, owner, earlier.clamp(min=0), gamma, slots),
        has_before,
    )


def _home(
    step: Step, owner: torch.Tensor, positions: torch.Tensor, gamma: int, slots: int
) -> torch.Tensor:
    page = step.page_table[owner, positions // step.page_size].long()
    return page * slots + positions % step.page_size // gamma


def guarded(
    field: torch.Tensor,
    anchors: Anchors,
    table: tuple[torch.Tensor, torch.Tensor],
    base_lse: torch.Tensor,
    far_lse: torch.Tensor,
    source: torch.Tensor,
    own: torch.Tensor,
    limit: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(values [E + A, H, dv], lse [E + A, H], source [T]): followers get entries of their own.

    table: what the exact rows' followers would take over without the guard. base_lse, far_lse:
    float32 [E, H], inside and outside of the window. Writes the anchors' state into `field`.
    """
    values, lse = table
    share = torch.ones((*far_lse.shape, 1))
    weight = merge(torch.zeros_like(share), base_lse, share, far_lse)[0]
    state = torch.cat([values, lse[..., None], weight], dim=-1)[anchors.index]
    slots = field.view(-1, *field.shape[2:])
    slots[anchors.home] = state
    before = slots[anchors.before]  # in this step's own anchors too: they are written by now
    nothing = torch.zeros_like(before[:1])
    nothing[..., -2] = -torch.inf
    before = torch.where(anchors.has_before[:, None, None], before, nothing)
    jumps = state[..., -1:] - before[..., -1:] > limit
    follow = torch.where(jumps, before, state)
    total = values.shape[0]
    entry = torch.full((total + 1,), total + anchors.index.shape[0])
    entry[anchors.index] = total + torch.arange(anchors.index.shape[0])
    exact_only = torch.where(source < total, source, entry[-1])
    return (
        torch.cat([values, follow[..., :-2]]),
        torch.cat([lse, follow[..., -2]]),
        torch.where(own, exact_only, entry[source]),
    )
