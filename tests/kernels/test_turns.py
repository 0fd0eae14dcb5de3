"""Lists that change while rows attend: every instruction set against the definition, row by row."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.attend import Keys
from saccade.kernels.store import PageLayout, write_pages
from saccade.kernels.turns import ATTEND_TURNS, TurnsCall, attend_turns

from .paged import DTYPES

PAGE, DIM, V_DIM = 16, 32, 24
LENGTHS, ROWS, MOST = (40, 0, 300, 7), (60, 200, 5, 1), (45, 33, 300, 8)


class Lists:
    """Some lists, rows that append to them while they have room, and then replace."""

    def __init__(self, dtype: torch.dtype, replacing: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.layout, width = PageLayout(PAGE), -(-max(MOST) // PAGE) + 13
        self.pages = self.layout.allocate(len(ROWS) * width + 1, 1, DIM, V_DIM, dtype)
        for each in self.pages:
            each.fill_(torch.nan)
        table = torch.randperm(len(ROWS) * width, generator=generator).view(-1, width).int()
        count = sum(ROWS)
        self.rows = (draw(count, 1, DIM), draw(count, 1, DIM), draw(count, 1, V_DIM))
        self.known = [(draw(n, 1, DIM), draw(n, 1, V_DIM)) for n in LENGTHS]
        slots, hi, self.at = [], [], []
        for s, (length, rows, most) in enumerate(zip(LENGTHS, ROWS, MOST, strict=True)):
            where = torch.arange(length)
            write_pages(self.layout, *self.pages, *self.known[s], self._slots(table[s], where))
            for _ in range(rows):
                grows = not replacing or length < most
                at = length if grows else int(torch.randint(0, length, (), generator=generator))
                length += grows
                self.at.append((s, at, not grows))
                slots.append(self._slots(table[s], torch.tensor([at])))
                hi.append(length)
        cu = torch.tensor([0, *torch.tensor(ROWS).cumsum(0).tolist()], dtype=torch.int32)
        last = torch.full((count,), 10**6)
        self.keys = Keys(cu, last, table, hi=torch.tensor(hi, dtype=torch.int32))
        self.slots = torch.cat(slots)
        self.replaces = torch.tensor([replaces for _, _, replaces in self.at])

    @staticmethod
    def _slots(table: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return table.long()[at // PAGE] * PAGE + at % PAGE

    @property
    def call(self) -> TurnsCall:
        given = (self.rows, self.pages, self.keys, self.slots, self.replaces)
        return TurnsCall(self.layout, *given, 0.25)

    def run(self, function=None) -> torch.Tensor:
        """By the door, or by one implementation."""
        self.after = (self.pages[0].clone(), self.pages[1].clone())
        call = self.call._replace(pages=self.after)
        return attend_turns(*call) if function is None else function(call)

    def truth(self) -> torch.Tensor:
        """float64, one row after the other."""
        lists = [[list(pair) for pair in zip(*each, strict=True)] for each in self.known]
        found = []
        for (s, at, _), q, k, v in zip(self.at, *self.rows, strict=True):
            lists[s][at : at + 1] = [[k, v]]
            keys, values = (torch.cat([pair[i] for pair in lists[s]]).double() for i in (0, 1))
            found.append((q.double() @ keys.T * 0.25).softmax(-1) @ values)
        return torch.stack(found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("replacing", [True, False])
def test_every_row_sees_the_list_as_it_is_then(isa, dtype, replacing):
    lists = Lists(dtype, replacing)
    assert bool(lists.replaces.any()) == replacing
    out = lists.run()
    assert out.dtype == torch.float32
    limit = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    assert float((out - lists.truth()).abs().max()) < limit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_gives_the_bits_of_the_turns(isa, dtype):
    lists = Lists(dtype)
    out = lists.run()
    after = lists.after
    assert torch.equal(out, lists.run(ATTEND_TURNS.reference))
    for a, b in zip(after, lists.after, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_doors(isa):
    lists = Lists(torch.float32)
    q, k, v = lists.rows
    for rows, words in (((q[:, 0], k, v), "must be"), ((q, k, v[..., :8]), "rows' channels")):
        lists.rows = rows
        with pytest.raises(ValueError, match=words):
            lists.run()
    lists.rows = (q, k, v)
    lists.slots = lists.slots[1:]
    with pytest.raises(ValueError, match="slots and replaces"):
        lists.run()
