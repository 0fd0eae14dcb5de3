"""How the time of a method divides among the ops that it calls."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..engine.tapes import Pool, Tape
from ..kernels.compressed import CompressedCall
from ..kernels.ops import Op

WITHIN = "attention within others"
Call = Callable[..., Any]


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

    def timed(call: Call, op: Op, args: tuple[Any, ...]) -> Any:
        start = time.perf_counter()
        result = call(op, *args)
        spent[op.name] += time.perf_counter() - start
        if (alone := _attention_within(args)) is not None:
            start = time.perf_counter()
            call(op, *alone)
            spent[WITHIN] += time.perf_counter() - start
        return result

    with _instead(timed):
        yield spent


class PlayedTimes:
    """The same for what is recorded and played: its kernels by the ops that called them."""

    def __init__(self, call: Callable[[], torch.Tensor]) -> None:
        """call: with what it reads already looked at; see `engine.tapes`."""
        self._tape = Tape(Pool())
        self._names: list[str] = []
        with _instead(self._named):
            self._tape.record(call)
        self._name("")

    @property
    def refusal(self) -> str | None:
        """Why it cannot be played, or None."""
        return self._tape.refusal

    def play(self, spent: Counter[str]) -> float:
        """Adds the seconds of one time; returns all of them, but for what is WITHIN."""
        kernels, operators = self._tape.times()
        for name, seconds in zip(self._names, kernels, strict=True):
            spent[name] += seconds
        within = [s for name, s in zip(self._names, kernels, strict=True) if name == WITHIN]
        return sum(kernels) + operators - sum(within)

    def _named(self, call: Call, op: Op, args: tuple[Any, ...]) -> Any:
        result = call(op, *args)
        self._name(op.name)
        if (alone := _attention_within(args)) is not None:
            call(op, *alone)
            self._name(WITHIN)
        return result

    def _name(self, name: str) -> None:
        """Of the kernels that were called since."""
        self._names += [name] * (len(self._tape) - len(self._names))


@contextmanager
def _instead(around: Callable[[Call, Op, tuple[Any, ...]], Any]) -> Iterator[None]:
    """`around` is called in the place of every op, with what calls it."""
    call = Op.__call__
    Op.__call__ = lambda op, *args: around(call, op, args)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Op.__call__ = call  # type: ignore[method-assign]
