"""Attention over summaries and the lists that it gives: every instruction set against the
definition, one row at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import pytest
import torch

from saccade.kernels.compressed import (
    COMPRESSED,
    POOLS,
    CompressedCall,
    ListRule,
    Spans,
    compressed,
)
from saccade.kernels.compressed.reference import block_weights
from saccade.kernels.select import Candidates
from saccade.kernels.store import PageLayout
from saccade.kernels.testing import within_budget

from .paged import DTYPES

RULE = ListRule(5, first=1, recent=2)
LENGTHS, CHUNKS = [1700, 300, 64, 63, 5], [21, 9, 1, 1, 5]
PLAIN, NARROW, TILED = (48, (48, 40)), (34, (0, 34)), (64, (64, 32))
# (spans, block, page), then the channels of a key and where its value's begin and how many they
# are; the first ones are blocks side by side, as ASA has them.
GEOMETRY = [
    (Spans(16, 16), 16, 64, *NARROW),
    (Spans(128, 128), 128, 64, *PLAIN),
    (Spans(32, 32), 32, 256, *TILED),
    (Spans(16, 16), 16, 16, *TILED),
    (Spans(32, 16), 64, 64, *TILED),
    (Spans(32, 16), 64, 16, *PLAIN),
    (Spans(64, 16), 64, 64, *NARROW),
    (Spans(16, 16), 64, 128, *PLAIN),
    (Spans(32, 8), 64, 64, *PLAIN),
    (Spans(64, 16), 16, 32, *TILED),
    (Spans(32, 16, "max"), 64, 64, *PLAIN),
    (Spans(1, 1), 16, 16, *TILED),
]
Geometry = tuple[Spans, int, int, int, tuple[int, int]]


@dataclass
class Problem:
    """Queries over entries of random keys and values, whose places in the pages are shuffled."""

    q: torch.Tensor
    entries: torch.Tensor
    where: Candidates
    spans: Spans
    value_first: int
    value_dim: int

    def run(self, rule: ListRule | None = RULE) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return compressed(
            self.q, self.entries, self.where, rule, 0.2, self.value_dim, self.spans,
            self.value_first,
        )  # fmt: skip

    def seen(self, row: int) -> torch.Tensor:
        """[n, G, width]: the entries that a row sees, found one at a time."""
        s = int(torch.searchsorted(self.where.cu_rows, row, right=True)) - 1
        found, page = [], self.where.page_size
        table, position = self.where.page_table[s].tolist(), int(self.where.positions[row])
        for i in range(position + 1):
            last = i * self.spans.stride + self.spans.length - 1
            if last > position:
                break
            slot = last % page // self.spans.stride if self.entries.shape[1] > 1 else 0
            if table[last // page] >= 0:
                found.append((table[last // page], slot))
        places = torch.tensor(found, dtype=torch.int64).view(-1, 2)
        return self.entries[places[:, 0], places[:, 1]]


def make(
    spans: Spans, block: int, page: int, dtype: torch.dtype,
    dim: int = 48, value: tuple[int, int] = (48, 40), heads: int = 12, seed: int = 0,
) -> Problem:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    per_seq = [-(-length // page) for length in LENGTHS]
    order = torch.randperm(sum(per_seq) + 2, generator=generator).int()
    table = torch.full((len(LENGTHS), max(per_seq) + 1), -1, dtype=torch.int32)
    shape = (order.numel(), spans.slots(page), 2, max(dim, sum(value)))
    entries = torch.full(shape, torch.nan, dtype=dtype)
    used = 0
    for s, (length, pages) in enumerate(zip(LENGTHS, per_seq, strict=True)):
        table[s, :pages] = order[used : used + pages]
        used += pages
        for i in range(spans.complete(length)):
            last = i * spans.stride + spans.length - 1
            slot = last % page // spans.stride if shape[1] > 1 else 0
            drawn = torch.randn(shape[2:], generator=generator)
            entries[table[s, last // page].long(), slot] = drawn.to(dtype)
    cu = torch.tensor([0, *torch.tensor(CHUNKS).cumsum(0).tolist()], dtype=torch.int32)
    pairs = zip(LENGTHS, CHUNKS, strict=True)
    positions = torch.cat([torch.arange(length - chunk, length) for length, chunk in pairs])
    q = torch.randn((sum(CHUNKS), heads, dim), generator=generator).to(dtype)
    where = Candidates(cu, positions, table, block, page)
    return Problem(q, entries, where, spans, *value)


@cache
def known(
    geometry: Geometry, dtype: torch.dtype
) -> tuple[Problem, list[torch.Tensor], list[tuple[int, list]]]:
    """A problem, and what it must give: the same for every instruction set."""
    problem = make(*geometry[:3], dtype, *geometry[3:])
    exact, exact_lse = attention(problem, rounds=False)
    rows = range(0, problem.q.shape[0], 3)
    of_blocks = [(row, weights(problem, row).tolist()) for row in rows]
    return problem, [exact, exact_lse, attention(problem, rounds=True)[0]], of_blocks


def attention(problem: Problem, rounds: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Out and lse in fp64, or with fp32 sums and probabilities rounded to the dtype."""
    q, dtype = problem.q, problem.q.dtype
    wide = torch.float32 if rounds else torch.float64
    outs, lses = [], []
    for row in range(q.shape[0]):
        seen = problem.seen(row).to(wide).repeat_interleave(q.shape[1] // 2, dim=1)
        scores = torch.einsum("hd,nhd->hn", q[row].to(wide), seen[..., : q.shape[2]]) * 0.2
        lse = scores.logsumexp(-1)
        p = (scores - lse[:, None]).exp()
        p = p.to(dtype).to(wide) if rounds else p
        values = seen[..., problem.value_first : problem.value_first + problem.value_dim]
        outs.append(torch.einsum("hn,nhd->hd", p, values))
        lses.append(lse)
    out = torch.stack(outs)
    return out.to(dtype) if rounds else out, torch.stack(lses)


def weights(problem: Problem, row: int) -> torch.Tensor:
    """float64 [G, blocks before and at the row]: token by token."""
    q, spans, block = problem.q[row].double(), problem.spans, problem.where.block
    seen = problem.seen(row).double()
    scores = torch.einsum("gkd,ngd->gkn", q.view(2, -1, q.shape[1]), seen[..., : q.shape[1]]) * 0.2
    mass = scores.softmax(-1).sum(1)
    total = torch.zeros(2, int(problem.where.positions[row]) // block + 1, dtype=torch.float64)
    for i in range(seen.shape[0]):
        tokens = torch.arange(i * spans.stride, i * spans.stride + spans.length)
        shared = torch.bincount(tokens // block, minlength=total.shape[1])[: total.shape[1]]
        if spans.pool == "max":
            total = torch.maximum(total, mass[:, i : i + 1] * (shared > 0))
        else:
            total += mass[:, i : i + 1] * shared / spans.stride
    return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRY, ids=str)
def test_attention_and_lists(isa: str, dtype: torch.dtype, geometry: Geometry) -> None:
    problem, (exact, exact_lse, rounded), of_blocks = known(geometry, dtype)
    out, lse, ids = problem.run()
    # In fp32 torch sums in pieces, which errs less than one ascending chain.
    within_budget(out, rounded, exact, 3.0 if dtype == torch.float32 else 2.0)
    assert torch.equal(lse == -torch.inf, exact_lse == -torch.inf)
    assert torch.allclose(lse, exact_lse.float(), atol=1e-5)
    for row, weight in of_blocks:
        check_list(ids[row].tolist(), weight)


def check_list(lists: list[list[int]], weight: list[list[float]]) -> None:
    """Ascending, padded, with the blocks that must be there, and none left out that weighs more."""
    for each, of_block in zip(lists, weight, strict=True):
        last = len(of_block) - 1
        known = [block for block in each if block >= 0]
        assert each == sorted(set(known)) + [-1] * (RULE.listed - len(known))
        assert len(known) == min(RULE.listed, last + 1)
        forced = {0, last, max(last - 1, 0)}
        assert forced <= set(known)
        left = [of_block[j] for j in range(last) if j not in known]
        chosen = [of_block[j] for j in known if j not in forced]
        assert not left or min(chosen, default=torch.inf) >= max(left) - 1e-5


@pytest.mark.parametrize("geometry", GEOMETRY, ids=str)
def test_the_reference_says_the_same(geometry: Geometry) -> None:
    problem, (exact, exact_lse, _), of_blocks = known(geometry, torch.float32)
    first, count = problem.value_first, problem.value_dim
    arguments = (problem.where, RULE, 0.2, count, problem.spans, first)
    out, lse, ids = COMPRESSED.reference(CompressedCall(problem.q, problem.entries, *arguments))
    assert torch.allclose(out, exact.float(), atol=1e-5)
    assert torch.allclose(lse, exact_lse.float(), atol=1e-5)
    for row, weight in of_blocks:
        check_list(ids[row].tolist(), weight)


def paper_weights(p: list[float], block: int, per: int, over: int) -> float:
    """Equation 9 of the paper, whose blocks and entries count from 1."""
    at = {i + 1: x for i, x in enumerate(p)}
    terms = ((m, n) for m in range(per) for n in range(over))
    return sum(at.get(per * (block + 1) - m - n, 0.0) for m, n in terms)


@pytest.mark.parametrize(
    ("length", "stride", "block"),
    [(32, 16, 64), (64, 16, 64), (16, 16, 64), (32, 8, 64), (64, 64, 64)],
)
def test_shares_are_those_of_the_paper(length: int, stride: int, block: int) -> None:
    where = replace(make(Spans(16, 16), 16, 16, torch.float32).where, block=block)
    mass = torch.rand(40, dtype=torch.float64)
    found = block_weights(mass, 12, where, Spans(length, stride))
    truth = [paper_weights(mass.tolist(), j, block // stride, length // stride) for j in range(12)]
    assert torch.allclose(found, torch.tensor(truth, dtype=torch.float64))
    if (length, stride) == (32, 16):
        one = block_weights(torch.eye(40, dtype=torch.float64), 12, where, Spans(length, stride))
        assert one[7:12, 2].tolist() == [1, 2, 2, 2, 1] and int(one[:, 2].sum()) == 8


def test_before_the_first_complete_entry_there_is_nothing(isa: str) -> None:
    problem = make(Spans(32, 16), 64, 64, torch.float32)
    out, lse, ids = problem.run()
    early = problem.where.positions < 31
    assert bool(early.any()) and bool((out[early] == 0).all())
    assert bool((lse[early] == -torch.inf).all()) and bool(lse[~early].isfinite().all())
    assert bool((ids[early] == torch.tensor([0, -1, -1, -1, -1])).all())


def test_equal_weights_choose_the_later_block(isa: str) -> None:
    problem = make(Spans(16, 16), 16, 64, torch.float32)
    problem.q.zero_()
    rows = problem.where.positions >= 16 * 12
    own = problem.where.positions[rows] // 16
    expected = torch.stack([own * 0, *(own - back for back in (3, 2, 1, 0))], dim=-1).int()
    assert torch.equal(problem.run()[2][rows], expected[:, None].expand(-1, 2, -1))


def test_rows_between_choose_nothing(isa: str) -> None:
    problem = make(Spans(16, 16), 16, 64, torch.float32)
    every, some = problem.run(), problem.run(replace(RULE, every=4))
    leads = problem.where.positions % 4 == 0
    assert torch.equal(some[2][leads], every[2][leads])
    assert bool((some[2][~leads] == -1).all()) and torch.equal(some[0], every[0])


def test_a_planted_block_is_chosen(isa: str) -> None:
    problem = make(Spans(32, 16), 64, 64, torch.float32, heads=4)
    row, block = 20, 20
    last = (block * 4 + 1) * 16 + 31
    page = problem.where.page_table[0, last // 64].long()
    problem.entries[page, last % 64 // 16, :, :48] = problem.q[row].view(2, 2, -1).sum(1) * 10
    assert bool((problem.run()[2][row] == block).any(-1).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_entry_without_a_page_is_not_seen(isa: str, dtype: torch.dtype) -> None:
    problem = make(Spans(32, 16), 64, 64, dtype)
    problem.where.page_table[0, 9] = -1
    out, lse, _ = problem.run()
    exact, exact_lse = attention(problem, rounds=False)
    within_budget(out, attention(problem, rounds=True)[0], exact)
    assert torch.allclose(lse, exact_lse.float(), atol=1e-5)


@pytest.mark.parametrize("pool", POOLS)
def test_nan_is_never_chosen(isa: str, pool: str) -> None:
    problem = make(Spans(32, 16, pool), 64, 64, torch.float32)
    page = problem.where.page_table[0, 9].long()
    problem.entries[page] = torch.nan
    out, _, ids = problem.run()
    rows = problem.where.positions > 1000
    assert bool(out[rows].isnan().all())  # the NaN comes through
    own = problem.where.positions[rows] // 64
    for each, last in zip(ids[rows].tolist(), own.tolist(), strict=True):
        assert each == [[0, last - 1, last, -1, -1]] * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [2, 4, 6, 12, 160])
def test_a_row_does_not_depend_on_the_others(
    isa: str, use_threads, dtype: torch.dtype, heads: int
) -> None:
    """Nor on the number of threads, which may share the entries of a row."""
    problem = make(Spans(1, 1), 16, 64, dtype, heads=heads, dim=32, value=(32, 16))
    long = 5000  # entries: several segments
    pages = -(-long // 64)
    problem.entries = torch.randn((pages, 64, 2, 48)).to(dtype)
    table = torch.randperm(pages).int()[None]
    positions = torch.tensor([3, 100, 2047, 2048, 4600, 4999])
    cu = torch.tensor([0, positions.numel()], dtype=torch.int32)
    problem.q = torch.randn((positions.numel(), heads, 32)).to(dtype)
    problem.where = Candidates(cu, positions, table, 16, 64)
    together = problem.run()
    for threads in (1, 3, 7):
        use_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(problem.run(), together, strict=True))
        for row in range(positions.numel()):
            where = replace(problem.where, cu_rows=cu.clamp(max=1), positions=positions[row, None])
            alone = replace(problem, q=problem.q[row : row + 1], where=where)
            pairs = zip(alone.run(), together, strict=True)
            assert all(torch.equal(a[0], b[row]) for a, b in pairs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_attention_and_only_lists(isa: str, dtype: torch.dtype) -> None:
    problem = make(Spans(32, 16), 64, 64, dtype)
    out, lse, ids = problem.run()
    no_list = problem.run(None)
    assert torch.equal(no_list[0], out) and torch.equal(no_list[1], lse)
    assert no_list[2].shape == (out.shape[0], 2, 0)
    no_out = replace(problem, value_first=0, value_dim=0).run()
    assert torch.equal(no_out[2], ids) and torch.equal(no_out[1], lse)
    assert no_out[0].shape == (*out.shape[:2], 0)


def test_entries_of_other_sequences_do_not_matter(isa: str) -> None:
    problem = make(Spans(32, 16), 64, 64, torch.bfloat16)
    before = problem.run()
    mine = problem.where.page_table[0]
    others = [p for p in range(problem.entries.shape[0]) if p not in mine[mine >= 0].tolist()]
    problem.entries[others] = torch.nan
    rows = slice(*next(iter(pairwise(problem.where.cu_rows.tolist()))))
    assert all(torch.equal(a[rows], b[rows]) for a, b in zip(before, problem.run(), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_of_a_head_may_lie_side_by_side(isa: str, dtype: torch.dtype) -> None:
    spans, block, page, dim, value = GEOMETRY[4]
    problem = make(spans, block, page, dtype, dim, value)
    expected = problem.run()
    pages, *shape = problem.entries.shape
    apart = PageLayout(page).allocate_field(pages, shape, dtype, by_head=True)
    problem.entries = apart.copy_(problem.entries)
    assert not apart.is_contiguous()
    for found, wanted in zip(problem.run(), expected, strict=True):
        assert torch.equal(found, wanted)


def test_doors() -> None:
    problem = make(Spans(32, 16), 64, 64, torch.float32)
    q, entries, where = problem.q, problem.entries, problem.where
    with pytest.raises(ValueError, match="do not fit"):
        compressed(torch.zeros(q.shape[0], 2, 100), entries, where, RULE, 1.0, 8, problem.spans)
    with pytest.raises(ValueError, match="share a dtype"):
        compressed(q.bfloat16(), entries, where, RULE, 1.0, 8, problem.spans)
    with pytest.raises(ValueError, match="positions must be"):
        compressed(q[:3], entries, where, RULE, 1.0, 8, problem.spans)
    for name, wrong in (
        ("positions must be int64", {"positions": where.positions.int()}),
        ("must be int32", {"page_table": where.page_table.long()}),
        ("cu_rows must ascend", {"cu_rows": where.cu_rows + 1}),
        ("block 0", {"block": 0}),
    ):
        with pytest.raises(ValueError, match=name):
            compressed(q, entries, replace(where, **wrong), RULE, 1.0, 8, Spans(64, 16))
    with pytest.raises(ValueError, match=r"values 48 \.\. 97 within the 88 channels"):
        compressed(q, entries, where, RULE, 1.0, 49, problem.spans, 48)
    with pytest.raises(ValueError, match="4 entries a page of 64 and blocks of 64 do not fit"):
        compressed(q, entries, where, RULE, 1.0, 8)
    with pytest.raises(ValueError, match="neither a rule nor values"):
        compressed(q, entries, where, None, 1.0, 0, problem.spans)
    for bad in ({"recent": 0}, {"first": -1}, {"every": 0}, {"listed": 2}, {"listed": 257}):
        with pytest.raises(ValueError, match="ListRule"):
            replace(RULE, **bad)
    for sizes in ((32, 12), (24, 16), (0, 16), (16, 0)):
        with pytest.raises(ValueError, match="Spans"):
            Spans(*sizes)
    with pytest.raises(ValueError, match="pool one of sum, max"):
        Spans(16, 16, "mean")
