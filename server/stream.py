"""Server-sent events: their format, and what keeps a quiet stream alive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from .call import Call
from .protocol.errors import ApiError
from .wire import Delta

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_encode = msgspec.json.Encoder().encode


def event(content: Any) -> bytes:
    """One event; JSON has no line breaks of its own."""
    return b"data: " + _encode(content) + b"\n\n"


def failure(error: ApiError) -> bytes:
    """The event of an error."""
    return b"data: " + error.body() + b"\n\n"


@dataclass(frozen=True)
class Form:
    """How a route writes its events, an error among them, and the end; refusal: how it says no."""

    event: Callable[[Any], bytes] = event
    failure: Callable[[ApiError], bytes] = failure
    end: bytes = DONE
    refusal: Callable[[ApiError], ApiError] = lambda error: error


async def events(
    call: Call,
    pieces: Callable[[int, Delta], list[Any]],
    last: Callable[[], list[Any]],
    form: Form = Form(),
) -> AsyncIterator[bytes]:
    """The stream of a call: what `pieces` makes of every delta, then what `last` adds.

    An error before the first event is raised, for it can still have a status; later ones are events
    themselves. Comments keep a quiet connection open.
    """
    begun = False
    try:
        async for news in call.news():
            if not news:
                begun = True
                yield PING
                continue
            chunks = [chunk for number, delta in news for chunk in pieces(number, delta)]
            if chunks:
                begun = True
                yield b"".join(map(form.event, chunks))
        yield b"".join([*map(form.event, last()), form.end])
    except ApiError as error:
        if not begun:
            raise form.refusal(error) from None
        call.note_error(error)
        yield form.failure(error) + form.end
    finally:
        call.close()
