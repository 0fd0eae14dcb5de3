"""Row by row kernels in Triton, interpreted, against their references."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.activation import SIGMOID_MUL, SILU_MUL, SWIGLU
from saccade.kernels.correct import CORRECT, correct
from saccade.kernels.gate import GATED_SUM
from saccade.kernels.merge import MERGE
from saccade.kernels.norm import RMS_NORM
from saccade.kernels.ops import Op
from saccade.kernels.rope import APPLY_ROPE

from .paged import DTYPES

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow", "ignore:divide by zero"),
]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def both(op: Op, *args: object) -> tuple:
    """The kernel's answer and the reference's; each has tensors of its own."""
    kernel = next(each for each in op.implementations if each.name == "triton")
    copies = [each.clone() if isinstance(each, torch.Tensor) else each for each in args]
    assert kernel.supports(*args) is None
    found, wanted = kernel.run(*args), op.reference(*copies)
    if isinstance(found, tuple):
        return found, wanted
    changed = [each for each in args if isinstance(each, torch.Tensor)]
    before = [each for each in copies if isinstance(each, torch.Tensor)]
    if found is None:
        return tuple(changed), tuple(before)
    return (found, *changed), (wanted, *before)


def check(op: Op, *args: object) -> None:
    """Equal but for the last bit; what is not finite is the same."""
    for found, wanted in zip(*both(op, *args), strict=True):
        assert found.dtype == wanted.dtype
        if not found.is_floating_point():
            assert torch.equal(found, wanted)
            continue
        rtol = 2 * torch.finfo(found.dtype).eps
        assert torch.allclose(found, wanted, rtol=rtol, atol=1e-6, equal_nan=True)


@every_dtype
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm(dtype, offset):
    x, weight = torch.randn(5, 200)[:, :96].to(dtype), torch.randn(96).to(dtype)
    check(RMS_NORM, x, weight, 1e-5, None, offset)
    check(RMS_NORM, x, weight, 1e-5, torch.randn(5, 96).to(dtype), offset)
    check(RMS_NORM, x[:0], weight, 1e-5, None, offset)


@every_dtype
def test_rope(dtype):
    """Three heads and one, 24 of 40 channels rotated, in a slice of a wider tensor."""
    wide = torch.randn(4, 4, 40).to(dtype)
    angles = torch.randn(4, 12)
    q, k = wide[:, :3], wide[:, 3:]
    untouched = wide[..., 24:].clone()
    check(APPLY_ROPE, q, k, angles.cos(), angles.sin())
    assert torch.equal(wide[..., 24:], untouched)


@every_dtype
def test_merge(dtype):
    """Empty sides hold NaN; NaN of a side that is not empty comes through."""
    a, b = torch.randn(2, 7, 3, 40).to(dtype)
    lse_a, lse_b = torch.randn(2, 7, 3)
    lse_a[0], lse_b[1], lse_a[2], lse_b[2] = (-torch.inf,) * 4
    a[0], b[1], a[2], b[2] = (torch.nan,) * 4
    a[3, 1, 5] = torch.nan
    lse_a[4] = 300.0
    lse_b[5] = torch.inf
    check(MERGE, a, lse_a, b, lse_b)
    kernel = next(each for each in MERGE.implementations if each.name == "triton")
    out, lse = kernel.run(a, lse_a, b, lse_b)
    assert torch.equal(out[0], b[0])
    assert torch.equal(lse[1], lse_a[1])


@every_dtype
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_gates(dtype, parts):
    gates = torch.randn(5, 3, 6)[..., :parts]
    check(GATED_SUM, tuple(torch.randn(parts, 5, 3, 24).to(dtype)), gates)


@every_dtype
def test_activations(dtype):
    x = torch.randn(3, 2 * 1500).to(dtype) * 4
    x[0, 0], x[1, 1501], x[2, 7] = torch.nan, torch.inf, -torch.inf
    check(SILU_MUL, x[1:, 8:])
    check(SWIGLU, x, 1.7, 7.0)
    check(SIGMOID_MUL, x, torch.randn(3, 6).to(dtype))


@pytest.mark.parametrize("merged", [True, False])
@every_dtype
def test_corrections(dtype, merged):
    """The kernel against the definition and against the processor's way."""
    out, lse = torch.randn(9, 3, 24), torch.randn(9, 3)
    table, weights = torch.randn(4, 3, 24), torch.randn(4, 3)
    lse[2, 1], weights[1, 0] = -torch.inf, -torch.inf
    source = torch.tensor([0, 1, 1, 2, 3, 4, 4, 0, 2])
    args = (out, lse, table, weights if merged else None, source, dtype)
    check(CORRECT, *args)
    answer = correct(*args)
    assert torch.allclose(answer.float(), CORRECT.reference(*args).float(), atol=2e-2)
    assert torch.equal(answer[5:7], out[5:7].to(dtype))


def test_nothing_to_correct_with():
    out, lse = torch.randn(3, 2, 8), torch.randn(3, 2)
    source = torch.zeros(3, dtype=torch.int64)
    check(CORRECT, out, lse, out[:0], lse[:0], source, torch.float32)


def test_corrections_are_checked():
    out, lse = torch.randn(3, 2, 8), torch.randn(3, 2)
    source = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="do not fit"):
        correct(out, lse, torch.randn(1, 2, 9), None, source, torch.float32)
    with pytest.raises(ValueError, match="weights"):
        correct(out, lse, out, lse[:1], source, torch.float32)
    with pytest.raises(ValueError, match="source"):
        correct(out, lse, out, lse, source.int(), torch.float32)
    with pytest.raises(ValueError, match="float32"):
        correct(out.half(), lse, out, lse, source, torch.float32)
