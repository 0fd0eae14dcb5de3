"""What completions and chat have in common: how to sample, and how to answer.

The bounds in the schema are those of the engine's validator, which is the one that refuses: so its
messages are the same wherever a value came in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ...engine.params import (
    MAX_LOGIT_BIAS,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKENS,
    RULE_OF,
    SamplingParams,
)
from ...engine.structure import MAX_CHOICES, Structure
from .errors import ApiError
from .structures import ResponseFormat, StructuredOutputs
from .unserved import GUIDED, check_neutral

_MAX_SALT = 256
# Fields that OpenAI, or vLLM, knows, and their values that change nothing: any other is refused.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1, 1.0),
    "logits_processors": (None, []),
    "kv_transfer_params": (None,),
    "mm_processor_kwargs": (None,),
    "structural_tag": (None,),
    "guided_whitespace_pattern": (None,),
}


def bounds(name: str, low: float | None = None) -> Meta:
    """The range of a numeric field, for the schema; low: a lower bound other than the engine's."""
    rule = RULE_OF[name]
    key = "exclusiveMinimum" if rule.above_low else "minimum"
    least = rule.low if low is None else low
    return Meta(extra_json_schema={key: least, "maximum": rule.high})


Stops = Annotated[
    str
    | list[Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_STOP_CHARS})]],
    Meta(
        extra_json_schema={
            "minLength": 1,
            "maxLength": MAX_STOP_CHARS,
            "maxItems": MAX_STOP_STRINGS,
        }
    ),
]
Bias = Annotated[
    float, Meta(extra_json_schema={"minimum": -MAX_LOGIT_BIAS, "maximum": MAX_LOGIT_BIAS})
]
TokenIds = Annotated[
    list[Annotated[int, Meta(extra_json_schema={"minimum": 0})]],
    Meta(extra_json_schema={"maxItems": MAX_STOP_TOKENS}),
]


class StreamOptions(msgspec.Struct):
    """include_usage: a last chunk with the usage; continuous_usage_stats: in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """Fields that both kinds of completion take; null is the same as left out."""

    # For the specification: fields that it leaves out, and schemas beyond what types can say.
    HIDDEN: ClassVar[tuple[str, ...]] = tuple(UNSUPPORTED)
    SCHEMAS: ClassVar[dict[str, Any]] = {}
    # Entries at most: see `exchange.check_counts`.
    MOST: ClassVar[dict[str, int]] = {
        "stop": MAX_STOP_STRINGS,
        "stop_token_ids": MAX_STOP_TOKENS,
        "guided_choice": MAX_CHOICES,
    }

    model: str | None = None
    n: Annotated[int | None, bounds("n")] = None
    temperature: Annotated[float | None, bounds("temperature")] = None
    top_p: Annotated[float | None, bounds("top_p")] = None
    top_k: Annotated[int | None, bounds("top_k")] = None
    min_p: Annotated[float | None, bounds("min_p")] = None
    presence_penalty: Annotated[float | None, bounds("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, bounds("frequency_penalty")] = None
    repetition_penalty: Annotated[float | None, bounds("repetition_penalty")] = None
    logit_bias: dict[int, Bias] | None = None
    seed: Annotated[int | None, bounds("seed")] = None
    stop: Stops | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int | None, bounds("min_tokens")] = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int | None, bounds("prompt_logprobs")] = None
    truncate_prompt_tokens: Annotated[int | None, Meta(extra_json_schema={"minimum": -1})] = None
    add_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: Annotated[
        int | None, Meta(extra_json_schema={"minimum": -(2**31), "maximum": 2**31 - 1})
    ] = None
    cache_salt: Annotated[
        str | None, Meta(extra_json_schema={"minLength": 1, "maxLength": _MAX_SALT})
    ] = None
    attention: str | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    user: str | None = None
    # Refused unless neutral: see UNSUPPORTED.
    allowed_token_ids: Any = None
    bad_words: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    logits_processors: Any = None
    kv_transfer_params: Any = None
    mm_processor_kwargs: Any = None
    structural_tag: Any = None
    guided_whitespace_pattern: Any = None

    @property
    def streams(self) -> bool:
        """Whether the answer comes in pieces."""
        return bool(self.stream)

    @property
    def names(self) -> dict[str, str]:
        """The engine's names of fields -> what this request calls them."""
        return {"structure": next(reversed(self._forms()), "response_format")}

    def check_fields(self) -> None:
        """Refuses what no other door checks. ApiError."""
        self.check_unsupported()
        if self.stream_options is not None and not self.streams:
            raise ApiError(400, "stream_options needs stream to be true", "stream_options")
        check_truncation(self.truncate_prompt_tokens)
        check_placing(self.cache_salt, self.priority)

    def placing(self) -> dict[str, Any]:
        """Options of Call.submit."""
        return {
            "priority": self.priority or 0,
            "cache_salt": self.cache_salt or "",
            "attention": self.attention,
            "names": self.names,
        }

    def unsupported(self) -> dict[str, tuple[Any, ...]]:
        """Fields known and not served, with their neutral values."""
        return UNSUPPORTED

    def check_unsupported(self) -> None:
        """Refuses a field that is known but not served, unless its value changes nothing."""
        check_neutral(self, self.unsupported())

    def sampling(self, defaults: dict[str, Any], **own: Any) -> SamplingParams:
        """SamplingParams of the fields that were given; `own`: those that each API names its own
        way. RequestError for a value out of range.
        """
        return SamplingParams(
            **{**defaults, **dict(self._given()), "structure": self._structure(), **own}
        )

    def _forms(self) -> dict[str, ResponseFormat | StructuredOutputs]:
        """What asks for a form, by the client's name of it."""
        found: dict[str, ResponseFormat | StructuredOutputs | None] = {
            "response_format": self.response_format,
            "structured_outputs": self.structured_outputs,
        }
        for name in GUIDED:
            if (value := getattr(self, name)) is not None:
                found[name] = StructuredOutputs(**{name.removeprefix("guided_"): value})
        return {name: form for name, form in found.items() if form is not None}

    def _structure(self) -> Structure | None:
        forms = {name: form.structure() for name, form in self._forms().items()}
        asked = [name for name, form in forms.items() if form is not None]
        if len(asked) > 1:
            message = f"{' and '.join(asked)} exclude each other"
            raise ApiError(400, message, asked[-1], "invalid_value")
        return forms[asked[0]] if asked else None

    def _given(self) -> Iterator[tuple[str, Any]]:
        for name in _SAMPLING:
            value = getattr(self, name)
            if value is not None:
                yield name, value


# The fields that go to the sampler under their own names.
_SAMPLING = (
    *("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos"),
    *("include_stop_str_in_output", "min_tokens", "skip_special_tokens", "prompt_logprobs"),
)


def check_truncation(tokens: int | None) -> None:
    """Refuses a truncate_prompt_tokens that leaves nothing. ApiError."""
    param = "truncate_prompt_tokens"
    if tokens is not None and tokens < -1:
        message = f"{param} must be at least 1, or -1 for the model's length"
        raise ApiError(400, message, param, "invalid_value")
    if tokens == 0:
        message = f"{param} must not be 0: a prompt needs a token"
        raise ApiError(400, message, param, "invalid_value")


def check_placing(cache_salt: str | None, priority: int | None) -> None:
    """Refuses a salt or a priority out of range. ApiError."""
    if cache_salt is not None and not 0 < len(cache_salt) <= _MAX_SALT:
        message = f"cache_salt must have 1 to {_MAX_SALT} characters"
        raise ApiError(400, message, "cache_salt", "invalid_value")
    if priority is not None and not -(2**31) <= priority < 2**31:
        message = "priority must be a 32-bit integer"
        raise ApiError(400, message, "priority", "invalid_value")
