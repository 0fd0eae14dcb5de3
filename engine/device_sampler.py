"""The sampler's work for many rows at a time, on the device that has the logits.

The same tokens as `filters.draw_token` gives from the same logits: the filters act in the same
order, the same number of `randomness.uniform` chooses, and what is left is added up in the same
order, in float64. Only where that number falls within rounding (1e-15 of the total) of the border
between two tokens may the two differ, for a GPU adds up in another way. A row depends on no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .filters import BINS, BINS_PER_NAT
from .randomness import uniform
from .sampler_state import SamplerState

ROWS = 16  # at a time: a vocabulary of 150K then takes 250 MB of float64 and indices
BYTES = 104  # for each number of a row, of those


@dataclass(frozen=True)
class _Asked:
    """What the rows want, each [n, 1]."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    u: torch.Tensor


def scratch_bytes(vocab_size: int, rows: int) -> int:
    """What sampling so many rows takes besides their logits, of which it makes one copy."""
    return vocab_size * (min(rows, ROWS) * BYTES + rows * 4)


def draw(logits: torch.Tensor, states: Sequence[SamplerState]) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens int64 [R], whether any can be sampled, bool [R]) on the device of logits float32
    [R, V], which stay as they are. Nothing waits for the device.
    """
    adjusted = _adjusted(logits, states)
    best = adjusted.argmax(dim=-1, keepdim=True)
    usable = adjusted.gather(1, best).isfinite().flatten()
    tokens = best.flatten()
    whole = [i for i, state in enumerate(states) if not state.params.is_greedy]
    for few in (True, False):  # those that look at a few most likely tokens, and the others
        mine = [i for i in whole if (0 < states[i].params.top_k < logits.shape[1]) == few]
        for begin in range(0, len(mine), ROWS):
            rows = mine[begin : begin + ROWS]
            at = torch.tensor(rows, device="cpu").to(logits.device, non_blocking=True)
            tokens[at] = _drawn(adjusted[at], [states[i] for i in rows], few)
    return tokens, usable


def _adjusted(logits: torch.Tensor, states: Sequence[SamplerState]) -> torch.Tensor:
    """A copy of the logits with every row's bias, penalties and masks, as `adjusted` has them."""
    found = logits.clone()
    width = logits.shape[1]
    edits = [state.edits(width) for state in states]
    flat = found.view(-1)

    def sent(kind: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where in `flat`, and by how much, one kind of change is made."""
        pairs = [getattr(edit, kind) for edit in edits]
        places = np.concatenate([ids + i * width for i, (ids, _) in enumerate(pairs)])
        if not len(places):
            return None
        amounts = np.concatenate([values for _, values in pairs]).astype(np.float32)
        both = torch.from_numpy(np.stack([places.astype(np.float64), amounts]))
        there = both.to(logits.device, non_blocking=True)
        return there[0].long(), there[1].float()

    if (change := sent("bias")) is not None:
        flat.index_copy_(0, change[0], flat[change[0]] + change[1])
    if (change := sent("repeated")) is not None:
        seen = flat[change[0]]
        damped = torch.where(seen > 0, seen / change[1], seen * change[1])
        flat.index_copy_(0, change[0], damped)
    if (change := sent("output")) is not None:
        flat.index_copy_(0, change[0], flat[change[0]] - change[1])
    if (change := sent("banned")) is not None:
        flat.index_fill_(0, change[0], -torch.inf)
    return found


def _drawn(logits: torch.Tensor, states: Sequence[SamplerState], few: bool) -> torch.Tensor:
    """int64 [n]: tokens of rows [n, V], all of which have a top_k (few) or none."""
    columns = [
        (
            state.params.temperature,
            float(state.params.top_k),
            state.params.top_p,
            state.params.min_p,
            uniform(state.seed, state.stream, state.num_output),
        )
        for state in states
    ]
    numbers = torch.tensor(columns, dtype=torch.float64, device="cpu")
    numbers = numbers.to(logits.device, non_blocking=True)
    asked = _Asked(*(numbers[:, i : i + 1] for i in range(5)))
    if not few:
        return _at_quantile(logits, None, asked, states)
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    order = order[:, : max(state.params.top_k for state in states)]
    inside = torch.arange(order.shape[1], device=logits.device) < asked.top_k
    place = _at_quantile(logits.gather(1, order), inside, asked, states)
    return order.gather(1, place[:, None]).flatten()


def _at_quantile(
    values: torch.Tensor, inside: torch.Tensor | None, asked: _Asked, states: Sequence[SamplerState]
) -> torch.Tensor:
    """int64 [n]: the columns of values float32 [n, N] at quantile u after top_p and min_p.

    inside: bool [n, N], what top_k has left; None: all.
    """
    peak = values.max(dim=-1, keepdim=True).values.double()
    depth = (peak - values.double()) / asked.temperature
    if inside is not None:
        depth = depth.where(inside, torch.inf)
    weights = torch.exp(-depth)
    order: torch.Tensor | None = None
    if any(state.params.top_p < 1 for state in states):
        kept, order = _nucleus(depth, weights, asked.top_p)
        weights = weights * kept
    weights = weights.where(weights >= asked.min_p, 0.0)
    if order is not None:
        weights = weights.gather(1, order)
    sums = weights.cumsum(-1)
    total = sums[:, -1:].contiguous()
    place = torch.searchsorted(sums, asked.u * total, right=True)
    place = torch.minimum(place, torch.searchsorted(sums, total))  # u * total may round up to it
    return (place if order is None else order.gather(1, place)).flatten()


def _nucleus(
    depth: torch.Tensor, weights: torch.Tensor, top_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(bool [n, N]: the least deep entries that hold top_p of the weight; int64 [n, N]: the order
    in which `filters` leaves them: by columns, but those of the last bin by depth).

    Rows with top_p = 1 keep all, in the order of columns.
    """
    count = depth.shape[1]
    column = torch.arange(count, device=depth.device).expand_as(depth)
    ranked = depth.sort(dim=-1, stable=True)
    sums = weights.gather(1, ranked.indices).cumsum(-1)
    last = torch.searchsorted(sums, (top_p * sums[:, -1:]).contiguous()).clamp(max=count - 1)
    rank = torch.empty_like(column).scatter_(1, ranked.indices, column)
    every = top_p >= 1
    kept = (rank <= last) | every
    bins = (depth * BINS_PER_NAT).clamp(max=BINS - 1).floor()
    border = bins.gather(1, ranked.indices.gather(1, last))
    by_rank = (bins >= border) & ~every
    key = torch.where(by_rank, count + rank, column)
    return kept, key.where(kept, 2 * count).sort(dim=-1, stable=True).indices
