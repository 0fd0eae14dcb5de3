"""KeptPool: pages of the tokens that heads keep, published as whole page tables.

A head's list of kept tokens ends somewhere in a page, and somewhere else for every head, so that no
page of it is ever full in the sense of `PagePool`. What a prefix of a text needs is all pages that
its lists reach into; the lists' ends are known elsewhere (by the tokens' own pages, or by the
length). A table is therefore published as a whole, under the digest of the tokens before it, and
later tables of the same text name mostly the same pages again.

Where lists only grow (`appends`), a page may go on being filled while it is published: the tables
that name it end before what is new. But whoever continues from an earlier table must not write
over what later tables still need. Where kept tokens are replaced, a published page never changes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .pages import IntegrityError, PagePool, require


class KeptPool(PagePool):
    """`num_pages` pages of `page_size` kept tokens of every head."""

    def __init__(self, num_pages: int, page_size: int, appends: bool) -> None:
        super().__init__(num_pages, page_size)
        self._appends = appends
        self._tables: dict[bytes, tuple[int, ...]] = {}
        # Per page, the tables that name it: digest -> how many tokens the table is of.
        self._claims: list[dict[bytes, int]] = [{} for _ in range(num_pages)]

    @property
    def num_cached(self) -> int:
        """Pages that a prefix lookup can find, held or idle."""
        return sum(bool(claims) for claims in self._claims)

    def lookup_table(self, digest: bytes) -> tuple[int, ...] | None:
        """The table published under the digest; its pages do not become held (see `share`)."""
        return self._tables.get(digest)

    def publish_table(self, pages: Sequence[int], digest: bytes, num_tokens: int) -> None:
        """Makes held pages findable as the table of the first `num_tokens` tokens.

        The first under a digest wins.
        """
        if any(self.references(page) < 1 for page in pages):
            raise IntegrityError(f"A table is published but nobody holds all of it: {pages}.")
        if digest in self._tables:
            return
        self._tables[digest] = tuple(pages)
        self._ghosts.pop(digest, None)
        for page in pages:
            self._claims[page][digest] = num_tokens

    def withdraw_table(self, digest: bytes) -> None:
        """Makes a table unfindable; its pages stay with those who hold them or other tables."""
        for page in self._tables.pop(digest, ()):
            del self._claims[page][digest]
            if not self._claims[page] and page in self._idle:
                del self._idle[page]
                self._free.append(page)

    def withdraw(self, page: int) -> None:
        """Makes every table that names the page unfindable."""
        for digest in list(self._claims[page]):
            self.withdraw_table(digest)

    def make_writable(self, page: int, start: int = 0) -> int:
        """The page to write in place of a held `page`, by someone who computes from `start` on.

        As in PagePool, but a page that a table needs as it is stays in the cache, and the caller
        gets a copy, unless no other page is left: then the tables are withdrawn.
        """
        if self.references(page) == 1:
            if not self._is_needed(page, start):
                return page
            if not self.num_available:
                self.withdraw(page)
                return page
        copy = self.allocate()
        self.release([page])
        return copy

    def _is_needed(self, page: int, start: int) -> bool:
        """Whether writing from `start` on would change what a published table reads."""
        return any(not self._appends or tokens > start for tokens in self._claims[page].values())

    def _digests_of(self, page: int) -> Collection[bytes]:
        return self._claims[page]

    def _check_digests(self) -> None:
        for page, claims in enumerate(self._claims):
            for digest in claims:
                require(page in self._tables[digest], f"page {page} is claimed without reason")
        named = sum(len(set(pages)) for pages in self._tables.values())
        require(named == sum(map(len, self._claims)), "a table names a page that does not know it")
