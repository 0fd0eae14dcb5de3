"""Layers of experts: the processor's way and the Triton kernels against the definition."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels import native
from saccade.kernels.experts import EXPERTS, ExpertWeights, experts, gpu_scratch_bytes, rule
from saccade.kernels.linear import pack_heads
from saccade.kernels.testing import within_budget

from .paged import DTYPES

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_activation = pytest.mark.parametrize("swiglu", [None, (1.7, 2.0)], ids=["silu", "swiglu"])
interpreted = pytest.mark.usefixtures("interpreted")
SWIGLU = (1.7, 2.0)


def weights_of(dtype, count=5, hidden=70, inner=24, swiglu=None) -> ExpertWeights:
    gate_up = torch.randn(count, 2 * inner, hidden) * 1.5 / hidden**0.5
    down = torch.randn(count, hidden, inner) / inner**0.5
    return ExpertWeights(pack_heads(gate_up.to(dtype)), pack_heads(down.to(dtype)), swiglu)


def as_rows(weights: ExpertWeights) -> ExpertWeights:
    parts = (weights.gate_up.as_rows(torch.clone), weights.down.as_rows(torch.clone))
    return ExpertWeights(*parts, weights.swiglu)


def routed(rows, dtype, weights, per_row=2) -> tuple[torch.Tensor, ...]:
    """x, chosen experts, all of a row different, and their shares."""
    x = torch.randn(rows, weights.hidden).to(dtype)
    ranked = torch.rand(rows, len(weights)).argsort(1)
    return x, ranked[:, :per_row].contiguous(), torch.rand(rows, per_row)


def truth(x, chosen, shares, weights) -> torch.Tensor:
    """By the definition, row by row in fp64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t, j in torch.cartesian_prod(*(torch.arange(n) for n in chosen.shape)).tolist():
        expert = int(chosen[t, j])
        gate, value = (weights.gate_up.head(expert).unpack().double() @ x[t].double()).chunk(2)
        if weights.swiglu is None:
            inner = gate * gate.sigmoid() * value
        else:
            alpha, limit = weights.swiglu
            gate, value = gate.clamp(max=limit), value.clamp(-limit, limit)
            inner = gate * (gate * alpha).sigmoid() * (value + 1.0)
        out[t] += weights.down.head(expert).unpack().double() @ inner * shares[t, j].double()
    return out


def by_triton(x, chosen, shares, weights) -> torch.Tensor:
    kernel = next(each for each in EXPERTS.implementations if each.name == "triton")
    assert kernel.supports(x, chosen, shares, weights) is None
    return kernel.run(x, chosen, shares, weights)


@every_dtype
@every_activation
def test_the_processor_gives_the_definition(isa, dtype, swiglu):
    weights = weights_of(dtype, swiglu=swiglu)
    problem = routed(37, dtype, weights)
    assert EXPERTS.refusals(*problem, weights)["cpu"] is None
    within_budget(
        experts(*problem, weights), EXPERTS.reference(*problem, weights), truth(*problem, weights)
    )


@every_dtype
def test_rows_of_the_processor_depend_on_no_other(isa, dtype):
    """Nor on the place at which a row names an expert."""
    weights = weights_of(dtype, swiglu=SWIGLU)
    x, chosen, shares = routed(29, dtype, weights)
    whole = experts(x, chosen, shares, weights)
    for part in (slice(0, 1), slice(3, 11), slice(28, 29)):
        assert torch.equal(experts(x[part], chosen[part], shares[part], weights), whole[part])
    assert torch.equal(experts(x, chosen.flip(1), shares.flip(1), weights), whole)


@interpreted
@every_dtype
@every_activation
@pytest.mark.parametrize(("rows", "count"), [(5, 60), (40, 17)], ids=["each", "sorted"])
def test_the_gpu_gives_the_definition(dtype, swiglu, rows, count):
    """Choices one by one, and sorted; widths that no tile divides."""
    weights = as_rows(weights_of(dtype, count, hidden=70, inner=40, swiglu=swiglu))
    problem = routed(rows, dtype, weights, per_row=3)
    assert rule.sorted_pays(3 * rows, count) == (count == 17)
    found = by_triton(*problem, weights)
    assert found.dtype == torch.float32
    # The interpreter cuts bf16 off where a GPU rounds.
    factor = 4.0 if dtype == torch.bfloat16 else 2.0
    within_budget(found, EXPERTS.reference(*problem, weights), truth(*problem, weights), factor)


@interpreted
@every_dtype
def test_rows_of_the_gpu_depend_on_no_cut(dtype, monkeypatch):
    """Bit for bit: sorted in tiles of any size, one by one, in passes, and by the places' order."""
    weights = as_rows(weights_of(dtype, count=4, hidden=48, inner=40, swiglu=SWIGLU))
    x, chosen, shares = routed(70, dtype, weights)
    whole = by_triton(x, chosen, shares, weights)
    if dtype != torch.float32:
        assert rule.sizes(140, 4, dtype).rows == 64
    for row in (0, 69):
        part = slice(row, row + 1)
        assert torch.equal(by_triton(x[part], chosen[part], shares[part], weights), whole[part])
    assert torch.equal(by_triton(x, chosen.flip(1), shares.flip(1), weights), whole)
    monkeypatch.setattr(rule, "BUDGET", 40 * rule._row_bytes(2, 48, 40, x.itemsize))
    assert rule.rows_per_pass(2, 48, 40, x.itemsize) == 40
    assert torch.equal(by_triton(x, chosen, shares, weights), whole)
    monkeypatch.setattr("saccade.kernels.experts.triton.sorted_pays", lambda *_: False)
    assert torch.equal(by_triton(x[60:], chosen[60:], shares[60:], weights), whole[60:])


@interpreted
def test_every_size_serves():
    """One expert for all rows: several tiles of its own, none of the others'."""
    weights = as_rows(weights_of(torch.float16, count=3, hidden=32, inner=16))
    x, chosen, shares = routed(300, torch.float16, weights, per_row=1)
    chosen.fill_(1)
    assert rule.sizes(300, 3, x.dtype).rows == 128
    problem = (x, chosen, shares)
    found = by_triton(*problem, weights)
    within_budget(found, EXPERTS.reference(*problem, weights), truth(*problem, weights))


@interpreted
def test_nothing_to_do():
    weights = as_rows(weights_of(torch.float16))
    x, chosen, shares = routed(3, torch.float16, weights)
    assert by_triton(x[:0], chosen[:0], shares[:0], weights).shape == (0, 70)
    assert not bool(by_triton(x, chosen[:, :0], shares[:, :0], weights).any())


@interpreted
def test_strides_and_what_is_not_finite():
    """Rows side by side with others; NaN stays in its row, whatever a tile has beside it."""
    weights = as_rows(weights_of(torch.float16, count=3, hidden=64))
    _, chosen, shares = routed(40, torch.float16, weights)
    wide = torch.randn(40, 100).half()
    wide[7, 20] = torch.nan
    x = wide[:, 10:74]
    found = by_triton(x, chosen, shares, weights)
    clean = by_triton(torch.where(x.isnan(), 0.0, x), chosen, shares, weights)
    assert bool(found[7].isnan().all())
    assert torch.equal(found[:7], clean[:7]) and torch.equal(found[8:], clean[8:])


def test_without_kernels_the_reference_serves(monkeypatch):
    monkeypatch.setattr(native, "kernels", lambda: None)
    weights = weights_of(torch.float32)
    problem = routed(9, torch.float32, weights)
    assert all(EXPERTS.refusals(*problem, weights).values())
    assert torch.equal(experts(*problem, weights), EXPERTS.reference(*problem, weights))


def test_calls_are_checked():
    weights = weights_of(torch.float32)
    x, chosen, shares = routed(4, torch.float32, weights)
    with pytest.raises(ValueError, match="need x"):
        experts(x[:, 1:], chosen, shares, weights)
    with pytest.raises(ValueError, match="need x"):
        experts(x.half(), chosen, shares, weights)
    with pytest.raises(ValueError, match="chosen"):
        experts(x, chosen.int(), shares, weights)
    with pytest.raises(ValueError, match="shares"):
        experts(x, chosen, shares.half(), weights)
    with pytest.raises(ValueError, match="gate_up"):
        ExpertWeights(weights.gate_up, weights.gate_up)
    with pytest.raises(ValueError, match="limit"):
        ExpertWeights(weights.gate_up, weights.down, (1.0, 0.0))


def test_sizes():
    """Choices are sorted where that saves reads; scratch is bounded by the budget of a pass."""
    assert not rule.sorted_pays(8, 128) and not rule.sorted_pays(32, 128)
    assert rule.sorted_pays(64, 128) and rule.sorted_pays(2, 4)
    rows = [rule.sizes(n, 128, torch.bfloat16).rows for n in (8, 2048, 4096, 65536)]
    assert rows == [16, 16, 64, 128]
    assert gpu_scratch_bytes(1, 8, 4096, 1536, 2) == 8 * (4 * 4096 + 2 * 1536 + 48)
    assert rule.BUDGET < gpu_scratch_bytes(1 << 20, 8, 4096, 1536, 2) < 1.01 * rule.BUDGET


def test_heads_are_packed_one_by_one():
    """From a tensor, or from tensors that are read one after the other."""
    whole = torch.randn(3, 7, 20)
    for packed in (pack_heads(whole), pack_heads((each for each in whole), 3)):
        assert len(packed) == 3
        assert torch.equal(packed.as_rows(torch.clone).data, whole)
    with pytest.raises(ValueError, match="weights of"):
        pack_heads([whole[0], whole[1, :5]], 2)
    with pytest.raises(ValueError, match="at least one"):
        pack_heads(whole[:0])
