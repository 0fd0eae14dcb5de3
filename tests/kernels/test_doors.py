"""What the ops refuse, and that the message helps."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from saccade.kernels.activation import sigmoid_mul, silu_mul
from saccade.kernels.attend import BlockLists
from saccade.kernels.bounds import select_bounded
from saccade.kernels.compressed import ListRule
from saccade.kernels.key_conv import key_conv
from saccade.kernels.merge import merge
from saccade.kernels.moments import MomentRule, far_mass
from saccade.kernels.norm import rms_norm
from saccade.kernels.pooled import Entries, PooledRule, select_pooled
from saccade.kernels.rope import apply_rope
from saccade.kernels.select import Candidates, select_blocks
from saccade.kernels.select_keys import KeyRule, select_keys

from .paged import make

INF, NAN = float("inf"), float("nan")


def int32(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


def refused(text, call, *arguments, **options):
    with pytest.raises(ValueError, match=re.escape(text)):
        call(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scale": 0.0}, "scale and softcap must be positive, got 0.0"),
        ({"scale": -1.0}, "scale and softcap must be positive"),
        ({"scale": NAN}, "scale and softcap must be positive"),
        ({"scale": INF}, "scale and softcap must be positive"),
        ({"softcap": 0.0}, "scale and softcap must be positive"),
        ({"softcap": NAN}, "scale and softcap must be positive"),
        ({"softcap": INF}, "scale and softcap must be positive"),
        ({"sink_logits": torch.zeros(3)}, "sink_logits must be float32 [4], got (3,)"),
        ({"sink_logits": torch.zeros(4).double()}, "sink_logits must be float32 [4]"),
    ],
)
def test_attend_options(options, text):
    """Numbers that make no attention."""
    refused(text, make([70], [5]).having(**options).run)


LISTS = BlockLists(int32([[[0], [1]], [[1], [0]]]), int32([0, 1, 0, 1, 0]), 64)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"window": 0}, "window 0 must be positive"),
        ({"window": -5}, "window -5 must be positive"),
        ({"window": 5, "sinks": -1}, "sinks -1 not negative"),
        ({"positions": torch.arange(4)}, "positions must be int64 [5]"),
        ({"positions": torch.arange(5).int()}, "positions must be int64 [5]"),
        ({"cu_rows": torch.tensor([0, 5])}, "cu_rows and page_table must be int32"),
        ({"page_table": torch.zeros((1, 2)).long()}, "cu_rows and page_table must be int32"),
        ({"page_table": int32([0, 1])}, "page_table must be [S, max pages]"),
        ({"cu_rows": int32([0, 3, 5])}, "and cu_rows [S + 1], got (1, 3) and (3,)"),
        ({"cu_rows": int32([[0, 5]])}, "and cu_rows [S + 1]"),
        ({"cu_rows": int32([0, 4])}, "cu_rows must ascend from 0 to 5, got [0, 4]"),
        ({"cu_rows": int32([0, 6])}, "cu_rows must ascend from 0 to 5"),
        ({"cu_rows": int32([1, 5])}, "cu_rows must ascend from 0 to 5"),
        (
            {"cu_rows": int32([0, 9, 5]), "page_table": int32([[0], [1]])},
            "cu_rows must ascend from 0 to 5",
        ),
        ({"lo": int32([0])}, "lo must be int32 [5]"),
        ({"hi": torch.arange(5)}, "hi must be int32 [5]"),
        ({"blocks": replace(LISTS, block=2)}, "power of two of at least 4, not 2"),
        ({"blocks": replace(LISTS, block=48)}, "power of two of at least 4, not 48"),
        ({"blocks": replace(LISTS, ids=LISTS.ids.long())}, "block ids must be int32"),
        ({"blocks": replace(LISTS, ids=LISTS.ids[:, :1])}, "[lists, 4 or 2, n]"),
        ({"blocks": replace(LISTS, ids=LISTS.ids[0])}, "[lists, 4 or 2, n]"),
        ({"blocks": replace(LISTS, list_of_row=int32([0, 1]))}, "list_of_row must be int32 [5]"),
        ({"blocks": replace(LISTS, list_of_row=None)}, "5 rows need as many lists, got 2"),
        (
            {"blocks": replace(LISTS, list_of_row=int32([0, 1, 2, 0, 0]))},
            "list_of_row holds 0 .. 2, but there are 2 lists",
        ),
        (
            {"blocks": replace(LISTS, list_of_row=int32([0, 1, -1, 0, 0]))},
            "list_of_row holds -1 .. 1, but there are 2 lists",
        ),
    ],
)
def test_attend_keys(changes, text):
    """Index tensors of wrong shape, dtype or content never reach a kernel."""
    refused(text, make([70], [5]).seeing(**changes).run)


def test_attend_tensors():
    """q that does not fit the pages."""
    problem = make([70], [5]).having(scale=1.0)
    for q, text in (
        (torch.zeros((5, 4, 31)), "q (5, 4, 31) must be [T, H, 32]"),
        (torch.zeros((5, 128)), "q (5, 128) must be [T, H, 32]"),
        (torch.zeros((5, 3, 32)), "3 query heads are not a multiple of 2 KV heads"),
        (torch.zeros((5, 0, 32)), "0 query heads are not a multiple of 2 KV heads"),
        (torch.zeros((5, 4, 32)).half(), "q is torch.float16, K torch.float32"),
    ):
        refused(text, replace(problem, q=q).run)
    refused("do not have PageLayout", replace(problem, v=problem.v[:, :, :, :16]).run)


def test_rms_norm():
    """Widths that disagree."""
    x, weight = torch.zeros((3, 8)), torch.zeros(8)
    refused("weight [n], got (3, 8) and (7,)", rms_norm, x, weight[:7], 1e-5)
    refused("x [T, n]", rms_norm, x[0], weight, 1e-5)
    refused("residual (2, 8) differs from x (3, 8)", rms_norm, x, weight, 1e-5, x[:2].clone())


def test_rope():
    """Shapes that would make the kernel turn the wrong elements."""
    q, k, cos = torch.zeros((3, 4, 8)), torch.zeros((3, 2, 8)), torch.zeros((3, 4))
    for arguments, text in (
        ((q[:, 0], k, cos, cos), "needs q [T, H, d] and k [T, Hkv, d]"),
        ((q, k[:, 0], cos, cos), "needs q [T, H, d] and k [T, Hkv, d]"),
        ((q, k, cos[:, None], cos[:, None]), "cos, sin [T, r/2]"),
        ((q, k, cos[:2], cos[:2]), "cos, sin [T, r/2]"),
        ((q, k, cos, cos[:, :3]), "cos, sin [T, r/2]"),
        ((q, k, cos.double(), cos.double()), "float32 cos, sin"),
        ((q, k, cos, cos.double()), "float32 cos, sin"),
        ((q, k[:2], cos, cos), "do not fit 8 rotary dims"),
        ((q[..., :7], k[..., :7], cos, cos), "do not fit 8 rotary dims"),
    ):
        refused(text, apply_rope, *arguments)


def test_silu_mul():
    """An odd width, or no rows of columns."""
    refused("x [T, 2n], got (3, 7)", silu_mul, torch.zeros((3, 7)))
    refused("x [T, 2n]", silu_mul, torch.zeros(8))


def test_sigmoid_mul():
    """Gates that do not divide the channels, or have other rows or another dtype."""
    x = torch.zeros((3, 8))
    for gate in (torch.zeros((3, 3)), torch.zeros((2, 8)), torch.zeros((3, 0)), x[0], x.half()):
        refused("g a divisor of n", sigmoid_mul, x, gate)


def test_key_conv():
    """Heads, dtypes, taps and places that do not belong together."""
    k, history, weight = torch.zeros((5, 2, 8)), torch.zeros((3, 2, 8)), torch.zeros((4, 2, 8))
    before = torch.full((5, 3), -1)
    refused("weight [taps, Hkv, d], got", key_conv, k, history, before, weight[:, :1])
    refused("weight [taps, Hkv, d], got", key_conv, k, history[..., :4], before, weight)
    refused("must share a dtype", key_conv, k.half(), history, before, weight)
    refused("before be int64", key_conv, k, history, before.int(), weight)
    refused("before [T, taps - 1], not (5, 2)", key_conv, k, history, before[:, :2], weight)
    refused("17 taps must be from 1 to 16", key_conv, k, history, before, torch.zeros((17, 2, 8)))


def test_merge():
    """Partial results that do not belong together."""
    out, lse = torch.zeros((3, 2, 8)), torch.zeros((3, 2))
    refused("out (3, 2, 8), (3, 2, 7)", merge, out, lse, out[..., :7], lse)
    refused("lse (3, 2), (3, 1)", merge, out, lse, out, lse[:, :1])
    refused("lse (2, 3), (2, 3)", merge, out, lse.T, out, lse.T)
    refused("must share a dtype", merge, out, lse, out.half(), lse)
    refused("lse must be float32", merge, out, lse.double(), out, lse)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"page_table": torch.zeros((1, 4)).long()}, "must be int32"),
        ({"cu_rows": torch.tensor([0, 1])}, "must be int32"),
        ({"positions": int32([200])}, "positions must be int64"),
        ({"page_table": int32(range(8))[None, ::2]}, "page_table must be contiguous"),
        ({"cu_rows": int32([0, 9, 1, 9])[::2]}, "cu_rows must be contiguous"),
        ({"cu_rows": int32([0, 2])}, "cu_rows must ascend from 0 to 1"),
    ],
)
def test_candidates(changes, text):
    """Every op that chooses looks at them: a kernel would read past what is there."""
    problem = make([256], [1])
    place = problem.keys
    good = Candidates(place.cu_rows, place.positions, place.page_table, 64, 64)
    bad, q, pages = replace(good, **changes), problem.q, problem.k.shape[0]
    means = torch.zeros(pages, 1, 2, 32)
    moments = MomentRule("blocks", 64, 0)
    entries = torch.zeros(pages, 1, 2, moments.entry_rows(32), 32)
    calls = [
        lambda c: select_blocks(q, means, c, 2),
        lambda c: select_bounded(q, torch.stack([means, means], dim=3), c, ListRule(4, 1, 1)),
        lambda c: select_pooled(q, Entries(means, 64, 64), c, PooledRule(3, 1, 1), 0.1),
        lambda c: select_keys(
            problem.layout, q, problem.k, c, KeyRule(4, 1, 1), 0.1, torch.zeros(1, 4)
        ),
        lambda c: far_mass(q, entries, c, moments, "blocks", 64, 0.1),
    ]
    for call in calls:
        call(good)
        refused(text, call, bad)
