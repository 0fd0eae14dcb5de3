"""Pages of kept tokens: tables under digests, and who may write where."""

from __future__ import annotations

import pytest

from saccade.engine.errors import CapacityError
from saccade.engine.kept_pages import KeptPool
from saccade.engine.kept_rule import KeptRule
from saccade.engine.pages import IntegrityError

from .fake_model import Bench, Params, make_request

A, B, C = (bytes([n]) * 16 for n in range(3))


def pool(pages: int, appends: bool = True) -> tuple[KeptPool, list[int]]:
    """A pool of 4 pages, of which the first `pages` are held."""
    made = KeptPool(4, 8, appends)
    return made, [made.allocate() for _ in range(pages)]


def test_a_table_is_found_until_one_of_its_pages_is_taken() -> None:
    kept, pages = pool(3)
    kept.publish_table(pages[:2], A, 16)
    kept.publish_table(pages, B, 32)
    assert kept.lookup_table(A) == (0, 1) and kept.lookup_table(B) == (0, 1, 2)
    kept.release(pages)
    assert (kept.num_free, kept.num_idle, kept.num_cached) == (1, 3, 3)
    assert [kept.allocate(), kept.allocate()] == [3, 2]  # the table's end goes first
    assert kept.lookup_table(A) == (0, 1) and kept.lookup_table(B) is None
    assert kept.was_evicted(B) and not kept.was_evicted(A)
    kept.check_integrity()
    assert {kept.allocate(), kept.allocate()} == {0, 1}
    assert kept.lookup_table(A) is None and kept.num_evictions == 2
    with pytest.raises(CapacityError):
        kept.allocate()


def test_the_first_under_a_digest_wins() -> None:
    kept, pages = pool(2)
    kept.publish_table(pages[:1], A, 8)
    kept.publish_table(pages[1:], A, 8)
    assert kept.lookup_table(A) == (0,)
    kept.release(pages)
    assert (kept.num_free, kept.num_idle) == (3, 1)


def test_only_held_pages_are_published() -> None:
    kept, pages = pool(2)
    kept.release(pages[1:])
    with pytest.raises(IntegrityError, match="nobody holds all of it"):
        kept.publish_table(pages, A, 8)


def test_a_list_that_grows_goes_on_in_its_published_page() -> None:
    kept, pages = pool(1)
    kept.publish_table(pages, A, 16)
    assert kept.make_writable(0, 16) == 0 and kept.lookup_table(A) == (0,)


def test_who_continues_from_an_earlier_table_gets_a_copy() -> None:
    kept, pages = pool(1)
    kept.publish_table(pages, A, 16)
    kept.publish_table(pages, B, 24)
    assert kept.make_writable(0, 16) == 1
    assert kept.references(0) == 0 and kept.lookup_table(B) == (0,)  # idle, and still whole


def test_replaced_tokens_never_change_a_published_page() -> None:
    kept, pages = pool(1, appends=False)
    kept.publish_table(pages, A, 16)
    assert kept.make_writable(0, 16) == 1 and kept.lookup_table(A) == (0,)


def test_with_no_page_left_the_tables_are_given_up() -> None:
    kept, pages = pool(4)
    kept.publish_table(pages[:2], A, 16)
    assert kept.make_writable(pages[0], 8) == pages[0] and kept.lookup_table(A) is None
    kept.check_integrity()


def test_a_page_that_others_hold_is_never_written() -> None:
    kept, _ = pool(1)
    kept.share(0)
    assert kept.make_writable(0, 100) == 1 and kept.references(0) == 1
    assert kept.make_writable(0, 100) == 0


def test_withdrawing_a_table_frees_what_nothing_else_names() -> None:
    kept, pages = pool(3)
    kept.publish_table(pages[:2], A, 16)
    kept.publish_table(pages, B, 24)
    kept.release(pages)
    kept.withdraw_table(B)
    kept.withdraw_table(C)
    assert (kept.num_free, kept.num_idle) == (2, 2)
    kept.withdraw(1)
    assert (kept.num_free, kept.num_idle) == (4, 0)
    kept.check_integrity()


@pytest.mark.parametrize(
    ("rule", "lengths"),
    [
        (KeptRule(4), [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3]),
        (KeptRule(2, percent=150, burst=1), [0, 1, 2, 3, 4, 4, 5, 6, 7, 7]),
        (KeptRule(9, fixed=3), [0, 1, 2, 3, 3, 3]),
        (KeptRule(1), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_longest_lists(rule: KeptRule, lengths: list[int]) -> None:
    assert [rule.most(tokens) for tokens in range(len(lengths))] == lengths


def test_page_tables_follow_the_rule_and_not_the_length() -> None:
    """Of 40 tokens one in 4 is kept: 3 pages of 4, of which the last two grow during decode."""
    bench = Bench([12, 4], page_size=4, kept=KeptRule(4))
    request = bench.add("a", [0, 1, 2] * 10, max_tokens=10, ignore_eos=True)
    sizes = []
    while not request.finish_reason:
        plan = bench.schedule()
        sizes.append((len(request.pages[0]), len(request.pages[1])))
        bench.scheduler.commit(plan, bench.model.run(plan))
    assert sizes[0] == (4, 1) and sizes[1] == (8, 2) and sizes[-1] == (10, 3)
    bench.assert_empty()


def test_a_request_that_its_kept_tokens_alone_would_not_let_finish_is_refused() -> None:
    """4 pages of 4 hold the lists of 16 / 4 = 67 tokens at most: floor(67 / 4) = 16."""
    bench = Bench([64, 4], page_size=4, kept=KeptRule(4), length=250)
    assert bench.scheduler.tables.max_tokens == 67
    bench.scheduler.add(make_request("a", [0] * 66, Params()))
    with pytest.raises(CapacityError, match="exceeds the 67 tokens"):
        bench.scheduler.add(make_request("b", [0] * 67, Params()))
