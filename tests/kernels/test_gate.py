"""Gated sums: every instruction set against fp64."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.gate import GATED_SUM, gated_sum
from saccade.kernels.testing import within_budget

from .paged import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 5, 200])
@pytest.mark.parametrize("dim", [1, 40])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_sums(isa: str, dtype: torch.dtype, rows: int, dim: int, count: int) -> None:
    parts = [torch.randn(rows, 3, dim).to(dtype) for _ in range(count)]
    gates = torch.rand(rows, 3, 4)[..., 4 - count :]  # some of the gates of a layer
    found = gated_sum(parts, gates)
    exact = sum(part.double() * gates[..., i, None] for i, part in enumerate(parts))
    plain = GATED_SUM.reference(tuple(parts), gates)
    within_budget(found, plain, exact)
    if rows > 3:
        alone = gated_sum([part[2:3] for part in parts], gates[2:3])
        assert torch.equal(found[2:3], alone)


def test_gates_of_nothing_give_nothing(isa: str) -> None:
    parts = [torch.randn(7, 2, 33) for _ in range(3)]
    assert bool((gated_sum(parts, torch.zeros(7, 2, 3)) == 0).all())


def test_doors() -> None:
    part, gates = torch.zeros(3, 2, 8), torch.zeros(3, 2, 1)
    with pytest.raises(ValueError, match="0 parts"):
        gated_sum([], gates)
    with pytest.raises(ValueError, match="5 parts"):
        gated_sum([part] * 5, torch.zeros(3, 2, 5))
    with pytest.raises(ValueError, match=r"need gates \(3, 2, 2\), got \(3, 2, 1\)"):
        gated_sum([part, part], gates)
    with pytest.raises(ValueError, match=r"gates torch\.float64"):
        gated_sum([part], gates.double())
    with pytest.raises(ValueError, match="share a shape and a dtype"):
        gated_sum([part, part.half()], torch.zeros(3, 2, 2))
