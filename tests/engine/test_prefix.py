"""The prefix cache: what is found, what must not be, and the reason given for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from saccade.engine.pages import PagePool
from saccade.engine.prefix import Miss, PrefixCache, PrefixHasher
from saccade.engine.request import Request

from .fake_model import Params, Policy, Window, layer_group, make_request

P = 4
A = [1] * P
B = [2] * P
C = [3] * P


class Store:
    """Pools and a cache, filled as if requests had run and finished."""

    def __init__(
        self,
        windows: Sequence[Window] = (None,),
        pages: int = 16,
        align: int = 1,
        tail: Callable[[int], int] | None = None,
        way: Callable[[int], str] | None = None,
    ) -> None:
        self.pools = [PagePool(pages, P) for _ in windows]
        groups = [layer_group(window) for window in windows]
        self.policy = Policy("dense", align, tail, way)
        self.cache = PrefixCache(groups, self.pools, PrefixHasher(P, "model", seed=0))

    def finish(
        self, tokens: Sequence[int], salt: str = "", prompt_size: int | None = None
    ) -> Request:
        """A request that computed all `tokens` in fresh pages and gave them back."""
        size = len(tokens) if prompt_size is None else prompt_size
        request = make_request("old", tokens[:size], policy=self.policy, cache_salt=salt)
        request.output = list(tokens[size:])
        count = -(-len(tokens) // P)
        request.pages = [[pool.allocate() for _ in range(count)] for pool in self.pools]
        request.num_computed = len(tokens)
        self.cache.publish(request)
        for pool, table in zip(self.pools, request.pages, strict=True):
            pool.release(table)
        return request

    def look(self, tokens: Sequence[int], salt: str = "") -> tuple[int, Miss]:
        request = make_request("new", tokens, policy=self.policy, cache_salt=salt)
        hit = self.cache.lookup(request)
        return hit.num_pages, hit.reason


def test_a_known_prefix_is_found_with_its_page_ids() -> None:
    store = Store()
    store.finish(A + B + C)
    hit = store.cache.lookup(make_request("new", A + B + [9]))
    assert (hit.num_pages, hit.tables, hit.reason) == (2, [[0, 1]], Miss.PARTIAL_PAGE)


@pytest.mark.parametrize(
    ("tokens", "pages", "reason"),
    [
        ([9], 0, Miss.PARTIAL_PAGE),  # shorter than a page: there was nothing to find
        (A[:-1], 0, Miss.PARTIAL_PAGE),
        (A, 0, Miss.LAST_TOKEN),  # known, but one token must be computed for the logits
        ([*A, 9], 1, Miss.PARTIAL_PAGE),
        (A + B, 1, Miss.LAST_TOKEN),
        ([*A, *C, 9], 1, Miss.DIVERGED),
        ([*B, 9], 0, Miss.FIRST_PAGE),
        ([*C, *A, 9], 0, Miss.FIRST_PAGE),  # A is known, but not at this position
        ([*A, *B, *C, 1, 1], 3, Miss.PARTIAL_PAGE),
    ],
)
def test_reasons(tokens: list[int], pages: int, reason: Miss) -> None:
    store = Store()
    store.finish(A + B + C)
    assert store.look(tokens) == (pages, reason)


def test_an_evicted_page_is_told_from_one_never_seen() -> None:
    store = Store(pages=2)
    store.finish(A + B)
    store.pools[0].allocate()  # takes the place of B's page: later pages go first
    assert store.look([*A, *B, 9]) == (1, Miss.EVICTED)
    assert store.look([*A, *C, 9]) == (1, Miss.DIVERGED)


def test_salts_do_not_meet_but_the_operator_sees_why() -> None:
    store = Store()
    store.finish(A + B, salt="tenant 1")
    assert store.look([*A, *B, 9], salt="tenant 2") == (0, Miss.OTHER_SALT)
    assert store.look([*C, 9], salt="tenant 2") == (0, Miss.FIRST_PAGE)
    assert store.look([*A, *B, 9], salt="tenant 1") == (2, Miss.PARTIAL_PAGE)


def test_provenance_and_position_are_part_of_the_digest() -> None:
    def digests(model: str, policy: str, salt: str, tokens: list[int]) -> list[bytes]:
        request = make_request("r", tokens, policy=Policy(policy), cache_salt=salt)
        return PrefixHasher(P, model, seed=0).digests(request)

    same = digests("m", "p", "s", A + B)
    assert digests("m", "p", "s", A + B) == same and len(same) == 2
    others = [
        digests("n", "p", "s", A + B),
        digests("m", "q", "s", A + B),
        digests("m", "p", "t", A + B),
        digests("mp", "", "s", A + B),
        digests("m", "p", "s", B + B),
    ]
    assert all(other[1] != same[1] for other in others)
    assert PrefixHasher(P, "m").root("p", "") != PrefixHasher(P, "m").root("p", "")


def test_output_pages_serve_later_prompts_unless_decode_is_another_policy() -> None:
    tokens = A + B + C
    store = Store()
    store.finish(tokens, prompt_size=6)
    assert store.look([*tokens, 9]) == (3, Miss.PARTIAL_PAGE)
    store = Store(tail=lambda size: size)
    store.finish(tokens, prompt_size=6)
    assert store.look([*tokens, 9]) == (1, Miss.DIVERGED)  # A alone is all prompt
    again = make_request("resumed", tokens[:6], policy=store.policy)
    again.output = [*tokens[6:], 9]
    assert store.cache.lookup(again).num_pages == 3


def test_pages_of_a_prompts_tail_serve_prompts_of_that_length_alone() -> None:
    store = Store(tail=lambda size: max(0, size - 5))
    store.finish(A + B + C)
    assert store.look([*A, *B, *C, 9]) == (1, Miss.DIVERGED)
    assert store.look(A + B + C) == (2, Miss.LAST_TOKEN)
    assert store.look([*A, *B, 9]) == (1, Miss.DIVERGED)
    assert store.look([*A, 9]) == (0, Miss.FIRST_PAGE)  # A would be its tail
    store.finish([*A, *B, *C, *A])
    assert store.look([*A, *B, *C, *B]) == (3, Miss.LAST_TOKEN)  # as long as that one


def test_pages_serve_prompts_that_are_read_the_same_way() -> None:
    store = Store(way=lambda size: "long" if size > 9 else "short")
    store.finish(A + B + C, prompt_size=9)
    assert store.look(A + B + [9])[0] == 2  # as short, and so are the tokens generated after it
    assert store.look(A + B + C + [9]) == (0, Miss.FIRST_PAGE)
    store.finish(A + B + C)
    assert store.look(A + B + C + [9])[0] == 3 and store.look(A + B)[0] == 1


def test_the_length_is_a_multiple_of_align() -> None:
    store = Store(align=8)
    store.finish(A + B + C)
    assert store.look([*A, *B, *C, 9]) == (2, Miss.ALIGN)
    store = Store(align=6)  # with pages of 4: every 12 tokens
    store.finish(A + B + C)
    assert store.look([*A, *B, *C, 9]) == (3, Miss.PARTIAL_PAGE)
    assert store.look([*A, *B, 9]) == (0, Miss.ALIGN)


def test_a_window_group_needs_only_its_last_tokens() -> None:
    store = Store(windows=(None, 5))
    store.finish(A + B + C)
    store.pools[1].withdraw(0)
    hit = store.cache.lookup(make_request("new", [*A, *B, *C, 9]))
    assert (hit.num_pages, hit.tables) == (3, [[0, 1, 2], [-1, 1, 2]])


def test_a_window_group_that_lost_its_pages_shortens_the_hit() -> None:
    store = Store(windows=(None, 5))
    store.finish(A + B + C + A)
    store.pools[1].withdraw(2)
    assert store.look([*A, *B, *C, *A, 9]) == (2, Miss.WINDOW)  # needs pages 0 and 1 then
    store.pools[1].withdraw(0)
    assert store.look([*A, *B, *C, *A, 9]) == (0, Miss.WINDOW)


@pytest.mark.parametrize("window, first", [(1, 2), (4, 2), (5, 1), (8, 1), (9, 0), (99, 0)])
def test_the_first_page_of_a_window(window: int, first: int) -> None:
    store = Store(windows=(window,))
    store.finish(A + B + C)
    hit = store.cache.lookup(make_request("new", [*A, *B, *C, 9]))
    assert hit.tables == [[-1] * first + [0, 1, 2][first:]]


def test_sinks_are_part_of_every_hit() -> None:
    store = Store(windows=((4, 5),))
    store.finish(A + B + C + A)
    hit = store.cache.lookup(make_request("new", [*A, *B, *C, *A, 9]))
    assert hit.tables == [[0, 1, -1, 3]]
    store.pools[0].withdraw(3)
    assert store.look([*A, *B, *C, *A, 9]) == (3, Miss.DIVERGED)
    store.pools[0].withdraw(1)
    assert store.look([*A, *B, *C, *A, 9]) == (1, Miss.DIVERGED)


def test_window_groups_alone_find_late_pages_and_say_why_not() -> None:
    store = Store(windows=(4,))
    store.finish(A + B + C)
    store.pools[0].withdraw(0)
    assert store.look([*A, *B, *C, 9]) == (3, Miss.PARTIAL_PAGE)
    assert store.look([*C, 9]) == (0, Miss.FIRST_PAGE)
    assert store.look([*A, *B, *A, 9]) == (2, Miss.DIVERGED)


def test_prompt_logprobs_and_a_disabled_cache_find_nothing() -> None:
    store = Store()
    store.finish(A + B)
    wants_all = make_request("new", [*A, *B, 9], Params(prompt_logprobs=0))
    assert store.cache.lookup(wants_all).reason is Miss.DISABLED
    store.cache.enabled = False
    assert store.look([*A, *B, 9]) == (0, Miss.DISABLED)
    assert store.finish(C + C).num_published == 0


def test_distrusted_pages_are_withdrawn() -> None:
    store = Store()
    request = store.finish(A + B)
    store.cache.withdraw(request)
    assert store.look([*A, *B, 9]) == (0, Miss.FIRST_PAGE)
    assert store.pools[0].num_free == 16


def test_counters_count_admissions_only() -> None:
    store = Store()
    store.finish(A + B)
    request = make_request("new", [*A, *B, 9])
    hit = store.cache.lookup(request)
    assert store.cache.lookup_tokens == 0
    store.cache.count(request, hit)
    assert (store.cache.lookup_tokens, store.cache.hit_tokens) == (9, 8)
    assert store.cache.misses == {"partial page": 1}
