"""Calls of the Triton rules of expert-choice heads whose variants are compiled ahead of time, on
tensors that have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .room import KeptCounts, KeptState, ListRoom
from .triton import keep_above, keep_best, keep_top

Call = Callable[[], object]
HEADS, PAGES = 32, 4096


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    return {
        "above_quick": partial(_above, 64, True),
        "above_page": partial(_above, 16, False),
        "best_quick": partial(_best, 64, True),
        "best_page": partial(_best, 256, False),
        "top": partial(_top, True),
    }


def _tensor(*shape: int, of: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=of, device="meta")


def _room(first: bool) -> ListRoom:
    """2048 rows of eight sequences."""
    ints, longs = _tensor(2048, of=torch.int32), _tensor(2048, of=torch.int64)
    return ListRoom(_tensor(9, of=torch.int32), longs, ints, ints, first)


def _above(page: int, first: bool) -> object:
    counts = KeptCounts(
        _tensor(PAGES, page, HEADS, of=torch.uint8),
        _tensor(PAGES, HEADS, of=torch.int32),
        _tensor(8, 2048, of=torch.int32),
    )
    scores = _tensor(2048, HEADS, of=torch.float32)
    return keep_above(scores, _tensor(HEADS, of=torch.float32), counts, _room(first))


def _best(page: int, first: bool) -> object:
    shape = (PAGES, HEADS, page)
    state = KeptState(
        _tensor(*shape, of=torch.float32),
        _tensor(*shape, of=torch.int32),
        _tensor(8, 64, of=torch.int32),
    )
    return keep_best(_tensor(2048, HEADS, of=torch.float32), state, _room(first))


def _top(first: bool) -> object:
    return keep_top(_tensor(2048, HEADS, of=torch.float32), _room(first))
