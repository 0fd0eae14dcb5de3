"""How the time of a method divides among the ops that it calls."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..kernels.ops import Op

WITHIN = "attention within others"


def _attention_within(op: Op, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Arguments with which an op that attends and chooses would only attend; None: another op."""
    if op.name != "compressed" or args[3] is None or not args[5]:
        return None
    return (*args[:3], None, *args[4:])


@contextmanager
def op_times() -> Iterator[Counter[str]]:
    """Seconds in each op, by its name, while the block runs.

    Ops that attend and choose are called once more only to attend: that time is WITHIN, and not
    part of what the block would take by itself.
    """
    spent: Counter[str] = Counter()
    call = Op.__call__

    def timed(op: Op, *args: Any) -> Any:
        start = time.perf_counter()
        result = call(op, *args)
        spent[op.name] += time.perf_counter() - start
        if (alone := _attention_within(op, args)) is not None:
            start = time.perf_counter()
            call(op, *alone)
            spent[WITHIN] += time.perf_counter() - start
        return result

    Op.__call__ = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        Op.__call__ = call  # type: ignore[method-assign]
