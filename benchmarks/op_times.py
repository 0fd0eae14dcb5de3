"""How the time of a method divides among the ops that it calls."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..kernels.ops import Op


@contextmanager
def op_times() -> Iterator[Counter[str]]:
    """Seconds in each op, by its name, while the block runs."""
    spent: Counter[str] = Counter()
    call = Op.__call__

    def timed(op: Op, *args: Any) -> Any:
        start = time.perf_counter()
        result = call(op, *args)
        spent[op.name] += time.perf_counter() - start
        return result

    Op.__call__ = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        Op.__call__ = call  # type: ignore[method-assign]
