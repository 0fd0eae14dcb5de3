"""/v1/responses: the request, the reply and the events of its stream.

The subset that needs no memory of earlier requests: a conversation comes whole, each time.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from ...engine.checks import INT32_MAX
from .chat import MAX_MESSAGES, ChatRequest, TokenLogprob
from .errors import ApiError
from .items import ITEMS_SCHEMA, Input, read_input, read_tool, read_tool_choice
from .replies import UNSET, Unset
from .sampling import bounds
from .structures import JsonSchemaFormat, ResponseFormat
from .tools import MAX_TOOLS
from .unserved import UnservedFields

_OUTPUT = Meta(extra_json_schema={"minimum": 1, "maximum": INT32_MAX})
_FORMATS = ["text", "json_object", "json_schema"]
_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (_LOGPROBS, "reasoning.encrypted_content")  # of the latter there is none


class TextFormat(msgspec.Struct):
    """type: text, json_object, or json_schema with a schema."""

    type: Annotated[str, Meta(extra_json_schema={"enum": _FORMATS})] = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(msgspec.Struct):
    """What the text must be."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(msgspec.Struct):
    """effort: for the chat template, as `reasoning_effort`."""

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(UnservedFields, kw_only=True):
    """A conversation to be continued; null is the same as left out."""

    HIDDEN: ClassVar[tuple[str, ...]] = tuple(UnservedFields.UNSERVED)
    SCHEMAS: ClassVar[dict[str, Any]] = {"input": ITEMS_SCHEMA}
    MOST: ClassVar[dict[str, int]] = {"input": MAX_MESSAGES, "tools": MAX_TOOLS}

    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    max_output_tokens: Annotated[int | None, _OUTPUT] = None
    temperature: Annotated[float | None, bounds("temperature")] = None
    top_p: Annotated[float | None, bounds("top_p")] = None
    top_logprobs: Annotated[int | None, bounds("logprobs")] = None
    stream: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    # Saccade's own, as in the other routes.
    top_k: Annotated[int | None, bounds("top_k")] = None
    min_p: Annotated[float | None, bounds("min_p")] = None
    seed: Annotated[int | None, bounds("seed")] = None
    attention: str | None = None
    cache_salt: str | None = None
    priority: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check_fields(self) -> None:
        """Refuses what this subset does not have. ApiError."""
        self.check_unserved()
        for wish in self.include or ():
            if wish not in _INCLUDED:
                message = f"include: {wish[:100]!r} is not to be had from this server"
                raise ApiError(400, message, "include", "unsupported_parameter")

    def read_input(self) -> Input:
        """The conversation. ApiError."""
        return read_input(self.input, self.instructions)

    @property
    def wants_logprobs(self) -> bool:
        """Whether the tokens of the text come with their log-probabilities."""
        return bool(self.top_logprobs) or _LOGPROBS in (self.include or ())

    def to_chat(self, messages: list[dict[str, Any]]) -> ChatRequest:
        """The same as a request of /v1/chat/completions, with the messages of `input`. ApiError."""
        effort = None if self.reasoning is None else self.reasoning.effort
        return ChatRequest(
            model=self.model,
            messages=messages,
            tools=None if self.tools is None else [read_tool(tool) for tool in self.tools],
            tool_choice=read_tool_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=self._format(),
            reasoning_effort=effort,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stream=self.stream,
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs if self.wants_logprobs else None,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            attention=self.attention,
            cache_salt=self.cache_salt,
            priority=self.priority,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _format(self) -> ResponseFormat | None:
        form = None if self.text is None else self.text.format
        if form is None:
            return None
        if form.type == "json_schema" and form.schema is None:
            message = "text.format.schema is missing"
            raise ApiError(400, message, "text.format.schema", "invalid_value")
        schema = None
        if form.type == "json_schema" and form.schema is not None:
            schema = JsonSchemaFormat(form.schema, form.name)
        return ResponseFormat(form.type, schema)


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """Text for the reader."""

    text: str
    annotations: list[dict[str, Any]] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    """What the model thought."""

    text: str


class MessageItem(msgspec.Struct, tag_field="type", tag="message", kw_only=True):
    """What the model says."""

    id: str
    status: str
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning", kw_only=True):
    """What it thinks, word by word; it is not summed up."""

    id: str
    status: str
    summary: list[dict[str, Any]] = []
    content: list[ReasoningText] = []


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call", kw_only=True):
    """What it calls; call_id: for the function_call_output that answers it."""

    id: str
    status: str
    call_id: str
    name: str
    arguments: str = ""


Item = MessageItem | ReasoningItem | FunctionCallItem


class InputDetails(msgspec.Struct):
    """Prompt tokens that the prefix cache had."""

    cached_tokens: int = 0


class OutputDetails(msgspec.Struct):
    """Output tokens that were reasoning."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, kw_only=True):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(msgspec.Struct):
    """Why an answer has no end."""

    reason: str


class ResponseError(msgspec.Struct):
    """What went wrong."""

    code: str
    message: str


class ResponseReply(msgspec.Struct, kw_only=True):
    """The reply, or what there is of it so far."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: str
    error: ResponseError | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    metadata: dict[str, str] = {}
    model: str
    output: list[Item] = []
    parallel_tool_calls: bool = True
    temperature: float
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float
    max_output_tokens: int | None = None
    previous_response_id: None = None
    reasoning: ReasoningOptions = msgspec.field(default_factory=ReasoningOptions)
    store: Literal[False] = False
    text: dict[str, Any] = {}
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class ResponseEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One event of a stream; which fields it has depends on its type."""

    type: str
    sequence_number: int
    response: ResponseReply | Unset = UNSET
    output_index: int | Unset = UNSET
    item_id: str | Unset = UNSET
    content_index: int | Unset = UNSET
    item: Item | Unset = UNSET
    part: OutputText | ReasoningText | Unset = UNSET
    delta: str | Unset = UNSET
    text: str | Unset = UNSET
    name: str | Unset = UNSET
    arguments: str | Unset = UNSET
    logprobs: list[TokenLogprob] | Unset = UNSET
    message: str | Unset = UNSET
    code: str | Unset | None = UNSET
    param: str | Unset | None = UNSET
