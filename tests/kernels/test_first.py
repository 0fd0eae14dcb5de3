"""Scaling the first key's weight: every instruction set against attention whose first logit has the
gain's logarithm added, in fp64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saccade.kernels.first import SCALE_FIRST, FirstCall, scale_first
from saccade.kernels.first import triton as by_triton
from saccade.kernels.testing import within_budget

from .paged import DTYPES

CU = torch.tensor([0, 1, 1, 6, 9], dtype=torch.int32)  # the second sequence has no row
LENGTHS = [1, 4, 40, 17]
GAINS = torch.tensor([1.7, 1.0, 0.3, 8.0, 0.05, 1.2])
Pair = tuple[torch.Tensor, torch.Tensor]


def attention(
    q: torch.Tensor,
    keys: list[Pair],
    seen: torch.Tensor,
    gains: torch.Tensor,
    softcap: float | None,
    sink: bool,
) -> Pair:
    """(out, lse) in fp64; gains: [H], whose logarithms the first key's logits get."""
    outs, masses = [], []
    for s, (k, v) in enumerate(keys):
        own = slice(int(CU[s]), int(CU[s + 1]))
        k, v = (x.double().repeat_interleave(2, 1) for x in (k, v))
        scores = torch.einsum("thd,nhd->thn", q[own].double(), k) * q.shape[2] ** -0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores[..., 0] += gains.double().log()
        scores[..., 0].masked_fill_(~seen[own], -torch.inf)
        if sink:
            scores = torch.cat([scores, torch.full_like(scores[..., :1], 0.3)], -1)
        masses.append(scores.logsumexp(-1))
        outs.append(torch.einsum("thn,nhd->thd", scores.softmax(-1)[..., : len(k)], v))
    return torch.cat(outs), torch.cat(masses)


def problem(
    dtype: torch.dtype, dim: int = 16, v_dim: int = 16, softcap: float | None = None, sink=False
) -> tuple[FirstCall, Pair]:
    """A call of scale_first, and what it should give."""
    keys = [(torch.randn(n, 3, dim).to(dtype), torch.randn(n, 3, v_dim).to(dtype)) for n in LENGTHS]
    q = torch.randn(9, 12, dim)[:, ::2].to(dtype)  # heads are apart
    seen = torch.rand(9, 6) < 0.7
    seen[0] = True
    out, lse = attention(q, keys, seen, torch.ones(6), softcap, sink)
    k, v = (torch.stack([pair[i][0] for pair in keys]) for i in (0, 1))
    call = FirstCall(q, out.float(), lse.float(), k, v, CU, GAINS, dim**-0.5, softcap, seen)
    return call, attention(q, keys, seen, GAINS, softcap, sink)


def rows_of(call: FirstCall, rows: slice) -> FirstCall:
    """The call of these rows alone."""
    seen = None if call.seen is None else call.seen[rows]
    return call._replace(q=call.q[rows], out=call.out[rows], lse=call.lse[rows], seen=seen)


def last_row(call: FirstCall) -> FirstCall:
    """Row 6, of the last sequence, alone."""
    cu_rows = torch.tensor([0, 1], dtype=torch.int32)
    return rows_of(call, slice(6, 7))._replace(k=call.k[3:], v=call.v[3:], cu_rows=cu_rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "v_dim"), [(16, 16), (40, 23), (128, 64)])
@pytest.mark.parametrize(("softcap", "sink"), [(None, False), (3.0, False), (None, True)])
def test_as_if_the_logit_had_the_gain_added(
    isa: str, dtype: torch.dtype, dim: int, v_dim: int, softcap: float | None, sink: bool
) -> None:
    call, truth = problem(dtype, dim, v_dim, softcap, sink)
    out, lse = scale_first(*call)
    plain, plain_lse = SCALE_FIRST.reference(call)
    assert out.dtype == dtype
    within_budget(out, plain, truth[0])
    # The share is an exponential of a sum, which four lanes add up in longer runs than torch. Row 0
    # sees one key: scaled down, it leaves a small difference of two large numbers.
    within_budget(lse[1:], plain_lse[1:], truth[1][1:], factor=4.0)
    assert torch.allclose(lse[0], truth[1][0].float(), atol=1e-5)
    assert torch.equal(scale_first(*last_row(call))[0], out[6:7])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_seen_or_has_gain_one_stays(isa: str, dtype: torch.dtype) -> None:
    call, _ = problem(dtype)
    idle = ~call.seen | (GAINS == 1.0)
    out, lse = scale_first(*call)
    assert torch.equal(out[idle], call.out.to(dtype)[idle])
    assert torch.equal(lse[idle], call.lse[idle])
    assert not torch.equal(out[~idle], call.out.to(dtype)[~idle])
    none = rows_of(call, slice(0))._replace(cu_rows=torch.zeros(5, dtype=torch.int32))
    assert scale_first(*none)[0].shape == (0, 6, 16)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("dtype", "dim", "v_dim", "softcap", "seen"),
    [
        (torch.float32, 40, 23, None, True),
        (torch.bfloat16, 16, 16, 3.0, True),
        (torch.float16, 128, 64, None, False),
    ],
    ids=str,
)
def test_in_triton(
    dtype: torch.dtype, dim: int, v_dim: int, softcap: float | None, seen: bool
) -> None:
    """As the reference has it, by its own error; what is idle stays."""
    call, truth = problem(dtype, dim, v_dim, softcap)
    idle = ~call.seen | (GAINS == 1.0)
    if not seen:
        call, idle = call._replace(seen=None), (GAINS == 1.0).expand(9, 6)
    assert by_triton.supports(call) is None
    out, lse = by_triton.scale_first(call)
    plain, plain_lse = SCALE_FIRST.reference(call)
    truth = truth if seen else (plain, plain_lse)
    assert out.dtype == dtype
    within_budget(out, plain, truth[0], factor=4.0)
    within_budget(lse[1:], plain_lse[1:], truth[1][1:], factor=4.0, steps=4.0)
    assert torch.allclose(lse[0], truth[1][0].float(), atol=1e-5)
    # The interpreter cuts bf16 off where a GPU rounds.
    rtol = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(out[idle], call.out.to(dtype)[idle], rtol=rtol, atol=0.0)
    assert torch.equal(lse[idle], call.lse[idle])
    assert torch.equal(by_triton.scale_first(last_row(call))[0], out[6:7])
    assert by_triton.scale_first(rows_of(call, slice(0)))[0].shape == (0, 6, v_dim)
    assert "not contiguous" in str(by_triton.supports(call._replace(out=out.mT)))


def test_threads_do_not_show(isa: str, use_threads: Callable[[int], None]) -> None:
    q, k = torch.randn(3000, 6, 32), torch.randn(1, 3, 32)
    out, lse, cu = torch.randn(3000, 6, 32), torch.rand(3000, 6) + 7, torch.tensor([0, 3000]).int()
    found = []
    for threads in (1, 3):
        use_threads(threads)
        found.append(scale_first(q, out, lse, k, k, cu, GAINS, 0.2))
    assert found[0][1].isfinite().all()
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_one_key_stays_itself(isa: str) -> None:
    """The share of an only key is 1, whatever its gain."""
    q, k, v = torch.randn(1, 6, 16), torch.randn(1, 3, 16), torch.randn(1, 3, 16)
    lse = (q * k.repeat_interleave(2, 1)).sum(-1) * 0.25
    out, cu = v.repeat_interleave(2, 1), torch.tensor([0, 1], dtype=torch.int32)
    found, mass = scale_first(q, out.contiguous(), lse, k, v, cu, GAINS, 0.25)
    assert torch.allclose(found, out, atol=1e-5)
    assert torch.allclose(mass, lse + GAINS.log(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("out", torch.zeros(9, 6, 16).half(), r"out must be torch\.float32 \(9, 6, 16\)"),
        ("lse", torch.zeros(9, 5), r"lse must be .* got .*\(9, 5\)"),
        ("k", torch.zeros(3, 3, 16), r"k must be torch\.float32 \(4, 3, 16\)"),
        ("v", torch.zeros(4, 2, 16), "v must be"),
        ("cu_rows", CU.long(), r"cu_rows torch\.int64"),
        ("gains", torch.ones(5), r"gains must be torch\.float32 \(6,\)"),
        ("scale", 0.0, "scale 0.0 and softcap None must be positive"),
        ("seen", torch.ones(9, 6), r"seen must be torch\.bool"),
    ],
)
def test_doors(name: str, value: Any, words: str) -> None:
    call, _ = problem(torch.float32)
    with pytest.raises(ValueError, match=words):
        scale_first(*call._replace(**{name: value}))
