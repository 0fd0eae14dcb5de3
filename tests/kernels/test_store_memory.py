"""Memory of large results: the next ones lie where former ones lay, once nobody holds those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saccade.kernels.store import memory, unwritten

COUNT = memory.ANEW_FROM // 4


@pytest.fixture(autouse=True)
def nothing_spare() -> None:
    memory._spares.clear()


def test_gone_results_make_place() -> None:
    first = unwritten((COUNT,), torch.float32)
    place = first.data_ptr()
    del first
    again = unwritten((2, COUNT), torch.bfloat16)
    assert again.data_ptr() == place and again.shape == (2, COUNT)
    assert unwritten((COUNT,), torch.float32).data_ptr() != place


@pytest.mark.parametrize("hold", [lambda x: x[5:], lambda x: x.view(2, -1), lambda x: x.numpy()])
def test_what_is_held_keeps_its_place(hold: Callable[[torch.Tensor], Any]) -> None:
    result = unwritten((COUNT,), torch.float32)
    place, held = result.data_ptr(), hold(result)
    del result
    held[:] = 7
    other = unwritten((COUNT,), torch.float32)
    assert other.data_ptr() != place
    other.fill_(0)
    assert float(held.min()) == 7


def test_what_does_not_fit_is_given_back() -> None:
    small = unwritten((COUNT,), torch.float32)
    del small
    assert len(memory._spares) == 1
    large = unwritten((3 * COUNT,), torch.float32)
    assert not memory._spares
    del large
    assert len(memory._spares) == 1
    unwritten((COUNT,), torch.float32)  # a third of the memory would be used
    assert len(memory._spares) == 1 and len(memory._spares[0]) == 4 * COUNT


def test_no_more_is_kept_than_a_bound() -> None:
    many = [unwritten((2 * COUNT,), torch.float32) for _ in range(12)]
    del many
    kept = sum(map(len, memory._spares))
    assert memory.MOST_SPARE - 8 * COUNT < kept <= memory.MOST_SPARE


def test_small_results_are_torchs_own() -> None:
    unwritten((COUNT - 1,), torch.float32)
    assert not memory._spares
