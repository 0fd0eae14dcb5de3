"""PagePool: exact page ids, references, publication, eviction order, copy-on-write, integrity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.engine.errors import CapacityError
from saccade.engine.pages import IntegrityError, PagePool, pages_for, window_pages


def test_pages_are_handed_out_in_order_and_come_back_warm() -> None:
    pool = PagePool(4, 16)
    assert [pool.allocate() for _ in range(3)] == [0, 1, 2]
    pool.release([0, 1])
    assert pool.num_free == 3
    assert [pool.allocate() for _ in range(3)] == [0, 1, 3]
    pool.check_integrity({0: 1, 1: 1, 2: 1, 3: 1})


def test_an_exhausted_pool_says_so() -> None:
    pool = PagePool(1, 16)
    pool.allocate()
    with pytest.raises(CapacityError, match="All 1 pages"):
        pool.allocate()


def test_a_published_page_stays_findable_until_its_place_is_needed() -> None:
    pool = PagePool(2, 16)
    page = pool.allocate()
    pool.publish(page, b"a")
    pool.release([page])
    assert pool.lookup(b"a") == page and pool.num_idle == 1 and pool.num_available == 2
    assert pool.share(page) == page and pool.references(page) == 1 and pool.num_idle == 0
    pool.release([page])
    assert [pool.allocate(), pool.allocate()] == [1, 0]  # the free one first, then the cached one
    assert pool.lookup(b"a") is None and pool.was_evicted(b"a") and pool.num_evictions == 1


def test_eviction_takes_the_least_recently_used_and_later_pages_of_a_sequence_first() -> None:
    pool = PagePool(4, 16)
    pages = [pool.allocate() for _ in range(4)]
    for page, digest in zip(pages, (b"a0", b"a1", b"b0", b"b1"), strict=True):
        pool.publish(page, digest)
    pool.release([0, 1])
    pool.release([2, 3])
    pool.share(0)  # a's first page is used again, later than b
    pool.release([0])
    assert [pool.allocate() for _ in range(4)] == [1, 3, 2, 0]


def test_ghosts_are_bounded_and_forget_what_is_published_again() -> None:
    pool = PagePool(2, 16)
    for digest in (b"a", b"b", b"c", b"d"):
        for page in (pool.allocate(), pool.allocate()):
            pool.publish(page, digest + bytes([page]))
            pool.release([page])
    assert not pool.was_evicted(b"a\x00") and pool.was_evicted(b"c\x00")
    page = pool.allocate()
    pool.publish(page, b"c\x00")
    assert not pool.was_evicted(b"c\x00")


def test_copy_on_write_only_where_others_hold_the_page() -> None:
    pool = PagePool(3, 16)
    page = pool.allocate()
    assert pool.make_writable(page) == page
    pool.share(page)
    copy = pool.make_writable(page)
    assert copy == 1 and pool.references(page) == 1 and pool.references(copy) == 1


def test_a_page_about_to_be_written_leaves_the_cache() -> None:
    pool = PagePool(2, 16)
    page = pool.allocate()
    pool.publish(page, b"a")
    assert pool.make_writable(page) == page and pool.lookup(b"a") is None
    pool.publish(page, b"a")
    pool.share(page)
    assert pool.make_writable(page) == 1 and pool.lookup(b"a") == page


def test_the_first_page_under_a_digest_wins() -> None:
    pool = PagePool(2, 16)
    first, twin = pool.allocate(), pool.allocate()
    pool.publish(first, b"a")
    pool.publish(twin, b"a")
    pool.publish(first, b"a")
    assert pool.lookup(b"a") == first
    pool.release([first, twin])
    assert (pool.num_idle, pool.num_free) == (1, 1)


def test_withdrawing_an_idle_page_frees_it() -> None:
    pool = PagePool(1, 16)
    page = pool.allocate()
    pool.publish(page, b"a")
    pool.release([page])
    pool.withdraw(page)
    pool.withdraw(page)
    assert pool.num_free == 1 and pool.num_cached == 0


@pytest.mark.parametrize("wrong", ["share", "release", "publish", "publish twice", "double"])
def test_misuse_raises_and_does_not_corrupt(wrong: str) -> None:
    pool = PagePool(2, 16)
    page = pool.allocate()
    with pytest.raises(IntegrityError):
        if wrong == "share":
            pool.share(1)
        elif wrong == "release":
            pool.release([1])
        elif wrong == "publish":
            pool.publish(1, b"a")
        elif wrong == "publish twice":
            pool.publish(page, b"a")
            pool.publish(page, b"b")
        else:
            pool.release([page, page])
    pool.check_integrity()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda pool: pool._free.append(0), "page 0 is 2 of free, idle and held"),
        (lambda pool: pool._free.append(3), "twice in the free list"),
        (lambda pool: pool._free.pop(), "page 2 is 0 of free"),
        (lambda pool: pool._by_digest.clear(), "digest leads to page None"),
        (lambda pool: pool._by_digest.update(x=1), "unpublished page"),
        (lambda pool: pool._references.__setitem__(0, -1), "-1 references"),
    ],
)
def test_every_broken_invariant_is_found(break_it: object, message: str) -> None:
    pool = PagePool(4, 16)
    pool.publish(pool.allocate(), b"a")
    pool.allocate()
    pool.check_integrity({0: 1, 1: 1})
    break_it(pool)  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=message):
        pool.check_integrity()


def test_owners_from_outside_must_agree() -> None:
    pool = PagePool(2, 16)
    pool.allocate()
    with pytest.raises(IntegrityError, match="page 0: 1 references, 2 owners"):
        pool.check_integrity({0: 2})


def test_a_pool_needs_pages() -> None:
    with pytest.raises(ValueError, match="0 x 16"):
        PagePool(0, 16)


@pytest.mark.parametrize("tokens, pages", [(0, 0), (1, 1), (63, 1), (64, 1), (65, 2)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert pages_for(tokens, 64) == pages


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 9), st.integers(0, 200))
def test_window_pages_holds_window_and_chunk_wherever_they_begin(
    window: int, chunk: int, page_size: int, computed: int
) -> None:
    first = max(0, computed - 1 - window) // page_size
    last = (computed + chunk - 1) // page_size
    assert last - first + 1 <= window_pages(window, chunk, page_size)
