"""Paged attention: dense, window and sinks, row subsets with their own key ranges, and explicit
block lists.
"""

from __future__ import annotations

from .api import ATTEND, attend, dense_ways
from .call import AttendCall
from .keys import BlockLists, Keys
from .scratch import LIST_TABLES, cpu_scratch_bytes, gpu_scratch_bytes

__all__ = [
    "ATTEND",
    "LIST_TABLES",
    "AttendCall",
    "BlockLists",
    "Keys",
    "attend",
    "cpu_scratch_bytes",
    "dense_ways",
    "gpu_scratch_bytes",
]
