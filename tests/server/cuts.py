"""Cutting a text into pieces, as a stream does."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

# Sizes of pieces, used in turn; empty: one piece.
CUTS = st.lists(st.integers(1, 7), max_size=6)


def pieces(text: str, sizes: list[int]) -> Iterator[str]:
    """The text in pieces of these sizes, again and again."""
    start, number = 0, 0
    while start < len(text):
        size = sizes[number % len(sizes)] if sizes else len(text)
        yield text[start : start + size]
        start, number = start + size, number + 1
