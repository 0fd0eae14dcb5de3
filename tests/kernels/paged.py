"""Random paged attention problems, and what attention over them must give."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from saccade.kernels.attend import AttendCall, BlockLists, Keys, attend
from saccade.kernels.attend.reference import softmax_attention, visible
from saccade.kernels.store import PageLayout, WriteCall, reference
from saccade.kernels.testing import within_budget

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Result = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Problem:
    """Sequences of given lengths whose last `chunk` tokens are the query rows."""

    layout: PageLayout
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    keys: Keys
    dense: list[Result]  # K and V of each sequence as they were written
    options: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Result:
        """What the op answers."""
        options = {"scale": self.layout.dims(self.k, self.v)[0] ** -0.5, **self.options}
        return attend(self.layout, self.q, self.k, self.v, self.keys, **options)

    def call(self) -> AttendCall:
        """What the op's implementations are asked."""
        options = {"scale": self.q.shape[2] ** -0.5, **self.options}
        dtype = options.pop("out_dtype", None) or self.q.dtype
        return AttendCall(
            self.layout, self.q, self.k, self.v, self.keys, out_dtype=dtype, **options
        )

    def seeing(self, **changes: Any) -> Problem:
        """The same problem with other `Keys` fields."""
        return replace(self, keys=replace(self.keys, **changes))

    def having(self, **options: Any) -> Problem:
        """The same problem with other options of `attend`."""
        return replace(self, options={**self.options, **options})

    def bounds(self) -> list[tuple[int, int]]:
        """(first row, one past the last) of each sequence."""
        cu = self.keys.cu_rows.tolist()
        return list(pairwise(cu))


def slots_of(table: torch.Tensor, positions: torch.Tensor, page: int) -> torch.Tensor:
    """int64 slots of these positions of one sequence with page ids `table`."""
    return table.long()[positions // page] * page + positions % page


def make(
    lengths,
    chunks,
    heads=4,
    kv_heads=2,
    dim=32,
    v_dim=32,
    page=64,
    dtype=torch.float32,
    seed=0,
    shuffle=0,
    size=1.0,
    layout_of=PageLayout,
) -> Problem:
    """Pages are shuffled by `shuffle`; unused ones and the rest of the last pages hold NaN, as
    memory of a former owner may. `seed` makes the numbers, K and q `size` times normal ones."""
    generator = torch.Generator().manual_seed(seed)
    layout = layout_of(page)
    per_seq = [-(-length // page) for length in lengths]
    total = sum(per_seq) + 2
    k, v = layout.allocate(total, kv_heads, dim, v_dim, dtype)
    k.fill_(torch.nan)
    v.fill_(torch.nan)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(shuffle)).int()
    table = torch.full((len(lengths), max(per_seq) + 1), -1, dtype=torch.int32)
    used, positions, dense = 0, [], []
    for s, (length, chunk) in enumerate(zip(lengths, chunks, strict=True)):
        table[s, : per_seq[s]] = order[used : used + per_seq[s]]
        used += per_seq[s]
        where = torch.arange(length)
        new_k = (torch.randn((length, kv_heads, dim), generator=generator) * size).to(dtype)
        new_v = torch.randn((length, kv_heads, v_dim), generator=generator).to(dtype)
        # The reference: an interpreted kernel would take seconds.
        slots = slots_of(table[s], where, page)
        reference.write_pages(WriteCall(layout, k, v, new_k, new_v, slots))
        positions.append(where[length - chunk :])
        dense.append((new_k, new_v))
    q = (torch.randn((sum(chunks), heads, dim), generator=generator) * size).to(dtype)
    cu = torch.tensor([0, *torch.tensor(chunks).cumsum(0).tolist()], dtype=torch.int32)
    return Problem(layout, q, k, v, Keys(cu, torch.cat(positions), table), dense)


def oracle(problem: Problem, exact: bool) -> Result:
    """Attention over the keys as they were before any page: in fp64, or as a plain implementation
    at the problem's precision does it (fp32 sums, probabilities and result rounded to the dtype).
    """
    q, keys = problem.q, problem.keys
    wide = torch.float64 if exact else torch.float32
    options = {"softcap": None, "sink_logits": None, "scale": q.shape[2] ** -0.5} | problem.options
    out_dtype = options.pop("out_dtype", None) or q.dtype
    outs, lses = [], []
    for (begin, end), (k, v) in zip(problem.bounds(), problem.dense, strict=True):
        rows, group = slice(begin, end), q.shape[1] // k.shape[1]
        k, v = (x.to(wide).repeat_interleave(group, dim=1) for x in (k, v))
        mask = visible(keys, rows, q.shape[1], k.shape[0])
        if exact or q.dtype == torch.float32:
            out, lse = softmax_attention(q[rows].to(wide), k, v, mask, **options)
        else:
            out, lse = _rounded_attention(q[rows].to(wide), k, v, mask, q.dtype, options)
        outs.append(out)
        lses.append(lse)
    out = torch.cat(outs)
    return (out if exact else out.to(out_dtype)), torch.cat(lses)


def _rounded_attention(q, k, v, mask, dtype, options) -> Result:
    """Softmax attention whose probabilities are rounded to `dtype` before they weigh V."""
    softcap, sink_logits = options["softcap"], options["sink_logits"]
    scores = torch.einsum("thd,lhd->thl", q, k) * options["scale"]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask.transpose(0, 1), -torch.inf)
    lse = scores.logsumexp(dim=-1)
    if sink_logits is not None:
        lse = torch.logaddexp(lse, sink_logits)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return torch.einsum("thl,lhd->thd", weights.to(dtype).float(), v), lse


def check(problem: Problem, factor: float = 2.0) -> Result:
    """The op's answer, after a comparison with the oracle by the error budget."""
    out, lse = problem.run()
    truth, truth_lse = oracle(problem, exact=True)
    rounded, rounded_lse = oracle(problem, exact=False)
    # torch's products of fp32 are nearer to exact on some processors than on others.
    factor = max(factor, 3.0) if out.dtype == torch.float32 else factor
    within_budget(out, rounded, truth, factor)
    # The kernel's logarithm has base 2: its conversion rounds twice more.
    within_budget(lse, rounded_lse, truth_lse, factor=3.0)
    return out, lse


def cut(problem: Problem, seq: int, begin: int, end: int) -> Problem:
    """Rows begin .. end of one sequence as a call of their own."""
    keys, first = problem.keys, int(problem.keys.cu_rows[seq])
    rows = slice(first + begin, first + end)
    blocks = keys.blocks
    if blocks is not None:
        blocks = replace(blocks, list_of_row=blocks.list_of_row[rows])
    alone = replace(
        keys,
        cu_rows=torch.tensor([0, end - begin], dtype=torch.int32),
        positions=keys.positions[rows],
        page_table=keys.page_table[seq : seq + 1],
        lo=None if keys.lo is None else keys.lo[rows],
        hi=None if keys.hi is None else keys.hi[rows],
        blocks=blocks,
    )
    return replace(problem, q=problem.q[rows], keys=alone, dense=[problem.dense[seq]])


def random_lists(problem: Problem, block: int, owners: int, share: float = 0.3) -> BlockLists:
    """Per row and owner a random subset of the blocks, some in the future; some lists are empty."""
    rows = problem.q.shape[0]
    longest = max(k.shape[0] for k, _ in problem.dense)
    total = -(-longest // block) + 1
    held = torch.rand((rows, owners, total)) < share
    held[torch.rand((rows, owners)) < 0.1] = False
    ids = torch.where(held, torch.arange(total), total).sort(-1).values
    ids = torch.where(ids == total, -1, ids).int()
    order = torch.randperm(rows)
    return BlockLists(ids[order].contiguous(), order.argsort().int(), block)


def few_blocks(
    problem: Problem, block: int, count: int, owners: int = 2, scattered: bool = False
) -> BlockLists:
    """Up to `count` blocks of all, per row and owner; the row's own is often among them, and some
    lie in the future or beyond the text."""
    rows, longest = len(problem.keys.positions), max(len(k) for k, _ in problem.dense)
    total = -(-longest // block) + 2
    held = torch.rand((rows, owners, total)).argsort(-1)[..., :count]
    own = (problem.keys.positions // block)[:, None].expand(-1, owners)
    held[..., 0] = torch.where(torch.rand((rows, owners)) < 0.7, own, held[..., 0])
    ids, length = held.sort(-1).values, torch.randint(0, count + 1, (rows, owners, 1))
    ids[..., 1:][ids[..., 1:] == ids[..., :-1]] = total
    ids = torch.where(torch.arange(count) < length, ids, total).sort(-1).values
    ids = torch.where(ids == total, -1, ids).int()
    return BlockLists(ids, torch.arange(rows).int(), block, scattered)


def same(a: Result, b: Result) -> bool:
    """Equal bit for bit (of finite numbers)."""
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
