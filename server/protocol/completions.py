"""/v1/completions: the request, the reply and its chunks."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from ...engine.checks import INT32_MAX
from ...engine.params import SamplingParams
from .errors import ApiError
from .replies import UNSET, Extras, PromptLogprobs, Unset, Usage
from .sampling import UNSUPPORTED, SamplingFields, bounds

DEFAULT_MAX_TOKENS = 16  # as OpenAI's
_FINISHES = ["stop", "length", "abort", "tool_calls"]
FinishReason = Annotated[str, Meta(extra_json_schema={"enum": _FINISHES})]
# str | list[str] | list[int] | list[list[int]]: `server.prompts` tells them apart.
PromptField = str | list[int | str | list[int]]

_TEXT = {"type": "string"}  # an empty one is as good as the tokens that begin every prompt
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
PROMPT_SCHEMA = {
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}


class CompletionRequest(SamplingFields, kw_only=True):
    """A prompt to be continued; null is the same as left out."""

    HIDDEN: ClassVar[tuple[str, ...]] = (*UNSUPPORTED, "suffix")
    SCHEMAS: ClassVar[dict[str, Any]] = {"prompt": PROMPT_SCHEMA}

    prompt: PromptField
    max_tokens: Annotated[
        int | None, Meta(extra_json_schema={"minimum": 0, "maximum": INT32_MAX})
    ] = None
    echo: bool | None = None
    logprobs: Annotated[int | None, bounds("logprobs")] = None
    best_of: Annotated[int | None, bounds("n")] = None
    suffix: Any = None

    def unsupported(self) -> dict[str, tuple[Any, ...]]:
        """`suffix` besides: no model here fills in the middle."""
        return UNSUPPORTED | {"suffix": (None, "")}

    def check_fields(self) -> None:
        """Refuses what no other door checks. ApiError."""
        super().check_fields()
        if self.best_of is not None and self.best_of != (self.n or 1):
            message = "best_of must equal n: completions are not ranked by this server"
            raise ApiError(400, message, "best_of", "unsupported_parameter")
        if self.max_tokens == 0 and not self.echo:
            message = "max_tokens must be at least 1 unless echo is true"
            raise ApiError(400, message, "max_tokens", "invalid_value")

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the echoed prompt shows log-probabilities."""
        return bool(self.echo) and self.logprobs is not None

    def to_sampling(self, defaults: dict[str, Any]) -> SamplingParams:
        """How to sample. RequestError for a value out of range."""
        limit = {None: DEFAULT_MAX_TOKENS, 0: 1}.get(self.max_tokens, self.max_tokens)
        own: dict[str, Any] = {"max_tokens": limit, "logprobs": self.logprobs}
        if self.wants_prompt_logprobs and self.prompt_logprobs is None:
            own["prompt_logprobs"] = self.logprobs
        return self.sampling(defaults, **own)


class TextLogprobs(msgspec.Struct):
    """Parallel lists, one entry per token; a prompt's first token has no log-probability."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One completion, or in a chunk what is new of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | Unset | None = UNSET
    token_ids: list[int] | Unset = UNSET
    prompt_token_ids: list[int] | Unset = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """The reply, and every chunk of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | Unset | None = UNSET
    saccade: Extras | Unset = UNSET
