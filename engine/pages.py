"""PagePool: which pages exist, who holds them, and which keep old K/V for the prefix cache.

A page is *free* (nobody wants its contents), *held* (references > 0), or *idle* (no reference,
but published under a digest: it stays findable until its place is needed). No tensors here: a page
id names the same page of every field in every layer of a group.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

from .errors import CapacityError, SaccadeError


class IntegrityError(SaccadeError):
    """The book-keeping contradicts itself: a bug in the engine, never a user's fault."""


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that `num_tokens` tokens fill, the last one perhaps in part."""
    return -(-num_tokens // page_size)


def window_pages(window: int, chunk: int, page_size: int, sinks: int = 0) -> int:
    """Most pages a window group holds for one request that is computed `chunk` tokens at a time.

    The window (one token more, so that a fork one token back still finds it) and the chunk are
    window + 1 + chunk consecutive tokens, which begin anywhere in a page. The first `sinks` tokens
    have pages of their own.
    """
    return pages_for(window + chunk, page_size) + 1 + pages_for(sinks, page_size)


class PagePool:
    """`num_pages` pages of `page_size` tokens: references, published digests, LRU eviction."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"A pool needs pages and tokens, got {num_pages} x {page_size}.")
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_evictions = 0
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: recently used memory is warm
        self._references = [0] * num_pages
        self._digests: list[bytes | None] = [None] * num_pages
        self._by_digest: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # next to be evicted first
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()  # recently evicted, bounded

    @property
    def num_free(self) -> int:
        """Pages with no contents worth keeping."""
        return len(self._free)

    @property
    def num_idle(self) -> int:
        """Cached pages that nobody holds."""
        return len(self._idle)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could hand out one after the other."""
        return len(self._free) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Pages that a prefix lookup can find, held or idle."""
        return len(self._by_digest)

    def references(self, page: int) -> int:
        """How many requests hold the page."""
        return self._references[page]

    def lookup(self, digest: bytes) -> int | None:
        """The page published under the digest; it does not become held (see `share`)."""
        return self._by_digest.get(digest)

    def was_evicted(self, digest: bytes) -> bool:
        """Whether the digest's page was evicted lately (False may mean long ago)."""
        return digest in self._ghosts

    def allocate(self) -> int:
        """A page with one reference and undefined contents; evicts the oldest idle page if it must.

        Raises CapacityError when every page is held.
        """
        if not self._free:
            self._evict()
        page = self._free.pop()
        self._references[page] = 1
        return page

    def share(self, page: int) -> int:
        """One more reference to a held or idle page; returns the page."""
        if self._references[page] == 0 and page not in self._idle:
            raise IntegrityError(f"Page {page} is free and cannot be shared.")
        self._idle.pop(page, None)
        self._references[page] += 1
        return page

    def release(self, pages: Sequence[int]) -> None:
        """Gives back one reference each to `pages`, which are in order of position.

        Later pages are put away first, so that of one sequence the prefix is evicted last.
        """
        for page in reversed(pages):
            if self._references[page] < 1:
                raise IntegrityError(f"Page {page} is released but nobody holds it.")
            self._references[page] -= 1
            if self._references[page] == 0:
                if self._digests_of(page):
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def make_writable(self, page: int, start: int = 0) -> int:
        """The page to write in place of a held `page`: itself, or a new one if others hold it too.

        Copy-on-write: on a new page the caller's reference has moved there, and the caller copies
        the contents. A page that stays is withdrawn from the cache: published pages never change.
        start: the first position that the caller will compute; of no matter here (see KeptPool).
        """
        if self._references[page] == 1:
            self.withdraw(page)
            return page
        copy = self.allocate()
        self.release([page])
        return copy

    def publish(self, page: int, digest: bytes) -> None:
        """Makes a held, full page findable. The first under a digest wins, a twin stays private.

        From here on the page's contents must not change.
        """
        if self._references[page] < 1:
            raise IntegrityError(f"Page {page} is published but nobody holds it.")
        if digest in self._by_digest or self._digests[page] == digest:
            return
        if self._digests[page] is not None:
            raise IntegrityError(f"Page {page} is already published under another digest.")
        self._digests[page] = digest
        self._by_digest[digest] = page
        self._ghosts.pop(digest, None)

    def withdraw(self, page: int) -> None:
        """Makes a page unfindable; whoever holds it keeps it. Nothing happens if unpublished."""
        digest = self._digests[page]
        if digest is None:
            return
        self._digests[page] = None
        del self._by_digest[digest]
        if page in self._idle:
            del self._idle[page]
            self._free.append(page)

    def _evict(self) -> None:
        if not self._idle:
            raise CapacityError(f"All {self.num_pages} pages of the pool are in use.")
        page = next(iter(self._idle))
        self._ghosts.update(dict.fromkeys(self._digests_of(page)))
        self.withdraw(page)
        self.num_evictions += 1
        while len(self._ghosts) > self.num_pages:
            self._ghosts.popitem(last=False)

    def _digests_of(self, page: int) -> Collection[bytes]:
        """Under which digests the page is published."""
        digest = self._digests[page]
        return () if digest is None else (digest,)

    def check_integrity(self, owners: Mapping[int, int] | None = None) -> None:
        """Raises IntegrityError on any broken invariant; `owners`: references as known outside."""
        free = set(self._free)
        require(len(free) == len(self._free), "a page is twice in the free list")
        for page, references in enumerate(self._references):
            published = bool(self._digests_of(page))
            require(references >= 0, f"page {page} has {references} references")
            kinds = (page in free) + (page in self._idle) + (references > 0)
            require(kinds == 1, f"page {page} is {kinds} of free, idle and held, must be one")
            require(page not in free or not published, f"free page {page} is published")
            require(page not in self._idle or published, f"idle page {page} is unpublished")
            if owners is not None:
                held = owners.get(page, 0)
                require(held == references, f"page {page}: {references} references, {held} owners")
        self._check_digests()

    def _check_digests(self) -> None:
        for page, digest in enumerate(self._digests):
            if digest is not None:
                found = self._by_digest.get(digest)
                require(found == page, f"page {page}'s digest leads to page {found}")
        published = sum(digest is not None for digest in self._digests)
        require(published == len(self._by_digest), "a digest leads to an unpublished page")


def require(condition: bool, message: str) -> None:
    """Raises IntegrityError unless the condition holds."""
    if not condition:
        raise IntegrityError(f"Page pool: {message}.")
