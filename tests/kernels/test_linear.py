"""Linear layers: against fp64 by the error budget, and bitwise independent of the batch."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.linear import PANEL, linear, pack
from saccade.kernels.testing import within_budget

from .paged import DTYPES

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES = [(1, 1), (2, 31), (32, 32), (33, 65), (64, 96), (100, 7), (576, 130), (1536, 50)]


def numbers(*shape, dtype):
    return torch.randn(shape).to(dtype)


def in_order(x, weight):
    """x @ weight^T in fp32, each product added in turn: the plain loop, and the kernels' order."""
    total = torch.zeros((x.shape[0], weight.shape[0]))
    for each, column in zip(x.float().T, weight.float().T, strict=True):
        total += each[:, None] * column
    return total


def check(x, weight, bias, out_dtype=None):
    """The op's answer, after the comparison with fp64."""
    packed = pack(weight, bias)
    out = linear(x, packed, out_dtype)
    truth = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    wide = in_order(x, weight) + (0 if bias is None else bias.float())
    assert out.dtype == (out_dtype or x.dtype)
    within_budget(out, wide.to(out.dtype), truth)
    return out


@every_dtype
@pytest.mark.parametrize("rows", [1, 2, 7, 33, 130])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_shapes(isa, dtype, rows, inputs, outputs):
    """Odd widths, widths of whole tiles, one row and many; with bias and without."""
    x, weight = numbers(rows, inputs, dtype=dtype), numbers(outputs, inputs, dtype=dtype)
    check(x, weight, None)
    check(x, weight, numbers(outputs, dtype=dtype))
    check(x, weight, numbers(outputs, dtype=torch.float32), out_dtype=torch.float32)


@every_dtype
@pytest.mark.parametrize("inputs", [96, 100])
def test_row_stride(isa, dtype, inputs):
    """x may be some columns of a wider tensor, or one row for all."""
    wide = torch.full((20, inputs + 5), torch.nan).to(dtype)
    x = numbers(20, inputs, dtype=dtype)
    wide[:, 2:-3] = x
    packed = pack(numbers(40, inputs, dtype=dtype))
    assert torch.equal(linear(wide[:, 2:-3], packed), linear(x, packed))
    assert torch.equal(linear(x[:1].expand(9, -1), packed), linear(x[:1], packed).expand(9, -1))


@every_dtype
@pytest.mark.parametrize("inputs", [64, 90])
def test_rows_do_not_depend_on_the_batch(isa, use_threads, dtype, inputs):
    """A row's bits are the same in a batch of any size from 1 to 130, on any number of threads."""
    x, packed = numbers(130, inputs, dtype=dtype), pack(numbers(70, inputs, dtype=dtype))
    whole = linear(x, packed)
    for rows in range(1, 131):
        assert torch.equal(linear(x[:rows], packed), whole[:rows])
        assert torch.equal(linear(x[130 - rows :], packed), whole[130 - rows :])
    for threads in (1, 3, 5):
        use_threads(threads)
        assert torch.equal(linear(x, packed), whole)


@every_dtype
def test_nan_stays_in_its_row(isa, dtype):
    """A NaN or an infinity in one row reaches no other."""
    x, packed = numbers(70, 64, dtype=dtype), pack(numbers(33, 64, dtype=dtype))
    whole = linear(x, packed)
    x[5, 3], x[69, 0] = torch.nan, torch.inf
    out = linear(x, packed)
    assert out[5].isnan().all() and not out[69].isfinite().any()
    good = [row for row in range(70) if row not in (5, 69)]
    assert torch.equal(out[good], whole[good])


@every_dtype
def test_nothing_to_do(isa, dtype):
    """No rows, no inputs (the bias remains) and no outputs."""
    packed = pack(numbers(5, 8, dtype=dtype))
    assert linear(numbers(0, 8, dtype=dtype), packed).shape == (0, 5)
    empty = pack(numbers(5, 0, dtype=dtype), torch.ones(5))
    assert torch.equal(linear(numbers(3, 0, dtype=dtype), empty), torch.ones((3, 5), dtype=dtype))
    assert linear(numbers(3, 8, dtype=dtype), pack(numbers(0, 8, dtype=dtype))).shape == (3, 0)


def test_other_dtypes_take_the_reference(isa):
    """fp64 is not compiled: the reference answers."""
    x, weight = torch.randn((3, 8)).double(), torch.randn((5, 8)).double()
    assert torch.allclose(linear(x, pack(weight)), x @ weight.T, atol=1e-5)


@every_dtype
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (31, 7), (32, 8), (33, 9), (100, 64)])
def test_pack_round_trip(dtype, outputs, inputs):
    """`unpack` gives the weight back; padding is zero and the size is as told."""
    weight, bias = numbers(outputs, inputs, dtype=dtype), numbers(outputs, dtype=dtype)
    packed = pack(weight, bias)
    assert torch.equal(packed.unpack(), weight) and torch.equal(packed.bias, bias.float())
    assert packed.data.double().sum() == pytest.approx(float(weight.double().sum()), abs=1e-9)
    assert packed.nbytes == packed.data.nbytes + 4 * outputs
    assert packed.data.shape[0] == -(-outputs // PANEL)
    assert torch.equal(pack(weight.T.contiguous().T).unpack(), weight)


def test_door():
    """Wrong shapes and dtypes are refused with the numbers."""
    packed = pack(torch.randn((5, 8)))
    for x, text in (
        (torch.randn((2, 7)), r"x \[T, 8\], got \(2, 7\)"),
        (torch.randn((8,)), r"x \[T, 8\]"),
        (torch.randn((2, 8)).half(), "x is torch.float16, the weight torch.float32"),
    ):
        with pytest.raises(ValueError, match=text):
            linear(x, packed)
    with pytest.raises(ValueError, match=r"weight \[out, in\]"):
        pack(torch.randn((5, 8, 1)))
    with pytest.raises(ValueError, match=r"bias \[out\], got \(5, 8\) and \(8,\)"):
        pack(torch.randn((5, 8)), torch.randn(8))
