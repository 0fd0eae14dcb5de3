"""Lists of the best blocks by a search for the lowest score that is chosen, against sorting."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels import triton_sizes
from saccade.kernels.ranked_lists import best_lists

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array"),
]


def by_sorting(scores: list[float], own: int, listed: int, first: int, recent: int) -> list[int]:
    """What is always taken, and the best of the rest; the later of equal ones."""
    forced = {j for j in range(own + 1) if j < first or j > own - recent}
    fit = [j for j in range(own + 1) if j not in forced and scores[j] > -torch.inf]
    best = sorted(fit, key=lambda j: (-scores[j], -j))[: listed - len(forced)]
    found = sorted([*forced, *best])
    return found + [-1] * (listed - len(found))


@pytest.mark.parametrize("ranked", [64, 2048])
@pytest.mark.parametrize(("listed", "first", "recent"), [(1, 0, 1), (7, 2, 3), (130, 1, 0)])
def test_lists(monkeypatch, ranked, listed, first, recent):
    """Scores of every size and sign, equal ones, zeros, infinities, NaN; one turn and several."""
    monkeypatch.setattr(triton_sizes, "RANKED", ranked)
    owns = [0, 63, 64, 299]
    scores = torch.randn(len(owns), 1, 300) * torch.logspace(-40, 30, 300)
    scores[1] = torch.randint(-2, 3, (300,)).float() * 1e-30
    scores[2, :, ::2] = -0.0
    scores[2, :, 1::2] = 0.0
    scores[3, :, 5:60:7] = torch.inf
    scores[3, :, 6:60:7] = -torch.inf
    scores[3, :, 7:60:7] = torch.nan
    ids = torch.empty((len(owns), 1, listed), dtype=torch.int32)
    best_lists(scores, ids, torch.tensor(owns) * 16 + 15, 16, (first, recent))
    for row, own in enumerate(owns):
        wanted = by_sorting(scores[row, 0].tolist(), own, listed, first, recent)
        assert ids[row, 0].tolist() == wanted


def test_nothing_fits():
    ids = torch.empty((1, 2, 3), dtype=torch.int32)
    best_lists(torch.full((1, 2, 9), torch.nan), ids, torch.tensor([100]), 16, (0, 0))
    assert bool((ids == -1).all())
