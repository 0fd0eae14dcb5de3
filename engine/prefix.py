"""The prefix cache: finds pages whose K/V some earlier request has already computed.

A full page is known by a chained digest: of the page before it and of its own tokens, beginning at
a root made of model id, the request's attention policy and its cache salt. Equal digests therefore
mean equal tokens from position 0 on, computed in the same way for someone of the same salt.
"""

from __future__ import annotations

import secrets
from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import lcm

from xxhash import xxh3_128_digest

from .kept_pages import KeptPool
from .pages import PagePool, pages_for
from .request import Request
from .step_plan import LayerGroup


class Miss(StrEnum):
    """Why a lookup found no more. For operators only: it may tell of other users' prompts."""

    DISABLED = "disabled"  # the cache, or this request's use of it, is off
    PARTIAL_PAGE = "partial page"  # all full pages were found: nothing was missed
    LAST_TOKEN = "last token"  # all were found, the last is recomputed for its logits
    FIRST_PAGE = "first page unknown"
    OTHER_SALT = "other salt"  # the first page is known, under another cache salt
    DIVERGED = "diverged"  # the next page was never seen after this prefix
    EVICTED = "evicted"  # the next page was seen and had to make room
    WINDOW = "window"  # the next page is there, a window group's pages before it are not
    KEPT = "kept"  # the next page is there, the tokens that heads kept up to it are not
    ALIGN = "align"  # pages were found beyond the last multiple of the method's alignment


@dataclass(frozen=True, slots=True)
class Hit:
    """A lookup's answer: per group the table of the first `num_pages` pages, -1 where unneeded."""

    num_pages: int
    tables: list[list[int]]
    reason: Miss


class PrefixHasher:
    """Chained digests of full pages of tokens.

    K/V may depend on where the prompt ends: from its length on where a policy's prefill and decode
    differ, earlier where a method reads the prompt's last rows otherwise (Policy.tail). A page that
    reaches beyond is known by the prompt's length too, so it serves the same prompt again (after
    preemption, for instance) and never another one. Where a whole prompt is read in one of several
    ways by its length, the root says which (Policy.key).
    seed: 64-bit hash seed; random by default, since xxh3 collisions can be made for a known seed.
    """

    def __init__(
        self,
        page_size: int,
        model_id: str,
        seed: int | None = None,
    ) -> None:
        self.page_size = page_size
        self._model_id = model_id
        self._seed = secrets.randbits(64) if seed is None else seed

    def root(self, policy: str, salt: str) -> bytes:
        """What stands in for the page before the first; policy: its key."""
        fields = [text.encode() for text in (self._model_id, policy, salt)]
        return self._digest(b"".join(len(field).to_bytes(8, "little") + field for field in fields))

    def digests(self, request: Request) -> list[bytes]:
        """Digests of all full pages of the request's known tokens; kept on the request."""
        known, full = request.digests, request.num_tokens // self.page_size
        if len(known) == full:
            return known
        size, policy = len(request.prompt), request.policy
        tail = policy.tail(size)
        for page in range(len(known), full):
            parent = known[-1] if known else self.root(policy.key(size), request.cache_salt)
            known.append(self._digest(parent + self._page(request, page, tail)))
        return known

    def content(self, request: Request) -> bytes:
        """Digest of the first page's tokens and the policy, whatever the salt."""
        size, policy = len(request.prompt), request.policy
        page = self._page(request, 0, policy.tail(size))
        return self._digest(policy.key(size).encode() + page)

    def _page(self, request: Request, page: int, tail: int | None) -> bytes:
        start, stop = page * self.page_size, (page + 1) * self.page_size
        data = array("I", request.tokens(start, stop)).tobytes()
        if tail is not None and stop > tail:
            data += b"prompt of %d" % len(request.prompt)
        return data

    def _digest(self, data: bytes) -> bytes:
        return xxh3_128_digest(data, seed=self._seed)


class PrefixCache:
    """Lookup and publication over the pools of all layer groups."""

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        pools: Sequence[PagePool],
        hasher: PrefixHasher,
        enabled: bool = True,
    ) -> None:
        self.enabled = enabled
        self.lookup_tokens = 0
        self.hit_tokens = 0
        self.misses: Counter[str] = Counter()
        self._groups = groups
        self._pools = pools
        self._hasher = hasher
        self._kept = [pool for pool in pools if isinstance(pool, KeptPool)]
        self._full = [
            pool
            for group, pool in zip(groups, pools, strict=True)
            if group.window is None and group.kept is None
        ]
        self._first_pages: OrderedDict[bytes, bytes] = OrderedDict()  # content -> chained digest

    def lookup(self, request: Request) -> Hit:
        """The longest usable prefix of the request's tokens; references nothing, counts nothing.

        At least one token is left to compute; the length is a multiple of the page size and of the
        policy's alignment; full groups have every page of it, window groups those of its last
        `window` tokens and of their sinks, and a group of kept tokens the table of this length.
        """
        if not self.enabled or not request.reuses_prefix:
            return Hit(0, [[] for _ in self._pools], Miss.DISABLED)
        digests = self._hasher.digests(request)
        usable = (request.num_tokens - 1) // self._hasher.page_size
        found = min((_leading(pool, digests, usable) for pool in self._full), default=usable)
        ready = self._ready(digests, found)
        reach = next((n for n in range(found, 0, -1) if ready[n]), 0)
        step = lcm(request.policy.align, self._hasher.page_size) // self._hasher.page_size
        length = next((n for n in range(reach // step * step, 0, -step) if ready[n]), 0)
        tables = [self._table(g, digests[:length]) for g in range(len(self._pools))]
        reason = Miss.ALIGN if length < reach else self._explain(request, digests, reach, usable)
        return Hit(length, tables, reason)

    def count(self, request: Request, hit: Hit) -> None:
        """Adds one admission to the counters."""
        self.lookup_tokens += request.num_tokens
        self.hit_tokens += hit.num_pages * self._hasher.page_size
        self.misses[hit.reason.value] += 1

    def publish(self, request: Request) -> None:
        """Makes every page that has become full since the last call findable."""
        full = request.num_computed // self._hasher.page_size
        if not self.enabled or full <= request.num_published:
            return
        digests = self._hasher.digests(request)
        for g, (table, pool) in enumerate(zip(request.pages, self._pools, strict=True)):
            if isinstance(pool, KeptPool):
                self._publish_tables(g, pool, request, full)
                continue
            for page in range(request.num_published, full):
                if table[page] >= 0:
                    pool.publish(table[page], digests[page])
        if request.num_published == 0:
            self._remember_first_page(request)
        request.num_published = full

    def _publish_tables(self, g: int, pool: KeptPool, request: Request, full: int) -> None:
        """A table for every page of tokens that has become full, where its state is still there.

        Lists that only grow contain every earlier state; of others the present one is left.
        """
        group, size = self._groups[g], self._hasher.page_size
        for count in range(request.num_published + 1, full + 1):
            if (group.kept and group.kept.appends) or count * size == request.num_computed:
                table = request.pages[g][: group.pages(count * size, size)]
                pool.publish_table(table, request.digests[count - 1], count * size)

    def withdraw(self, request: Request) -> None:
        """Makes the request's pages unfindable, also those that its windows have left behind.

        By their digests, for these are what a later lookup of the same tokens would go by: the
        contents are not to be trusted.
        """
        for digest in self._hasher.digests(request)[: request.num_published]:
            for pool in self._pools:
                if isinstance(pool, KeptPool):
                    pool.withdraw_table(digest)
                elif (page := pool.lookup(digest)) is not None:
                    pool.withdraw(page)

    def _ready(self, digests: Sequence[bytes], found: int) -> list[bool]:
        """Per length 0..found in pages: whether every other group has what that length needs."""
        ready = [True] + [
            all(pool.lookup_table(digests[n]) is not None for pool in self._kept)
            for n in range(found)
        ]
        for group, pool in zip(self._groups, self._pools, strict=True):
            if group.window is None:
                continue
            most = pages_for(group.window, self._hasher.page_size)
            sinks = _leading(pool, digests, min(found, group.sink_pages(self._hasher.page_size)))
            wanted = group.sink_pages(self._hasher.page_size)
            run = 0  # pages in a row that are there, up to and including page n - 1
            for n in range(1, found + 1):
                run = run + 1 if pool.lookup(digests[n - 1]) is not None else 0
                ready[n] = ready[n] and run >= min(n, most) and sinks >= min(n, wanted)
        return ready

    def _table(self, g: int, digests: Sequence[bytes]) -> list[int]:
        size, group, pool = self._hasher.page_size, self._groups[g], self._pools[g]
        if isinstance(pool, KeptPool):
            return list(pool.lookup_table(digests[-1]) or ()) if digests else []
        first = group.first_needed(len(digests) * size) // size
        sinks = min(group.sink_pages(size), first)
        found = [pool.lookup(digest) for digest in (*digests[:sinks], *digests[first:])]
        pages = [page for page in found if page is not None]
        return pages[:sinks] + [-1] * (first - sinks) + pages[sinks:]

    def _explain(self, request: Request, digests: Sequence[bytes], reach: int, usable: int) -> Miss:
        if reach == usable:
            whole = request.num_tokens % self._hasher.page_size == 0
            return Miss.LAST_TOKEN if whole else Miss.PARTIAL_PAGE
        pools = self._full or self._pools
        if all(pool.lookup(digests[reach]) is not None for pool in pools):
            missing = (pool.lookup_table(digests[reach]) is None for pool in self._kept)
            return Miss.KEPT if any(missing) else Miss.WINDOW
        if any(pool.was_evicted(digests[reach]) for pool in pools):
            return Miss.EVICTED
        if reach > 0:
            return Miss.DIVERGED
        twin = self._first_pages.get(self._hasher.content(request))
        return Miss.FIRST_PAGE if twin in (None, digests[0]) else Miss.OTHER_SALT

    def _remember_first_page(self, request: Request) -> None:
        self._first_pages[self._hasher.content(request)] = request.digests[0]
        if len(self._first_pages) > max(pool.num_pages for pool in self._pools):
            self._first_pages.popitem(last=False)


def _leading(pool: PagePool, digests: Sequence[bytes], limit: int) -> int:
    """How many of the first `limit` digests are published without a gap."""
    for n in range(limit):
        if pool.lookup(digests[n]) is None:
            return n
    return limit
