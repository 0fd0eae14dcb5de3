"""What the HTTP process and the engine process say to each other: msgpack over a local socket.

Orders go down, reports come up. Structs are arrays on the wire, with a tag in front; nothing here
can name code, so that neither side can make the other run any.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from ..engine.params import SamplingParams

# (token id, natural-log probability, rank)
LogprobEntry = tuple[int, float, int]


class Message(msgspec.Struct, array_like=True):
    """Base of everything on the wire."""


# ---- down: orders ----


class Start(Message, tag="start"):
    """Load this model. options: keywords of Engine; verbose: print the memory plan to stderr."""

    model: str
    options: dict[str, Any] = {}
    verbose: bool = True


class Add(Message, tag="add"):
    """A new request. prompt: token ids as `pack_ids` writes them; params: of SamplingParams."""

    id: str
    prompt: bytes
    params: dict[str, Any]
    priority: int = 0
    cache_salt: str = ""
    attention: str | None = None


class Abort(Message, tag="abort"):
    """End these requests now; each one that was still running gets a last Delta."""

    ids: list[str]


class Check(Message, tag="check"):
    """Check the accounts of pages and queues; answered by Checked."""


class Stop(Message, tag="stop"):
    """Leave."""


Order = Add | Abort | Check | Stop

# ---- up: reports ----


class EngineInfo(Message, tag="ready"):
    """The engine is loaded. Lengths in tokens; pages and windows per layer group."""

    folder: str
    vocab_size: int
    hidden_size: int
    max_model_len: int
    max_num_seqs: int
    num_tokens: int  # context that fits into all pages
    page_size: int
    pages: list[int]
    windows: list[int | None]
    attention: str
    dtype: str
    eos_token_ids: list[int]
    load_s: float


class LoadFailed(Message, tag="failed"):
    """The engine cannot be loaded. ours: on purpose, with a message for the person."""

    message: str
    ours: bool


class Refused(Message, tag="refused"):
    """The engine's door refused a request. capacity: for want of memory; busy: only for now; fault:
    of the engine, not of the request.
    """

    id: str
    message: str
    param: str | None = None
    capacity: bool = False
    busy: bool = False
    fault: bool = False


class Piece(Message):
    """What is new in one of a request's n completions.

    finish: its reason, once; error: for the reason "error", what a client may hear of it; param: of
    the request, where that is to blame.
    """

    index: int
    text: str
    tokens: list[int]
    finish: str | None = None
    stop: int | str | None = None
    logprobs: list[list[LogprobEntry]] | None = None
    error: str | None = None
    param: str | None = None


class End(Message):
    """A request's last words. Times in seconds, as outputs.Timings; attention: stats by phase."""

    timings: dict[str, float | None]
    attention: dict[str, dict[str, float | int | None]]
    preemptions: int


class Delta(Message):
    """What is new of a request. prompt_logprobs: once, with the first token; vector: of its pooled
    prompt, float32, with its end.
    """

    id: str
    cached: int
    pieces: list[Piece]
    prompt_logprobs: list[list[LogprobEntry] | None] | None = None
    end: End | None = None
    vector: bytes | None = None


class Deltas(Message, tag="deltas"):
    """What a step brought, of all requests."""

    items: list[Delta]


class Beat(Message, tag="beat"):
    """The engine process lives. progress grows while it works; pending: whether it has work."""

    progress: int
    pending: bool


class EngineStats(Message, tag="stats"):
    """A snapshot for metrics: scheduler.stats() and what has been read, since the engine's start.

    Pages per layer group. step_s: the mean time of the steps since the last snapshot, 0 for none;
    busy_s: the time of all steps.
    """

    running: int = 0
    waiting: int = 0
    total_pages: list[int] = []
    free_pages: list[int] = []
    idle_pages: list[int] = []
    cached_pages: list[int] = []
    evictions: int = 0
    lookup_tokens: int = 0
    hit_tokens: int = 0
    preemptions: int = 0
    forks: int = 0
    copies: int = 0
    finished: dict[str, int] = {}
    attention: dict[str, dict[str, float | int | None]] = {}
    steps: int = 0
    step_s: float = 0.0
    busy_s: float = 0.0

    @property
    def pages_in_use(self) -> list[int]:
        """Pages held by requests."""
        pools = zip(self.total_pages, self.free_pages, self.idle_pages, strict=True)
        return [total - free - idle for total, free, idle in pools]


class Checked(Message, tag="checked"):
    """The accounts are right, or what contradicts itself."""

    error: str | None
    stats: EngineStats


Report = EngineInfo | LoadFailed | Refused | Deltas | Beat | EngineStats | Checked

encode = msgspec.msgpack.Encoder().encode
decode_start = msgspec.msgpack.Decoder(Start).decode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_report = msgspec.msgpack.Decoder(Report).decode


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as 32-bit integers of this machine; OverflowError beyond 32 bits."""
    return array("i", ids).tobytes()


def unpack_ids(packed: bytes) -> list[int]:
    """The inverse of `pack_ids`."""
    ids = array("i")
    ids.frombytes(packed)
    return ids.tolist()


def given(params: SamplingParams) -> dict[str, Any]:
    """The fields of `params` that differ from their defaults."""
    values = ((each.name, getattr(params, each.name), each.default) for each in fields(params))
    return {
        name: value for name, value, default in values if default is MISSING or value != default
    }
