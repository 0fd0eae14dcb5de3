"""Page writes in Triton, interpreted, beside the reference."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.store import WRITE_PAGES, RowLayout, WriteCall, reference, triton

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:Conversion of an array"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("dim", "v_dim"), [(24, 40), (16, 0)])
@pytest.mark.parametrize("clear", [True, False])
def test_bit_for_bit(dtype, dim, v_dim, clear):
    """Rows in any order, skipped rows, first tokens of pages that their owner left full of NaN."""
    layout, heads = RowLayout(16), 3
    k, v = layout.allocate(5, heads + 1, dim, v_dim, dtype)
    k.fill_(torch.nan)
    v.fill_(torch.nan)
    k, v = k[:, 1:], v[:, 1:]  # pages may hold more heads
    slots = torch.tensor([64, 17, 65, -1, 32, 79, 48])
    rows = torch.randn(len(slots), heads, dim + v_dim).to(dtype)
    new = (rows[..., :dim], rows[..., dim:])
    call = WriteCall(layout, k, v, *new, slots, clear)
    assert WRITE_PAGES.refusals(call)["triton"] is None
    want = k.clone(), v.clone()
    reference.write_pages(call._replace(k_pages=want[0], v_pages=want[1]))
    triton.write_pages(call)
    for got, expected in zip((k, v), want, strict=True):
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(9.0), expected.nan_to_num(9.0))


def test_slots_beyond_the_pages_and_refusals():
    """Nothing is written there, and nothing where the kernels do not serve."""
    layout = RowLayout(16)
    k, v = layout.allocate(2, 1, 16, 16, torch.float32)
    row = torch.ones(2, 1, 16)
    triton.write_pages(WriteCall(layout, k, v, row, row, torch.tensor([32, -7])))
    assert not k.any() and not v.any()
    slots = torch.zeros(4, dtype=torch.int64)[::2]
    refused = WRITE_PAGES.refusals(WriteCall(layout, k, v, k[:, :, 0], v[:, :, 0], slots))
    assert refused["triton"] == "slots are not contiguous"
