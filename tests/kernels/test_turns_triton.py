"""Lists that change while rows attend, by the kernels in Triton, interpreted."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels import native
from saccade.kernels.store import PageLayout, RowLayout
from saccade.kernels.turns import ATTEND_TURNS, attend_turns, triton

from . import test_turns
from .paged import DTYPES
from .test_turns import Lists

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array"),
]
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture
def gpu_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages as a GPU has them, and no compiled kernel."""
    monkeypatch.setattr(test_turns, "PageLayout", RowLayout)
    monkeypatch.setattr(native, "kernels", lambda: None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("replacing", [True, False])
def test_every_row_sees_the_list_as_it_is_then(gpu_layout: None, dtype, replacing) -> None:
    """By the op's door; rows that replace what other rows of the step have put there, too. Pages
    afterwards hold what the turns leave in them, one after the other.
    """
    lists = Lists(dtype, replacing)
    assert ATTEND_TURNS.refusals(lists.call)["triton"] is None
    out = lists.run()
    assert out.dtype == torch.float32
    assert float((out - lists.truth()).abs().max()) < LIMITS[dtype]
    for ours, theirs in zip(lists.after, written_in_turn(lists), strict=True):
        assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))


def written_in_turn(lists: Lists) -> tuple[torch.Tensor, torch.Tensor]:
    """The pages after all rows, one after the other."""
    k_pages, v_pages = (each.clone() for each in lists.pages)
    for row, (slot, replaces) in enumerate(zip(lists.slots, lists.replaces, strict=True)):
        if slot % lists.layout.page_size == 0 and not replaces:
            v_pages[slot // lists.layout.page_size] = 0
        k, v = (each[row : row + 1] for each in lists.rows[1:])
        lists.layout.put(k_pages, v_pages, k, v, slot[None])
    return k_pages, v_pages


def test_strided_rows_and_lists_without_rows(gpu_layout: None) -> None:
    """q, k and v as pieces of one tensor, and tables of lists that no row belongs to."""
    lists = Lists(torch.float32)
    wanted = lists.run()
    q, k, v = lists.rows
    whole = torch.cat([q, k, v], dim=2)
    lists.rows = tuple(whole.split([q.shape[2], k.shape[2], v.shape[2]], dim=2))
    keys, empty = lists.keys, torch.zeros((1, lists.keys.page_table.shape[1]), dtype=torch.int32)
    cu_rows = torch.cat([keys.cu_rows[:1], keys.cu_rows, keys.cu_rows[-1:]])
    table = torch.cat([empty, keys.page_table, empty])
    lists.keys = type(keys)(cu_rows, keys.positions, table, hi=keys.hi)
    assert torch.equal(lists.run(triton.attend_turns), wanted)


def test_refusals() -> None:
    lists = Lists(torch.float32)  # in the processor's layout
    assert isinstance(lists.layout, PageLayout)
    assert triton.supports(lists.call) == "pages have the CPU's layout"
    wide = tuple(torch.zeros(1, 1, 300) for _ in range(3))
    pages = (torch.zeros(1, 1, 16, 300),) * 2
    assert "256" in triton.supports(
        lists.call._replace(layout=RowLayout(16), rows=wide, pages=pages)
    )
    with pytest.raises(ValueError, match="keys need positions and hi"):
        keys = type(lists.keys)(lists.keys.cu_rows, lists.keys.positions, lists.keys.page_table)
        attend_turns(*lists.call._replace(keys=keys))
