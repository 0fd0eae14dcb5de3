"""How the time of a method divides among the ops that it calls."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..kernels.compressed import CompressedCall
from ..kernels.ops import Op

WITHIN = "attention within others"


def _attention_within(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Arguments with which an op that attends and chooses would only attend; None: another op."""
    call = args[0]
    if not isinstance(call, CompressedCall) or call.rule is None or not call.value_dim:
        return None
    return (call._replace(rule=None),)


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
        if (alone := _attention_within(args)) is not None:
            start = time.perf_counter()
            call(op, *alone)
            spent[WITHIN] += time.perf_counter() - start
        return result

    Op.__call__ = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        Op.__call__ = call  # type: ignore[method-assign]
