"""Top-k, top-p, min-p and the draw, for one row of logits; exact, never approximate.

Everything here is a function of one row alone, computed by numpy on one thread in a fixed order.
The order of likelihood: higher logit first, equal logits by ascending token id; so top_k=1
is greedy.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .penalties import Ids, Row

Weights = NDArray[np.float64]

# The first guess of how many tokens a nucleus needs. A topk of this size costs a twentieth of a
# sort of 150K logits, and a nucleus of a trained model seldom needs more; wider ones widen by 8.
NUCLEUS_GUESS = 512


def draw_token(
    row: Row, temperature: float, top_k: int, top_p: float, min_p: float, u: float
) -> int:
    """The token at quantile `u` in [0, 1) of softmax(row / temperature) after all three filters.

    row: float32 [V] with a finite maximum (-inf elsewhere is fine). The filters act in this order,
    each on the renormalised rest of the one before. top_k <= 0, top_p = 1, min_p = 0: off.
    """
    if top_k <= 0 and top_p >= 1 and min_p <= 0:
        return _at_quantile(_weights(row, row.max(), temperature), u)
    kept, weights = _kept(row, temperature, top_k, top_p, min_p)
    return int(kept[_at_quantile(weights, u)])


def most_likely(row: Row, count: int) -> Ids:
    """The `count` (at most V) most likely tokens of `row` [V], most likely first, int64 [count]."""
    count = min(count, len(row))
    # topk leaves open which of several equal values it takes, so only its threshold is used.
    threshold = torch.topk(torch.from_numpy(row), count, sorted=False).values.min().item()
    candidates = np.flatnonzero(row >= threshold)
    order = np.argsort(-row[candidates], kind="stable")
    return candidates[order[:count]]


def _kept(
    row: Row, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[Ids, Weights]:
    """Tokens that survive the filters, and their unnormalised weights; both by likelihood."""
    peak = row.max()
    if 0 < top_k < len(row):
        kept = most_likely(row, top_k)
        weights = _weights(row[kept], peak, temperature)
        count = _nucleus(weights, top_p * weights.sum())
    elif top_p < 1:
        kept, weights, count = _nucleus_of_all(row, peak, temperature, top_p)
    else:
        return _above_min_p(row, peak, temperature, min_p)
    if min_p > 0:
        count = min(count, int((weights >= min_p).sum()))  # the peak weighs exactly 1
    return kept[:count], weights[:count]


def _nucleus_of_all(
    row: Row, peak: np.float32, temperature: float, top_p: float
) -> tuple[Ids, Weights, int]:
    """The likeliest tokens down to probability mass top_p, without sorting the vocabulary."""
    mass = top_p * _weights(row, peak, temperature).sum()
    width = NUCLEUS_GUESS
    while True:
        kept = most_likely(row, width)
        weights = _weights(row[kept], peak, temperature)
        # Enough is proven: the likeliest `width` tokens hold the mass, so no other one can belong.
        if np.cumsum(weights)[-1] >= mass or width >= len(row):
            return kept, weights, _nucleus(weights, mass)
        width *= 8


def _above_min_p(
    row: Row, peak: np.float32, temperature: float, min_p: float
) -> tuple[Ids, Weights]:
    weights = _weights(row, peak, temperature)
    kept = np.flatnonzero(weights >= min_p)
    return kept, weights[kept]


def _weights(logits: Row, peak: np.float32, temperature: float) -> Weights:
    # Relative to the peak before dividing: no temperature can then overflow.
    weights: Weights = np.exp((logits.astype(np.float64) - peak) / temperature)
    return weights


def _nucleus(weights: Weights, mass: float) -> int:
    """How many leading weights reach `mass`; at least one, at most all."""
    return min(int(np.searchsorted(np.cumsum(weights), mass)) + 1, len(weights))


def _at_quantile(weights: Weights, u: float) -> int:
    """The index whose slice of the total holds quantile `u`; never one of zero weight."""
    cumulative = np.cumsum(weights)
    total = cumulative[-1]
    index = np.searchsorted(cumulative, u * total, side="right")
    last = np.searchsorted(cumulative, total)  # u * total may round up to the total
    return int(min(index, last))
