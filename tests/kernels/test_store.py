"""Writing K and V into pages: round trips, skipped rows, clearing, strides, and the door."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.kernels.store import WRITE_PAGES, PageLayout, WriteCall, write_pages

from .paged import DTYPES, slots_of

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
PAGES, HEADS = 6, 3


def fresh(layout, dtype, dim=34, v_dim=17):
    """Pages full of NaN, as a former owner may leave them."""
    k, v = layout.allocate(PAGES, HEADS, dim, v_dim, dtype)
    return k.fill_(torch.nan), v.fill_(torch.nan)


def tokens(rows, dtype, dim=34, v_dim=17):
    return torch.randn((rows, HEADS, dim)).to(dtype), torch.randn((rows, HEADS, v_dim)).to(dtype)


def equal(a, b):
    """Equal where NaN equals NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@every_dtype
@pytest.mark.parametrize("page", [16, 32, 64, 128, 256])
def test_round_trip(isa, dtype, page):
    """What was written comes back in order of position; the rest of a fresh V page is zero."""
    layout = PageLayout(page)
    k_pages, v_pages = fresh(layout, dtype)
    length = 3 * page + page // 2 + 1
    k, v = tokens(length, dtype)
    ids = torch.tensor([5, 0, 3, 1])
    slots = slots_of(ids, torch.arange(length), page)
    for begin, end in ((0, 7), (7, 8), (8, page + 3), (page + 3, length)):  # unaligned runs
        write_pages(layout, k_pages, v_pages, k[begin:end], v[begin:end], slots[begin:end])
    got_k, got_v = layout.gather(k_pages, v_pages, ids)
    assert torch.equal(got_k[:length], k) and torch.equal(got_v[:length], v)
    assert not got_v[length:].any()
    assert k_pages[[2, 4]].isnan().all() and v_pages[[2, 4]].isnan().all()


@every_dtype
@pytest.mark.parametrize(("dim", "v_dim", "page"), [(34, 17, 16), (64, 128, 64), (96, 72, 256)])
def test_many_rows(isa, dtype, dim, v_dim, page):
    """Threads share them in pieces that end within pages, some of which are skipped or shuffled."""
    rows, layout = 1301, PageLayout(page)
    pages = -(-rows // page) + 1
    k, v = tokens(rows, dtype, dim, v_dim)
    slots = slots_of(torch.randperm(pages), torch.arange(3, rows + 3), page)
    slots[100:107], slots[700:720] = -1, slots[700:720].flip(0)
    ours, theirs = (layout.allocate(pages, HEADS, dim, v_dim, dtype) for _ in range(2))
    for each in (*ours, *theirs):
        each.fill_(torch.nan)
    write_pages(layout, *ours, k, v, slots)
    WRITE_PAGES.reference(WriteCall(layout, *theirs, k, v, slots))
    assert equal(ours[0], theirs[0]) and equal(ours[1], theirs[1])


@every_dtype
@settings(max_examples=8)
@given(data=st.data())
def test_any_slots(isa, dtype, data):
    """Any distinct slots in any order, some rows skipped: as the reference writes them."""
    rows = data.draw(st.integers(0, 60))
    chosen = data.draw(st.permutations(range(PAGES * 16)))[:rows]
    skip = data.draw(st.sets(st.integers(0, 59)))
    slots = torch.tensor([-1 if i in skip else s for i, s in enumerate(chosen)], dtype=torch.int64)
    layout, (k, v) = PageLayout(16), tokens(rows, dtype)
    ours, theirs = fresh(layout, dtype), fresh(layout, dtype)
    write_pages(layout, *ours, k, v, slots)
    WRITE_PAGES.reference(WriteCall(layout, *theirs, k, v, slots))
    assert equal(ours[0], theirs[0]) and equal(ours[1], theirs[1])


@every_dtype
def test_offset_zero_clears_the_page(isa, dtype):
    """The first token of a page clears V there, of every head; a later one clears nothing."""
    layout, (k, v) = PageLayout(16), tokens(1, dtype)
    k_pages, v_pages = fresh(layout, dtype)
    write_pages(layout, k_pages, v_pages, k, v, torch.tensor([2 * 16]))
    _, got = layout.gather(k_pages, v_pages, torch.tensor([2]))
    assert torch.equal(got[0], v[0]) and not got[1:].any()
    write_pages(layout, k_pages, v_pages, k, v, torch.tensor([3 * 16 + 5]))
    _, got = layout.gather(k_pages, v_pages, torch.tensor([3]))
    assert torch.equal(got[5], v[0]) and got[:5].isnan().all() and got[6:].isnan().all()


@every_dtype
def test_a_page_in_use_is_not_cleared(isa, dtype):
    """A token that takes another one's place at offset 0 leaves the rest of its page alone."""
    layout, (k, v) = PageLayout(16), tokens(17, dtype)
    k_pages, v_pages = fresh(layout, dtype)
    write_pages(layout, k_pages, v_pages, k[:16], v[:16], torch.arange(16))
    write_pages(layout, k_pages, v_pages, k[16:], v[16:], torch.tensor([0]), False)
    got_k, got_v = layout.gather(k_pages, v_pages, torch.tensor([0]))
    assert torch.equal(got_k, torch.cat([k[16:], k[1:16]]))
    assert torch.equal(got_v, torch.cat([v[16:], v[1:16]]))


@every_dtype
def test_rows_of_one_page_in_any_order(isa, dtype):
    """Clearing comes before writing, even where the first token of a page comes last."""
    layout, (k, v) = PageLayout(16), tokens(16, dtype)
    k_pages, v_pages = fresh(layout, dtype)
    write_pages(layout, k_pages, v_pages, k, v, torch.arange(15, -1, -1))
    got_k, got_v = layout.gather(k_pages, v_pages, torch.tensor([0]))
    assert torch.equal(got_k.flip(0), k) and torch.equal(got_v.flip(0), v)


@every_dtype
def test_slots_outside_the_pool_are_skipped(isa, dtype):
    """No slot, negative or too large, is written outside the pool."""
    layout, (k, v) = PageLayout(16), tokens(6, dtype)
    k_pages, v_pages = fresh(layout, dtype)
    slots = torch.tensor([-1, -(2**62), PAGES * 16, 2**40, 2**62, -16])
    write_pages(layout, k_pages, v_pages, k, v, slots)
    assert k_pages.isnan().all() and v_pages.isnan().all()


@every_dtype
def test_strided_k_and_v(isa, dtype):
    """K and V as the model passes them: columns of the fused projection."""
    layout, (k, v) = PageLayout(32), tokens(40, dtype)
    width = HEADS * 34
    fused = torch.full((40, 5 + width + HEADS * 17), torch.nan, dtype=dtype)
    fused[:, 5 : 5 + width], fused[:, 5 + width :] = k.flatten(1), v.flatten(1)
    ours, theirs = fresh(layout, dtype), fresh(layout, dtype)
    slots = torch.arange(40) + 9
    strided_k = fused[:, 5 : 5 + width].unflatten(1, (HEADS, 34))
    strided_v = fused[:, 5 + width :].unflatten(1, (HEADS, 17))
    write_pages(layout, *ours, strided_k, strided_v, slots)
    write_pages(layout, *theirs, k, v, torch.stack([slots, slots], dim=1)[:, 0])
    assert equal(ours[0], theirs[0]) and equal(ours[1], theirs[1])


def test_layout():
    """Sizes that pages can have, and the bytes they take."""
    layout = PageLayout(32)
    k, v = layout.allocate(3, 2, 64, 48, torch.bfloat16)
    assert k.nbytes + v.nbytes == 3 * layout.bytes_per_page(2, 64, 48, torch.bfloat16)
    assert layout.dims(k, v) == (64, 48)
    for size in (0, 8, 48, 512, -64):
        with pytest.raises(ValueError, match="page_size must be"):
            PageLayout(size)
    with pytest.raises(ValueError, match="head_dim must be even"):
        layout.allocate(1, 1, 33, 32, torch.bfloat16)


@pytest.mark.parametrize("wrong", [16, 64])
@every_dtype
def test_pages_of_another_size_are_refused(dtype, wrong):
    """K or V pages of another page size never reach a kernel."""
    layout, other = PageLayout(32), PageLayout(wrong)
    k, v = layout.allocate(2, 1, 32, 32, dtype)
    other_k, other_v = other.allocate(2, 1, 32, 32, dtype)
    for pages in ((k, other_v), (other_k, v), (other_k, other_v), (k, v[:1]), (k[0], v[0])):
        with pytest.raises(ValueError, match="do not have PageLayout"):
            layout.dims(*pages)


def test_door():
    """Tensors that do not fit the pages are refused with their shapes."""
    layout = PageLayout(16)
    k_pages, v_pages = layout.allocate(2, 2, 8, 4, torch.float32)
    k, v, slots = torch.zeros((3, 2, 8)), torch.zeros((3, 2, 4)), torch.arange(3)
    for arguments, text in (
        ((k[:, :1], v, slots), "do not fit pages"),
        ((k, v[..., :3], slots), "do not fit pages"),
        ((k[:2], v, slots), "do not fit pages"),
        ((k, v, slots[:2]), "do not fit pages"),
        ((k.half(), v, slots), "must have the pages' dtype"),
        ((k, v.double(), slots), "must have the pages' dtype"),
        ((k, v, slots.int()), "slots must be int64"),
    ):
        with pytest.raises(ValueError, match=text):
            write_pages(layout, k_pages, v_pages, *arguments)
