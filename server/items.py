"""ItemWriter: an answer as the items of /v1/responses, and the events that tell of their growth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from .protocol.chat import TokenLogprob
from .protocol.responses import (
    FunctionCallItem,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseEvent,
)
from .reading import News
from .tools import ToolDelta


class ItemWriter:
    """Takes the news of one answer; `items` are what there is of it. An item ends when the next one
    begins.
    """

    def __init__(self, id: str) -> None:
        """id: of the response; its items are named after it."""
        self.items: list[Item] = []
        self._id = id
        self._events = 0
        self._pending: list[TokenLogprob] = []

    def event(self, type: str, **fields: Any) -> ResponseEvent:
        """The next event of the stream."""
        self._events += 1
        return ResponseEvent(type=f"response.{type}", sequence_number=self._events - 1, **fields)

    def write(self, news: News, logprobs: Sequence[TokenLogprob] = ()) -> Iterator[ResponseEvent]:
        """The events of what is new; logprobs: of the tokens that have brought it.

        They stand with the text. Tokens that have not brought any yet, such as a part of a
        character, wait for it; markers and what stands between them bring none.
        """
        self._pending += logprobs
        if news.reasoning:
            yield from self._write_text(ReasoningItem, news.reasoning)
        if news.content:
            yield from self._write_text(MessageItem, news.content)
        if news.reasoning or news.calls or news.apart:
            self._pending = []
        for delta in news.calls:
            yield from self._write_call(delta)

    def finish(self, status: str = "completed") -> Iterator[ResponseEvent]:
        """Ends the last item."""
        item = self._open
        if item is None:
            return
        place: dict[str, Any] = {"item_id": item.id, "output_index": len(self.items) - 1}
        if isinstance(item, FunctionCallItem):
            status = status if _is_json(item.arguments) else "incomplete"
            whole = {"name": item.name, "arguments": item.arguments}
            yield self.event("function_call_arguments.done", **place, **whole)
        else:
            part = item.content[0]
            kind = _kind(item)
            more = {"logprobs": part.logprobs} if isinstance(part, OutputText) else {}
            yield self.event(f"{kind}.done", **place, content_index=0, text=part.text, **more)
            yield self.event("content_part.done", **place, content_index=0, part=part)
        item.status = status
        yield self.event("output_item.done", output_index=place["output_index"], item=item)

    @property
    def _open(self) -> Item | None:
        last = self.items[-1] if self.items else None
        return last if last is not None and last.status == "in_progress" else None

    def _begin(self, item: Item) -> Iterator[ResponseEvent]:
        yield from self.finish()
        self.items.append(item)
        yield self.event("output_item.added", output_index=len(self.items) - 1, item=item)

    def _name(self, prefix: str) -> str:
        return f"{prefix}_{self._id}_{len(self.items)}"

    def _write_text(
        self, kind: type[ReasoningItem] | type[MessageItem], text: str
    ) -> Iterator[ResponseEvent]:
        item = self._open
        if not isinstance(item, ReasoningItem | MessageItem) or not isinstance(item, kind):
            reasons = kind is ReasoningItem
            item = kind(id=self._name("rs" if reasons else "msg"), status="in_progress", content=[])
            yield from self._begin(item)
            part: Any = ReasoningText("") if reasons else OutputText("")
            item.content.append(part)
            place = {"item_id": item.id, "output_index": len(self.items) - 1, "content_index": 0}
            yield self.event("content_part.added", **place, part=part)
        part, more = item.content[0], {}
        part.text += text
        if isinstance(part, OutputText):
            more["logprobs"], self._pending = self._pending, []
            part.logprobs += more["logprobs"]
        place = {"item_id": item.id, "output_index": len(self.items) - 1, "content_index": 0}
        yield self.event(f"{_kind(item)}.delta", **place, delta=text, **more)

    def _write_call(self, delta: ToolDelta) -> Iterator[ResponseEvent]:
        if delta.name is not None:
            name, id = self._name("fc"), delta.id or ""
            item = FunctionCallItem(id=name, status="in_progress", call_id=id, name=delta.name)
            yield from self._begin(item)
        item_ = self._open
        if isinstance(item_, FunctionCallItem) and delta.arguments:
            item_.arguments += delta.arguments
            place = {"item_id": item_.id, "output_index": len(self.items) - 1}
            yield self.event("function_call_arguments.delta", **place, delta=delta.arguments)


def _is_json(text: str) -> bool:
    """Whether a call's arguments are whole: an answer may end within them."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _kind(item: Item) -> str:
    """The name of a text's events."""
    return "reasoning_text" if isinstance(item, ReasoningItem) else "output_text"
