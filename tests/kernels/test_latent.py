"""Values that are channels of the keys, and linear layers of every head: every instruction set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.attend import BlockLists, attend
from saccade.kernels.linear import linear, linear_heads, pack_heads

from .paged import DTYPES, Problem, make


def latent(dim: int = 48, v_dim: int = 40, **options) -> tuple[Problem, Problem]:
    """A problem whose values are the first v_dim channels of its keys, stored once and twice."""
    lengths, chunks = [2500, 130, 64, 7, 1], [150, 130, 1, 2, 1]
    once = make(lengths, chunks, kv_heads=2, heads=6, dim=dim, v_dim=0, **options)
    twice = make(lengths, chunks, kv_heads=2, heads=6, dim=dim, v_dim=v_dim, **options)
    keys = once.layout.gather_keys(once.k, torch.arange(once.k.shape[0]))
    values, slots = keys[..., :v_dim].nan_to_num(), torch.arange(keys.shape[0])
    once.layout.put(twice.k, twice.v, keys, values, slots)
    return once, replace(twice, q=once.q, k=once.k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page", [16, 64, 256])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("dim", "v_dim"), [(48, 40), (64, 48)])  # the second one fits tiles
def test_values_in_the_keys_are_values(
    isa: str, dtype: torch.dtype, page: int, window: int | None, dim: int, v_dim: int
) -> None:
    """Bit by bit what values of their own give, whatever lies behind the last key."""
    once, twice = latent(dim, v_dim, page=page, dtype=dtype)
    out, lse = once.seeing(window=window).having(value_dim=v_dim).run()
    expected, expected_lse = twice.seeing(window=window).run()
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_in_the_keys_of_listed_blocks(isa: str, dtype: torch.dtype) -> None:
    once, twice = latent(64, 48, dtype=dtype)
    rows = once.q.shape[0]
    ids = torch.tensor([[[0, 3, 7], [1, 3, 9]]], dtype=torch.int32)
    lists = BlockLists(ids, torch.zeros(rows, dtype=torch.int32), 32)
    out, _ = once.seeing(blocks=lists).having(value_dim=48).run()
    expected, _ = twice.seeing(blocks=lists).run()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("value_dim", [0, 49, -1])
def test_the_values_must_lie_in_the_keys(value_dim: int) -> None:
    once, twice = latent()
    with pytest.raises(ValueError, match=r"value_dim must be 1 \.\. 48"):
        once.having(value_dim=value_dim).run()
    with pytest.raises(ValueError, match="of pages without values"):
        attend(twice.layout, twice.q, twice.k, twice.v, twice.keys, 1.0, value_dim=8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5, 70])
@pytest.mark.parametrize(("width", "outs"), [(32, 64), (12, 24), (160, 33)])
def test_linear_of_every_head(
    isa: str, dtype: torch.dtype, rows: int, width: int, outs: int
) -> None:
    """Each head is a linear layer, bit by bit; what lies between the heads stays as it is."""
    x = torch.randn(rows, 5, width + 6).to(dtype)[..., 2 : width + 2]
    weight = pack_heads(torch.randn(5, outs, width).to(dtype))
    room = torch.full((rows, 5, outs + 3), 7.0, dtype=dtype)
    linear_heads(x, weight, room[..., :outs])
    assert bool((room[..., outs:] == 7.0).all())
    for h in range(5):
        assert torch.equal(room[:, h, :outs], linear(x[:, h], weight.head(h)))


def test_doors_of_linear_heads() -> None:
    weight, x = pack_heads(torch.randn(2, 8, 4)), torch.randn(3, 2, 4)
    with pytest.raises(ValueError, match=r"needs x \[T, 2, 4\] and out \[T, 2, 8\]"):
        linear_heads(x, weight, torch.zeros(3, 2, 9))
    with pytest.raises(ValueError, match=r"needs x \[T, 2, 4\]"):
        linear_heads(x[:, :1], weight, torch.zeros(3, 2, 8))
    with pytest.raises(ValueError, match=r"out torch\.bfloat16"):
        linear_heads(x, weight, torch.zeros(3, 2, 8, dtype=torch.bfloat16))
