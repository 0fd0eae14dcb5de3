"""The gated delta rule: every instruction set against the definition, in any cut and batch."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from saccade.kernels.gated_delta import DeltaCall, Walk, gated_delta
from saccade.kernels.gated_delta.reference import gated_delta as by_reference

from .paged import DTYPES

Inputs = tuple[torch.Tensor, ...]


def inputs(
    rows: int, key_heads: int, heads: int, dim: int, v_dim: int, dtype: torch.dtype, seed: int = 0
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    q, k, v = normal(rows, key_heads, dim), normal(rows, key_heads, dim), normal(rows, heads, v_dim)
    gates = torch.rand((2, rows, heads), generator=generator)
    return (*(x.to(dtype) for x in (q, k, v)), 0.5 + 0.5 * gates[0], gates[1].contiguous())


def truth(given: Inputs, order: list[int], state: torch.Tensor) -> dict[int, torch.Tensor]:
    """float64: what each row reads, one after the other, from `state` [H, d, dv], which changes."""
    q, k, v, decay, beta = (x.double() for x in given)
    group, found = v.shape[1] // q.shape[1], {}
    for row in order:
        reads = []
        for head in range(v.shape[1]):
            key, query = k[row, head // group], q[row, head // group]
            key = key / (key.square().sum() + 1e-6).sqrt()
            query = query / (query.square().sum() + 1e-6).sqrt() / len(query) ** 0.5
            old = state[head] * decay[row, head]
            state[head] = old + torch.outer(key, beta[row, head] * (v[row, head] - key @ old))
            reads.append(query @ state[head])
        found[row] = torch.stack(reads)
    return found


def whole(rows: int, states: int = 0) -> Walk:
    """One sequence of all rows from nothing, which keeps nothing or the last state."""
    store = torch.full((rows,), -1)
    store[-1] = states - 1
    return Walk(torch.tensor([0, rows]), torch.arange(rows), torch.tensor([-1]), store)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("key_heads", "heads", "dim", "v_dim"), [(1, 1, 8, 16), (2, 6, 12, 48), (4, 4, 128, 144)]
)
def test_it_is_the_definition(
    isa: str, dtype: torch.dtype, key_heads: int, heads: int, dim: int, v_dim: int
) -> None:
    """Two sequences whose rows lie among each other; one begins with a state, both keep some."""
    given = inputs(40, key_heads, heads, dim, v_dim, dtype)
    states = torch.full((5, heads, dim, v_dim), torch.nan)
    states[3] = torch.randn((heads, dim, v_dim), generator=torch.Generator().manual_seed(1))
    orders = [list(range(0, 40, 2)), list(range(39, 0, -2))]
    store = torch.full((40,), -1)
    store[19], store[25], store[39] = 0, 1, 4
    walk = Walk(
        torch.tensor([0, 20, 40]), torch.tensor(orders[0] + orders[1]), torch.tensor([-1, 3]), store
    )
    begin = states[3].double()
    out = gated_delta(*given, states, walk)
    ends = [torch.zeros_like(begin), begin.clone()]
    expected = {}
    for order, end in zip(orders, ends, strict=True):
        expected |= truth(given, order, end)
    exact = torch.stack([expected[row] for row in range(40)])
    scale = float(exact.abs().max())
    limit = (2 * torch.finfo(dtype).eps + 2e-5) * scale
    assert float((out.double() - exact).abs().max()) <= limit
    for index, end in ((0, ends[0]), (4, ends[1])):
        assert float((states[index].double() - end).abs().max()) <= 2e-5 * float(end.abs().max())
    assert states[1].isfinite().all() and states[2].isnan().all()
    theirs = by_reference(DeltaCall(*given, states.clone(), walk))
    assert float((out.double() - theirs.double()).abs().max()) <= limit


@pytest.mark.parametrize("dtype", DTYPES)
def test_cuts_and_neighbours_change_no_bit(isa: str, dtype: torch.dtype) -> None:
    given = inputs(33, 2, 4, 16, 80, dtype)
    states = torch.full((3, 4, 16, 80), torch.nan)
    once = gated_delta(*given, states, whole(33, 3))
    last = states[2].clone()
    for cut in (1, 7, 16, 32):
        parts = []
        for begin, end, load, store in ((0, cut, -1, 1), (cut, 33, 1, 2)):
            mine = tuple(x[begin:end].contiguous() for x in given)
            walk = replace(whole(end - begin, store + 1), load=torch.tensor([load]))
            parts.append(gated_delta(*mine, states, walk))
        assert torch.equal(torch.cat(parts), once) and torch.equal(states[2], last)
    twice = tuple(torch.cat([x, x.flip(0)]) for x in given)
    order = torch.cat([torch.arange(65, 32, -1), torch.arange(33)])
    walk = Walk(torch.tensor([0, 33, 66]), order, torch.tensor([-1, -1]), torch.full((66,), -1))
    both = gated_delta(*twice, states, walk)
    assert torch.equal(both[:33], once) and torch.equal(both[33:].flip(0), once)


def test_a_view_of_a_wider_product(isa: str) -> None:
    given = inputs(9, 2, 2, 16, 32, torch.float32)
    joined = torch.cat([x.flatten(1) for x in given[:3]], dim=1)
    q, k, v = joined.split([32, 32, 64], dim=1)
    views = (q.unflatten(1, (2, 16)), k.unflatten(1, (2, 16)), v.unflatten(1, (2, 32)))
    states = torch.zeros((1, 2, 16, 32))
    assert torch.equal(
        gated_delta(*views, *given[3:], states, whole(9)),
        gated_delta(*given, states, whole(9)),
    )


def test_doors() -> None:
    given, states = inputs(5, 2, 4, 8, 16, torch.float32), torch.zeros((2, 4, 8, 16))
    walk = whole(5)

    def refused(words: str, *args: torch.Tensor | Walk) -> None:
        with pytest.raises(ValueError, match=re.escape(words)):
            gated_delta(*args)  # type: ignore[arg-type]

    q, k, v, decay, beta = given
    refused("q, k [T, Hk, d] and v", q[:4], k, v, decay, beta, states, walk)
    refused("must be a multiple of 2 key heads", q, k, v[:, :3], decay, beta, states, walk)
    refused("share a dtype", q.half(), k, v, decay, beta, states, walk)
    refused("decay must be float32 [5, 4]", q, k, v, decay[:, :2], beta, states, walk)
    refused("beta must be float32 [5, 4]", q, k, v, decay, beta.double(), states, walk)
    refused("states must be float32 [N, 4, 8, 16]", q, k, v, decay, beta, states[:, :2], walk)
    for words, changes in (
        ("a walk is made of int64", {"rows": walk.rows.int()}),
        ("must go over 5 rows", {"rows": walk.rows[:4]}),
        ("cu must ascend from 0 to 5", {"cu": torch.tensor([0, 4])}),
        ("1 sequences need as many loads", {"load": torch.tensor([-1, -1])}),
        ("rows beyond 5", {"rows": walk.rows + 1}),
        ("states beyond 2", {"load": torch.tensor([2])}),
        ("states beyond 2", {"store": torch.full((5,), 2)}),
    ):
        refused(words, *given, states, replace(walk, **changes))
