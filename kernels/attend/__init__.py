"""Paged attention: dense, window and sinks, row subsets with their own key ranges, and explicit
block lists.
"""

from __future__ import annotations

from .api import ATTEND, attend
from .keys import BlockLists, Keys

__all__ = ["ATTEND", "BlockLists", "Keys", "attend"]
