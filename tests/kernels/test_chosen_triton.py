"""Projections of chosen rows in Triton, interpreted, against the references."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.chosen import (
    ADD_CHOSEN,
    PROJECT_CHOSEN,
    add_chosen,
    project_chosen,
    reference,
)
from saccade.kernels.linear import PackedHeads, pack_heads

from .paged import DTYPES

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array"),
]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def heads_of(heads: int, outputs: int, inputs: int, dtype: torch.dtype) -> PackedHeads:
    """Weights as rows."""
    weights = (torch.randn(heads, outputs, inputs) / inputs**0.5).to(dtype)
    return pack_heads(weights).as_rows(lambda each: each)


def some_choice(heads: int, rows: int) -> torch.Tensor:
    """A head that chose none of the rows, one that chose all, and one that chose the last."""
    chosen = torch.rand(heads, rows) < 0.3
    chosen[0], chosen[1] = False, True
    chosen[2, :], chosen[2, -1] = False, True
    return chosen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 19])
def test_rows_and_back(dtype: torch.dtype, rows: int) -> None:
    """Widths that are no multiple of a tile; x a piece of something wider; what a head did not
    choose is 0, and is not read: its weights are NaN.
    """
    qkv, out = heads_of(4, 72, 200, dtype), heads_of(4, 200, 24, dtype)
    chosen = some_choice(4, rows)
    x = torch.randn(rows, 256).to(dtype)[:, :200]
    found = project_chosen(x, qkv, chosen)
    assert PROJECT_CHOSEN.refusals(x, qkv, chosen)["triton"] is None
    wanted = reference.project_chosen(x, qkv, chosen)
    assert (found.float() - wanted.float()).abs().max() < LIMITS[dtype]
    assert not found[~chosen].any()

    y, total = torch.randn(4, rows, 24).to(dtype), torch.randn(rows, 200)
    y[~chosen] = torch.nan
    ours, theirs = total.clone(), total.clone()
    assert ADD_CHOSEN.refusals(ours, y, out, chosen)["triton"] is None
    add_chosen(ours, y, out, chosen)
    reference.add_chosen(theirs, y, out, chosen)
    assert (ours - theirs).abs().max() < LIMITS[dtype]
    qkv.data[0] = torch.nan
    out.data[0] = torch.nan
    again = total.clone()
    add_chosen(again, y, out, chosen)
    assert torch.equal(project_chosen(x, qkv, chosen), found) and torch.equal(again, ours)


def test_doors() -> None:
    weight, chosen = heads_of(3, 8, 16, torch.float32), torch.ones(3, 2, dtype=torch.bool)
    x, y, total = torch.zeros(2, 16), torch.zeros(3, 2, 16), torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"x \(3, 16\) must be \[2, 16\]"):
        project_chosen(torch.zeros(3, 16), weight, chosen)
    with pytest.raises(ValueError, match=r"chosen must be bool \[3, T\]"):
        project_chosen(x, weight, chosen[:2])
    with pytest.raises(ValueError, match=r"weights must be rows of torch.float16"):
        project_chosen(x.half(), weight, chosen)
    with pytest.raises(ValueError, match=r"y \(3, 1, 16\) must be \[3, 2, 16\]"):
        add_chosen(total, y[:, :1], weight, chosen)
    with pytest.raises(ValueError, match=r"total must be float32 \[2, 8\]"):
        add_chosen(total.double(), y, weight, chosen)
    wide = PackedHeads(weight.data.repeat(1, 1, 2)[..., :16], 16, 8)
    assert PROJECT_CHOSEN.refusals(x, wide, chosen)["triton"] == "weights are not contiguous"
