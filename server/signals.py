"""Signals that end a server: before it serves, while it starts its engine, and for the engine."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)  # a terminal that closes is no other end than a manager's
_noted: list[int] = []


class Terminated(KeyboardInterrupt):
    """A server that still starts is asked to end.

    A KeyboardInterrupt: Python's compiler, which runs while modules are imported, forgets any other
    exception that comes while it folds constants.
    """


def raise_early() -> None:
    """Until the server has its own handlers: ends whatever the start is at, by Terminated."""
    for each in _ENDING:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(each, _raise)


def ignore() -> None:
    """For the last moments of a process that ends anyway."""
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)


def noted() -> bool:
    """Whether a signal came early: the exception may have been lost, in a destructor say."""
    return bool(_noted)


def ending() -> list[signal.Signals]:
    """What a server that serves must handle."""
    handled = [each for each in _ENDING if signal.getsignal(each) is not signal.SIG_IGN]
    return [signal.SIGINT, *handled]


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """While a process is started: signals come when that is done, and never to the new process, who
    inherits this until `leave_to_parent`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *_ENDING))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """For the engine: the HTTP process decides when to end; terminals and managers signal both."""
    for each in (signal.SIGINT, *_ENDING):
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, *_ENDING))


def _raise(number: int, frame: FrameType | None) -> None:
    _noted.append(number)
    raise Terminated
