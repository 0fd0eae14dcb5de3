"""/v1/chat/completions: the request, the reply and its chunks."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from ...engine.checks import INT32_MAX
from ...engine.params import SamplingParams
from .completions import FinishReason
from .errors import ApiError
from .replies import UNSET, Extras, PromptLogprobs, Unset, Usage
from .sampling import UNSUPPORTED, SamplingFields, bounds
from .tools import (
    CHOICE_SCHEMA,
    MAX_TOOLS,
    TOOLS_SCHEMA,
    ToolCallDelta,
    ToolCallReply,
    ToolUse,
    read_tools,
)

_OUTPUT = Meta(extra_json_schema={"minimum": 1, "maximum": INT32_MAX})
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "web_search_options": (None,),
    "chat_template": (None,),
}

MAX_MESSAGES = 16_384
MAX_DOCUMENTS = 16_384

_TEXT = {"type": "string"}
_PART = {
    "type": "object",
    "anyOf": [
        {"properties": {"type": {"const": kind}, kind: _TEXT}, "required": ["type", kind]}
        for kind in ("text", "refusal")
    ],
}
_CALL = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "minLength": 1},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": _TEXT, "arguments": _TEXT},
            "required": ["name", "arguments"],
        },
    },
    "required": ["id", "type", "function"],
}
_PARTS = {"type": "array", "items": _PART, "minItems": 1}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "items": {
        "type": "object",
        "properties": {
            "role": _TEXT,  # the chat template decides which there are
            "content": {"anyOf": [_TEXT, _PARTS, {"type": "null"}]},
            "reasoning_content": {"type": ["string", "null"]},
            "tool_calls": {"type": ["array", "null"], "items": _CALL},
            "tool_call_id": {"type": ["string", "null"]},
        },
        "required": ["role"],
    },
}


class ChatRequest(SamplingFields, kw_only=True):
    """A conversation to be continued; null is the same as left out."""

    HIDDEN: ClassVar[tuple[str, ...]] = (*UNSUPPORTED, *_UNSUPPORTED)
    SCHEMAS: ClassVar[dict[str, Any]] = {
        "messages": _MESSAGES,
        "tools": TOOLS_SCHEMA,
        "tool_choice": CHOICE_SCHEMA,
    }
    MOST: ClassVar[dict[str, int]] = SamplingFields.MOST | {
        "messages": MAX_MESSAGES,
        "documents": MAX_DOCUMENTS,
        "tools": MAX_TOOLS,
    }

    messages: list[dict[str, Any]]
    max_tokens: Annotated[int | None, _OUTPUT] = None
    max_completion_tokens: Annotated[int | None, _OUTPUT] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, bounds("logprobs")] = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    # Refused unless neutral.
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    prediction: Any = None
    web_search_options: Any = None
    chat_template: Any = None

    def unsupported(self) -> dict[str, tuple[Any, ...]]:
        """OpenAI's features that no text model here has, besides."""
        return UNSUPPORTED | _UNSUPPORTED

    def check_fields(self) -> None:
        """Refuses what no other door checks. ApiError."""
        super().check_fields()
        if self.top_logprobs and not self.logprobs:  # 0 asks for nothing
            raise ApiError(400, "top_logprobs needs logprobs to be true", "top_logprobs")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            message = "max_completion_tokens and max_tokens, its old name, contradict each other"
            raise ApiError(400, message, "max_completion_tokens", "invalid_value")
        if self.continue_final_message and self.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt exclude each other"
            raise ApiError(400, message, "continue_final_message", "invalid_value")

    @property
    def output_limit(self) -> int | None:
        """New tokens at most, under whichever name they were given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def names(self) -> dict[str, str]:
        """The engine's names of fields -> what this request calls them."""
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return super().names | {"logprobs": "top_logprobs", "max_tokens": limit}

    def to_sampling(self, defaults: dict[str, Any]) -> SamplingParams:
        """How to sample; without a limit, up to the model's. RequestError for a bad value."""
        count = (self.top_logprobs or 0) if self.logprobs else None
        return self.sampling(defaults, max_tokens=self.output_limit, logprobs=count)

    def tool_use(self) -> ToolUse | None:
        """What may be called, and what must; None: nothing may. ApiError."""
        return read_tools(self.tools, self.tool_choice, self.parallel_tool_calls is not False)

    def rendering(self, use: ToolUse | None) -> dict[str, Any]:
        """Options of ChatTemplate.render."""
        effort = (
            {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        )
        goes_on = bool(self.continue_final_message)
        add = not goes_on if self.add_generation_prompt is None else self.add_generation_prompt
        return {
            "add_generation_prompt": add,
            "continue_final_message": goes_on,
            "kwargs": effort | (self.chat_template_kwargs or {}),
            "tools": None if use is None else use.tools,
            "documents": self.documents,
        }


class TopLogprob(msgspec.Struct):
    """A likely token, and its bytes: a part of a character has no text of its own."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct):
    """The token that was chosen, and the likeliest ones at its place."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """One entry per token."""

    content: list[TokenLogprob]


class ChatMessage(msgspec.Struct, kw_only=True):
    """The assistant's answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: None = None
    reasoning_content: str | Unset = UNSET
    reasoning: str | Unset = UNSET  # the same: clients know it under either name
    tool_calls: list[ToolCallReply] | Unset = UNSET


class ChatDelta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a chunk adds to the answer."""

    role: Literal["assistant"] | Unset = UNSET
    content: str | Unset = UNSET
    reasoning_content: str | Unset = UNSET
    reasoning: str | Unset = UNSET
    tool_calls: list[ToolCallDelta] | Unset = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """One of the n answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | Unset = UNSET


class ChunkChoice(msgspec.Struct, kw_only=True):
    """What is new of one of the n answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | Unset | None = UNSET
    token_ids: list[int] | Unset = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The reply."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | Unset | None = UNSET
    prompt_token_ids: list[int] | Unset = UNSET
    saccade: Extras


class ChatChunk(msgspec.Struct, kw_only=True):
    """A part of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | Unset | None = UNSET
    prompt_logprobs: PromptLogprobs | Unset = UNSET
    prompt_token_ids: list[int] | Unset = UNSET
    saccade: Extras | Unset = UNSET
