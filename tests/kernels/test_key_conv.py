"""Convolution of keys: against torch's own depthwise convolution, in any cut, at any place."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.key_conv import KEY_CONV, MOST_TAPS, key_conv
from saccade.kernels.testing import within_budget

from .paged import DTYPES

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def numbers(*shape, dtype):
    return torch.randn(shape).to(dtype)


def one_shot(k, weight):
    """The whole sequence by torch, in the precision of k."""
    taps, channels = weight.shape[0], weight[0].numel()
    x = k.flatten(1).T[None]
    kernel = weight.flip(0).flatten(1).T[:, None].to(x)
    mixed = torch.nn.functional.conv1d(x, kernel, padding=taps - 1, groups=channels)
    mixed = mixed[0, :, : k.shape[0]].T.view(k.shape)
    return k + torch.nn.functional.silu(mixed)


def places(rows, taps, known=0):
    """`before` of consecutive rows; the `known` keys before them lie in history, latest first."""
    at = torch.arange(rows)[:, None] - torch.arange(1, taps)
    return torch.where(at >= 0, at, torch.where(-at <= known, at - 1, -1))


@every_dtype
@pytest.mark.parametrize("shape", [(1, 1), (2, 8), (3, 17), (2, 64)])
@pytest.mark.parametrize("taps", [1, 2, 3, 5, MOST_TAPS])
@pytest.mark.parametrize("rows", [0, 1, 30])
def test_the_whole_sequence(isa, dtype, shape, taps, rows):
    k, weight = numbers(rows, *shape, dtype=dtype), numbers(taps, *shape, dtype=dtype)
    none = k.new_zeros((0, *shape))
    out = key_conv(k, none, places(rows, taps), weight)
    if rows:
        truth = one_shot(k.double(), weight)
        same_precision = one_shot(k.float(), weight).to(dtype)
        within_budget(out, same_precision, truth, factor=2.0)
        within_budget(
            KEY_CONV.reference(k, none, places(rows, taps), weight), same_precision, truth
        )
    assert out.shape == k.shape and out.dtype == dtype


@every_dtype
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 17, 29])
def test_a_cut_changes_no_bit(isa, dtype, compiled, cut):
    """The rows after a cut with the keys before it in history, rows apart in a wider matrix."""
    run = key_conv if compiled else KEY_CONV.reference
    taps, k = 5, numbers(30, 2, 24, dtype=dtype)
    weight, none = numbers(taps, 2, 24, dtype=dtype), k.new_zeros((0, 2, 24))
    whole = run(k, none, places(30, taps), weight)
    history = k[max(0, cut - taps + 1) : cut].flip(0).contiguous()
    wide = torch.full((30 - cut, 60), torch.nan).to(dtype)
    wide[:, 5:53] = k[cut:].flatten(1)
    rows = wide[:, 5:53].unflatten(1, (2, 24))
    out = run(rows, history, places(30 - cut, taps, history.shape[0]), weight)
    assert torch.equal(out, whole[cut:])


@every_dtype
def test_a_nan_reaches_only_those_after_it(isa, dtype):
    k, weight = numbers(9, 2, 8, dtype=dtype), numbers(3, 2, 8, dtype=dtype)
    k[4, 1, 3] = torch.nan
    bad = key_conv(k, k.new_zeros((0, 2, 8)), places(9, 3), weight).isnan()
    assert bad[4:7, 1, 3].all() and bad.sum() == 3


def test_no_token_before_adds_nothing(isa):
    """Nowhere means zero, whatever history holds."""
    k, weight = numbers(1, 1, 8, dtype=torch.float32), numbers(4, 1, 8, dtype=torch.float32)
    poison = torch.full((2, 1, 8), torch.nan)
    out = key_conv(k, poison, torch.full((1, 3), -1), weight)
    assert torch.equal(out, key_conv(k, poison, torch.zeros((1, 0), dtype=torch.int64), weight[:1]))


def test_other_dtypes_take_the_reference(isa):
    k, weight = torch.randn((6, 2, 8)).double(), torch.randn((3, 2, 8)).double()
    out = key_conv(k, k[:0], places(6, 3), weight)
    assert out.dtype == torch.float64
    assert torch.allclose(out, one_shot(k, weight), atol=1e-5)
