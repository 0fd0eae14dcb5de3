"""Row-wise kernels: norm, rotary embedding, gates and merge against their formulas in fp64."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.activation import SIGMOID_MUL, sigmoid_mul, silu_mul, swiglu
from saccade.kernels.merge import merge
from saccade.kernels.norm import rms_norm
from saccade.kernels.rope import apply_rope
from saccade.kernels.testing import within_budget

from .paged import DTYPES

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_width = pytest.mark.parametrize("width", [1, 3, 16, 17, 31, 64, 576, 20000])
EPS = 1e-5


def numbers(*shape, dtype):
    return torch.randn(shape).to(dtype)


def strided(x):
    """The same values in rows that lie further apart, between NaNs."""
    wide = torch.full((x.shape[0], x.shape[1] + 7), torch.nan).to(x.dtype)
    wide[:, 3:-4] = x
    return wide[:, 3:-4]


def normed(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


@every_dtype
@every_width
@pytest.mark.parametrize("rows", [0, 1, 5, 100])
def test_rms_norm(isa, dtype, width, rows):
    """x / rms(x) * weight, from rows of any stride."""
    rows = min(rows, 3) if width > 1000 else rows
    x, weight = numbers(rows, width, dtype=dtype), numbers(width, dtype=dtype)
    truth = normed(x.double(), weight.double())
    out = rms_norm(x, weight, EPS)
    within_budget(out, normed(x.float(), weight.float()).to(dtype), truth)
    assert torch.equal(rms_norm(strided(x), weight, EPS), out)


@every_dtype
@every_width
def test_rms_norm_with_residual(isa, dtype, width):
    """The residual grows in place by x, rounded; the rounded sum is what is normed."""
    x, residual = numbers(9, width, dtype=dtype), strided(numbers(9, width, dtype=dtype))
    weight = numbers(width, dtype=dtype)
    total = (residual.float() + x.float()).to(dtype)
    out = rms_norm(strided(x), weight, EPS, residual)
    assert torch.equal(residual, total)
    assert torch.equal(out, rms_norm(total, weight, EPS))


@every_dtype
def test_rms_norm_of_hard_rows(isa, dtype):
    """A row of zeros, large values, and a NaN that stays in its row."""
    x = numbers(4, 64, dtype=dtype)
    x[0], x[1], x[2, 5] = 0, 200.0, torch.nan
    out = rms_norm(x, torch.ones(64, dtype=dtype), EPS)
    assert torch.equal(out[0], x[0]) and torch.equal(out[1], torch.ones_like(x[1]))
    assert out[2].isnan().all() and out[3].isfinite().all()


@every_dtype
@every_width
def test_rms_norm_of_weights_around_zero(isa, dtype, width):
    """x / rms(x) * (1 + weight): the sum is not rounded to the weights' precision."""
    x, weight = numbers(5, width, dtype=dtype), numbers(width, dtype=dtype) * 0.1
    truth = normed(x.double(), 1 + weight.double())
    out = rms_norm(x, weight, EPS, None, 1.0)
    # torch's own sums of fp32 are nearer to exact on some processors than on others.
    same = normed(x.float(), 1 + weight.float()).to(dtype)
    within_budget(out, same, truth, steps=2.0 if dtype == torch.float32 else 1.0)


def rotated(x, cos, sin):
    """Rotation of the pairs (i, i + half) as multiplication of complex numbers."""
    half, x = cos.shape[1], x.double()
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half])
    turned = pairs * torch.complex(cos.double(), sin.double())[:, None]
    return torch.cat([turned.real, turned.imag, x[..., 2 * half :]], dim=-1)


@every_dtype
@pytest.mark.parametrize("dim", [2, 32, 40, 64, 96, 128])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_rope(isa, dtype, dim, share):
    """In place, on the first part of each head, q and k being columns of one projection."""
    half = max(1, int(dim * share) // 2)
    angle = torch.rand((11, half)) * 100
    cos, sin = angle.cos(), angle.sin()
    fused = numbers(11, 5 * dim + 3, dtype=dtype)
    q, k = fused[:, : 3 * dim].unflatten(1, (3, dim)), fused[:, 3 * dim : -3].unflatten(1, (2, dim))
    before, rest = [x.clone() for x in (q, k)], fused[:, -3:].clone()
    apply_rope(q, k, cos, sin)
    for old, new in zip(before, (q, k), strict=True):
        truth = rotated(old, cos, sin)
        within_budget(new, truth.to(dtype), truth)
        assert torch.equal(new[..., 2 * half :], old[..., 2 * half :])
    assert torch.equal(fused[:, -3:], rest)


@every_dtype
def test_rope_rows_are_independent(isa, dtype):
    """A token is turned the same alone and in a batch."""
    q, k = numbers(300, 4, 64, dtype=dtype), numbers(300, 2, 64, dtype=dtype)
    angle = torch.rand((300, 32))
    cos, sin = angle.cos(), angle.sin()
    one_q, one_k = q[77:78].clone(), k[77:78].clone()
    apply_rope(q, k, cos, sin)
    apply_rope(one_q, one_k, cos[77:78], sin[77:78])
    assert torch.equal(one_q, q[77:78]) and torch.equal(one_k, k[77:78])


@every_dtype
@every_width
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_silu_mul(isa, dtype, width, rows):
    """silu(gate) * up, from rows of any stride."""
    x = numbers(min(rows, 3) if width > 1000 else rows, 2 * width, dtype=dtype)
    x *= 3
    gate, up = x.double().chunk(2, dim=-1)
    narrow = [half.float() for half in x.chunk(2, dim=-1)]
    same_precision = (torch.nn.functional.silu(narrow[0]) * narrow[1]).to(dtype)
    out = silu_mul(x)
    within_budget(out, same_precision, gate * torch.sigmoid(gate) * up, factor=2.0)
    assert torch.equal(silu_mul(strided(x)), out)


@every_dtype
def test_silu_mul_at_the_ends(isa, dtype):
    """Far gates saturate, NaN stays where it is."""
    gate = torch.tensor([-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4, torch.nan] * 5)
    x = torch.cat([gate, torch.ones(40)]).to(dtype)[None]
    out, gate = silu_mul(x)[0], x[0, :40]
    assert torch.equal(out[gate >= 0], gate[gate >= 0]) and (out[gate < 0].abs() <= 1e-30).all()
    assert torch.equal(out.isnan(), gate.isnan())


@every_dtype
@every_width
def test_swiglu(isa, dtype, width):
    """Clamped on the way; most of these numbers are beyond the limit somewhere."""
    x = numbers(3, 2 * width, dtype=dtype) * 3
    results = []
    for wide in (x.float(), x.double()):
        gate, up = wide.chunk(2, dim=-1)
        gate, up = gate.clamp(max=2.5), up.clamp(-2.5, 2.5)
        results.append(gate * torch.sigmoid(1.702 * gate) * (up + 1))
    out = swiglu(x, 1.702, 2.5)
    within_budget(out, results[0].to(dtype), results[1], factor=2.0)
    assert torch.equal(swiglu(strided(x), 1.702, 2.5), out)
    x[1, 0] = torch.nan
    assert swiglu(x, 1.702, 2.5).isnan().nonzero().tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="limit > 0"):
        swiglu(x, 1.702, 0.0)


@every_dtype
@pytest.mark.parametrize(("width", "span"), [(1, 1), (37, 1), (96, 1), (96, 32), (90, 18), (5, 5)])
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_sigmoid_mul(isa, dtype, width, span, rows):
    """A gate per channel, or per `span` of them; rows of any stride."""
    x, gate = numbers(rows, width, dtype=dtype), numbers(rows, width // span, dtype=dtype) * 3
    out = sigmoid_mul(x, gate)
    wide = gate.repeat_interleave(span, dim=1)
    same_precision = (x.float() * wide.float().sigmoid()).to(dtype)
    # An exponential, a sum, a quotient and a product, and at width 1 one element alone.
    within_budget(out, same_precision, x.double() * wide.double().sigmoid(), steps=2.0)
    within_budget(
        SIGMOID_MUL.reference(x, gate), same_precision, x.double() * wide.double().sigmoid()
    )
    assert torch.equal(sigmoid_mul(strided(x), strided(gate)), out)


@every_dtype
@pytest.mark.parametrize("gates", [1, 77])
def test_sigmoid_mul_at_any_place(isa, dtype, gates):
    """An element is gated alike wherever it lies: in the middle of a row, at its end, alone."""
    x, gate = numbers(1, 1, dtype=dtype), numbers(1, 1, dtype=dtype)
    row = sigmoid_mul(x.expand(3, 77).contiguous(), gate.expand(3, gates).contiguous())
    assert torch.equal(row, sigmoid_mul(x, gate).expand(3, 77))
    row = SIGMOID_MUL.reference(x.expand(3, 77), gate.expand(3, gates))
    assert torch.equal(row, SIGMOID_MUL.reference(x, gate).expand(3, 77))


@every_dtype
def test_sigmoid_mul_at_the_ends(isa, dtype):
    """Far gates close or open entirely, NaN stays where it is."""
    gate = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4, torch.nan] * 5).to(dtype)[None]
    out = sigmoid_mul(torch.ones_like(gate), gate)
    assert torch.equal(out[gate == 0], torch.full((5,), 0.5, dtype=dtype))
    assert (out[gate > 0] == 1).all() and (out[gate < 0] <= 1e-30).all()
    assert torch.equal(out.isnan(), gate.isnan())


def partial(rows, heads, dim, dtype):
    """A partial attention result; every third row is empty and holds NaN."""
    out, lse = numbers(rows, heads, dim, dtype=dtype), torch.randn((rows, heads)) * 20
    return out, lse


@every_dtype
@pytest.mark.parametrize("dim", [1, 15, 16, 64, 80, 129])
def test_merge(isa, dtype, dim):
    """The mean of both sides, weighted by exp(lse)."""
    (a, la), (b, lb) = partial(50, 3, dim, dtype), partial(50, 3, dim, dtype)
    out, lse = merge(a, la, b, lb)
    share = torch.softmax(torch.stack([la, lb]).double(), dim=0)[..., None]
    truth = a.double() * share[0] + b.double() * share[1]
    narrow = (a.float() * share[0].float() + b.float() * share[1].float()).to(dtype)
    within_budget(out, narrow, truth)
    exact = torch.logaddexp(la.double(), lb.double())
    within_budget(lse, torch.logaddexp(la, lb), exact)


@every_dtype
@pytest.mark.parametrize("held", [0.0, torch.nan])
def test_merge_with_empty_sides(isa, dtype, held):
    """An empty side, whatever it holds, leaves the other bit for bit; two give 0 and -inf."""
    (a, la), (b, lb) = partial(12, 2, 33, dtype), partial(12, 2, 33, dtype)
    a[0::3], la[0::3] = held, -torch.inf
    b[1::3], lb[1::3] = held, -torch.inf
    a[2::6], la[2::6], b[2::6], lb[2::6] = held, -torch.inf, held, -torch.inf
    out, lse = merge(a, la, b, lb)
    assert torch.equal(out[0::3], b[0::3]) and torch.equal(lse[0::3], lb[0::3])
    assert torch.equal(out[1::3], a[1::3]) and torch.equal(lse[1::3], la[1::3])
    assert (out[2::6] == 0).all() and (lse[2::6] == -torch.inf).all()
    assert out[5::6].isfinite().all()


@every_dtype
def test_merge_keeps_a_nan(isa, dtype):
    """A side that is NaN is not an empty one, whatever is merged with it, and then again."""
    (a, la), (b, lb) = partial(6, 2, 33, dtype), partial(6, 2, 33, dtype)
    a[:], la[:] = torch.nan, torch.nan
    lb[::2] = -torch.inf
    for one, other in (((a, la), (b, lb)), ((b, lb), (a, la))):
        out, lse = merge(*one, *other)
        assert out.isnan().all() and lse.isnan().all()
        out, lse = merge(out, lse, torch.zeros_like(b), torch.full_like(lb, -torch.inf))
        assert out.isnan().all() and lse.isnan().all()


def test_other_dtypes_take_the_reference(isa):
    """fp64 and strides that the kernels do not read: the references answer."""
    x = torch.randn((4, 8)).double()
    assert torch.allclose(rms_norm(x, torch.ones(8).double(), EPS), normed(x, 1.0), atol=1e-5)
    assert silu_mul(x).dtype == sigmoid_mul(x, x).dtype == torch.float64
    lse = torch.zeros((4, 2))
    assert merge(x.view(4, 2, 4), lse, x.view(4, 2, 4), lse)[0].dtype == torch.float64
    y = torch.randn((8, 4)).T
    weight = torch.randn(16)[::2]
    assert torch.allclose(rms_norm(y, weight, EPS), normed(y, weight), atol=1e-5)
    assert torch.allclose(silu_mul(y), silu_mul(y.contiguous()), atol=1e-5)
