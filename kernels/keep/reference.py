"""Which tokens expert-choice heads keep, in plain torch."""

from __future__ import annotations

import torch

from .room import KeptCounts, KeptState, ListRoom

_FAR = 1 << 40  # more than any count


def keep_above(
    scores: torch.Tensor, thresholds: torch.Tensor, counts: KeptCounts, room: ListRoom
) -> torch.Tensor:
    """See `saccade.kernels.keep.keep_above`.

    With a = 1 for a score above its threshold and A its sum so far, the length of a list obeys
    c[t] = min(c[t-1] + a[t], after[t]). As `after` never falls, c[t] = A[t] + min(c[0],
    min over u <= t of after[u] - A[u]).
    """
    above = scores > thresholds  # never for NaN
    if room.first:
        above = above | (room.positions == 0)[:, None]
    starts = room.cu_rows[:-1].long()
    sequence = torch.repeat_interleave(torch.arange(len(starts)), room.cu_rows.diff())
    lengths = _lengths_before(counts, room.positions[starts])
    total = above.cumsum(0)
    total = total - (total - above.long())[starts][sequence]
    # One running minimum serves all sequences if each lies far below the one before.
    far = (sequence * _FAR)[:, None]
    left = (room.after[:, None] - total - far).cummin(0).values + far
    now = total + torch.minimum(left, lengths[sequence])
    before = now.roll(1, 0)
    before[starts] = lengths
    size = counts.flags.shape[1]
    pages = counts.table[sequence, room.positions // size].long()
    known = pages >= 0
    counts.flags[pages[known], (room.positions % size)[known]] = (now > before)[known].byte()
    begins = known & (room.positions % size == 0)
    counts.lengths[pages[begins]] = before[begins].int()
    return before.where(now > before, -1).int()


def _lengths_before(counts: KeptCounts, starts: torch.Tensor) -> torch.Tensor:
    """int64 [S, E]: how long lists are before positions [S], by the page of the token before."""
    size, last = counts.flags.shape[1], (starts - 1).clamp(min=0)
    pages = counts.table[torch.arange(len(last)), last // size].long()
    inside = torch.arange(size) <= (last % size)[:, None]
    flags = counts.flags[pages].where(inside[..., None], 0)
    lengths = counts.lengths[pages].long() + flags.sum(1, dtype=torch.int64)
    return lengths.where(((starts > 0) & (pages >= 0))[:, None], 0)


def keep_best(scores: torch.Tensor, state: KeptState, room: ListRoom) -> torch.Tensor:
    """See `saccade.kernels.keep.keep_best`."""
    size, heads = state.scores.shape[2], scores.shape[1]
    slots = torch.full(scores.shape, -1, dtype=torch.int32)
    scores = scores.nan_to_num(nan=-1.0)  # below every score
    every = torch.arange(heads)
    for s, (begin, end) in enumerate(room.sequences):
        most = int(room.after[end - 1])
        table = state.table[s, : -(-most // size)].long()
        kept = state.scores[table].transpose(0, 1).flatten(1)  # [E, slots], copies
        places = state.positions[table].transpose(0, 1).flatten(1).long()
        for t in range(begin, end):
            length = int(room.before[t])
            if length < room.after[t]:
                chosen = every
                slots[t] = length
            else:
                worst = _worst(kept[:, :length], places[:, :length], room.first)
                beaten = kept[every, worst] <= scores[t]
                if room.first:
                    beaten &= places[every, worst] > 0
                chosen = every[beaten]
                slots[t, chosen] = worst[chosen].int()
            at = slots[t, chosen].long()
            kept[chosen, at], places[chosen, at] = scores[t, chosen], room.positions[t]
        shape = (heads, len(table), size)
        state.scores[table] = kept.view(shape).transpose(0, 1)
        state.positions[table] = places.view(shape).transpose(0, 1).int()
    return slots


def _worst(scores: torch.Tensor, positions: torch.Tensor, first: bool) -> torch.Tensor:
    """[E]: of [E, n], where the lowest score is; of equal ones that of the lowest position."""
    if first:
        scores = scores.where(positions > 0, torch.inf)
    lowest = scores.min(1, keepdim=True).values
    return positions.where(scores == lowest, torch.iinfo(torch.int64).max).argmin(1)


def keep_top(scores: torch.Tensor, room: ListRoom) -> torch.Tensor:
    """See `saccade.kernels.keep.keep_top`."""
    slots = torch.full(scores.shape, -1, dtype=torch.int32)
    scores = scores.nan_to_num(nan=-1.0)  # below every score
    for begin, end in room.sequences:
        own = scores[begin:end].clone()
        if room.first:
            own[0] = torch.inf
        best = own.sort(dim=0, stable=True).indices[end - begin - int(room.after[end - 1]) :]
        chosen = torch.zeros(own.shape, dtype=torch.bool).scatter_(0, best, True)
        ranks = chosen.cumsum(0, dtype=torch.int32) - 1
        slots[begin:end] = ranks.where(chosen, -1)
    return slots
