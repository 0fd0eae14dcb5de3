"""The small routes: models, tokens, health, version, abort."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from .chat import MAX_MESSAGES
from .tools import MAX_TOOLS

MAX_IDS = 2_000_000  # to be written out: about as many as the longest text has
_STATES = ["starting", "ready", "restarting", "failed", "stopped", "draining", "alive"]


class Model(msgspec.Struct, kw_only=True):
    """A name of the model that is served; without a chat template it can only continue texts."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["saccade"] = "saccade"
    root: str
    parent: None = None
    max_model_len: int | None
    attention: str | None
    has_chat_template: bool


class ModelList(msgspec.Struct, kw_only=True):
    """All names of the model."""

    object: Literal["list"] = "list"
    data: list[Model]


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A text or a chat to be counted; exactly one of prompt and messages."""

    MOST: ClassVar[dict[str, int]] = {"messages": MAX_MESSAGES, "tools": MAX_TOOLS}

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    return_token_strs: bool | None = None


class TokenizeReply(msgspec.Struct, kw_only=True):
    """Token ids; token_strs: their texts, if wanted."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Token ids to be written out."""

    MOST: ClassVar[dict[str, int]] = {"tokens": MAX_IDS}

    model: str | None = None
    tokens: Annotated[list[int], Meta(extra_json_schema={"maxItems": MAX_IDS})]
    skip_special_tokens: bool | None = None


class DetokenizeReply(msgspec.Struct):
    """Their text."""

    prompt: str


class HealthReply(msgspec.Struct, kw_only=True):
    """What the engine is doing; restarts: how often its process was started again."""

    status: Annotated[str, Meta(extra_json_schema={"enum": _STATES})]
    restarts: int = 0


class VersionReply(msgspec.Struct):
    """The version of Saccade."""

    version: str


class AbortRequest(msgspec.Struct):
    """request_id: the X-Request-Id of a request, or the id in its reply."""

    request_id: str


class AbortReply(msgspec.Struct):
    """How many requests of this id were ended."""

    aborted: int
