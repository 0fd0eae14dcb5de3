"""`SamplingParams`: everything a request may ask of the sampler, checked by one validator.

The validator runs at construction and again at the engine's door (`check_against`), in this order
over all fields: non-finite numbers, types (a bool is not an int), ranges, rules between fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from .checks import (
    INT32_MAX,
    NumberRule,
    check_token_ids,
    is_int,
    is_number,
    refuse_non_finite,
    shown,
)
from .errors import RequestError
from .structure import Structure

POOLINGS = ("mean", "last")

# Below this the distribution is a point mass for any practical logits: treated as exactly greedy.
GREEDY_TEMPERATURE = 1e-5

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_TOKENS = 256
MAX_LOGIT_BIAS = 100.0

RULES = (
    NumberRule("n", 1, 128),
    NumberRule("max_tokens", 1, INT32_MAX, optional=True),
    NumberRule("min_tokens", 0, INT32_MAX),
    NumberRule("temperature", 0, 100, integer=False),
    NumberRule("top_k", -1, INT32_MAX),
    NumberRule("top_p", 0, 1, integer=False, above_low=True),
    NumberRule("min_p", 0, 1, integer=False),
    NumberRule("repetition_penalty", 0.01, 100, integer=False),
    NumberRule("presence_penalty", -2, 2, integer=False),
    NumberRule("frequency_penalty", -2, 2, integer=False),
    NumberRule("seed", -(2**63), 2**63 - 1, optional=True),
    NumberRule("logprobs", 0, 20, optional=True),
    NumberRule("prompt_logprobs", 0, 20, optional=True),
)
RULE_OF = {rule.name: rule for rule in RULES}
_FLAGS = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "detokenize")


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled; immutable, and valid from the moment it exists.

    n: completions per prompt, 1..128. With temperature 0 and n > 1 all of them are equal.
    max_tokens: new tokens at most, default 256; None: up to the model's length limit.
    min_tokens: no end-of-sequence, stop token or stop string counts before this many tokens.
    temperature: 0..100; 0 (and anything below 1e-5) is greedy, ties going to the lowest token id.
    top_k: keep the k most likely tokens; 0 or -1: off.
    top_p: keep the smallest set of likely tokens with this probability mass; 1: off.
    min_p: keep tokens with at least min_p times the highest probability; 0: off.
    repetition_penalty: 0.01..100 over prompt and output (above 1 discourages).
    presence_penalty, frequency_penalty: -2..2 over the output only.
    logit_bias: token id -> -100..100, added to the logits.
    seed: same seed, prompt and model give the same tokens in any batch; None: drawn by the engine.
    stop: a string or strings that end the completion; stop_token_ids: the same for token ids.
    ignore_eos: the model's own end-of-sequence tokens do not stop.
    include_stop_str_in_output: keep the stop string (or stop token's text) in the text.
    logprobs, prompt_logprobs: None or 0..20 alternatives per token, of the model's raw distribution
        (before temperature, penalties, bias and masks); the token itself is always reported.
    skip_special_tokens: special tokens leave no text; detokenize: False returns token ids only.
    pooling: "mean" or "last": the request wants a vector of its prompt (Engine.embed), no text; it
        takes max_tokens=1 and n=1.
    structure: the form of the text, such as Structure.json_object(). It outranks min_tokens,
        ignore_eos and stop_token_ids: where nothing may follow, the completion ends ("stop").

    Raises RequestError (with `.param`) for a value outside of these ranges.
    """

    n: int = 1
    max_tokens: int | None = 256
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True
    structure: Structure | None = None
    pooling: str | None = None

    def __post_init__(self) -> None:
        self.check()
        # Own copies: a list that the caller changes later must not change a running request.
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, always as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def has_penalties(self) -> bool:
        """True when the logits depend on which tokens were seen before."""
        return self.repetition_penalty != 1 or self.has_output_penalties

    @property
    def has_output_penalties(self) -> bool:
        """True when presence or frequency penalties are on."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0

    def check(self) -> None:
        """The validator; RequestError for the first fault in the order given above."""
        _check_finite(self)
        _check_types(self)
        _check_ranges(self)
        _check_together(self)

    def check_against(self, vocab_size: int) -> None:
        """The engine's door: the validator again, and every token id within the logits' width."""
        self.check()
        check_token_ids("stop_token_ids", self.stop_token_ids, vocab_size)
        check_token_ids("logit_bias", list(self.logit_bias or ()), vocab_size)


def validate_prompt_ids(ids: Sequence[int], vocab_size: int) -> None:
    """RequestError unless `ids` is a non-empty list or tuple of ints in [0, vocab_size)."""
    if not isinstance(ids, list | tuple):
        raise RequestError(f"prompt must be a list of token ids, got {shown(ids)}", "prompt")
    if not ids:
        raise RequestError("prompt must hold at least one token", "prompt")
    check_token_ids("prompt", ids, vocab_size)


def _check_finite(params: SamplingParams) -> None:
    for field in fields(params):
        refuse_non_finite(field.name, (getattr(params, field.name),))
    if isinstance(params.logit_bias, Mapping):
        refuse_non_finite("logit_bias", params.logit_bias.values())


def _check_types(params: SamplingParams) -> None:
    for rule in RULES:
        rule.check_type(getattr(params, rule.name))
    for name in _FLAGS:
        if not isinstance(getattr(params, name), bool):
            raise _refusal(params, name, "True or False")
    if not isinstance(params.structure, Structure | None):
        raise _refusal(params, "structure", "a Structure")
    if params.pooling is not None and params.pooling not in POOLINGS:
        raise _refusal(params, "pooling", " or ".join(POOLINGS))
    if not _is_str(params.stop) and not _is_list_of(params.stop, _is_str):
        raise _refusal(params, "stop", "a string or a list of strings")
    if not _is_list_of(params.stop_token_ids, is_int):
        raise _refusal(params, "stop_token_ids", "a list of token ids")
    bias = params.logit_bias
    if bias is None:
        return
    if not isinstance(bias, Mapping) or not (
        all(map(is_int, bias)) and all(map(is_number, bias.values()))
    ):
        raise _refusal(params, "logit_bias", "a mapping from token ids to numbers")


def _check_ranges(params: SamplingParams) -> None:
    for rule in RULES:
        rule.check_range(getattr(params, rule.name))
    strings, ids = params.stop_strings, params.stop_token_ids
    if len(strings) > MAX_STOP_STRINGS or not all(
        0 < len(text) <= MAX_STOP_CHARS for text in strings
    ):
        allowed = f"at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARS} characters"
        raise RequestError(f"stop must hold {allowed}", "stop")
    if len(ids) > MAX_STOP_TOKENS or any(token < 0 for token in ids):
        allowed = f"at most {MAX_STOP_TOKENS} token ids, none of them negative"
        raise RequestError(f"stop_token_ids must hold {allowed}", "stop_token_ids")
    if params.structure is not None:
        params.structure.check()
    for token, value in (params.logit_bias or {}).items():
        if token < 0 or not -MAX_LOGIT_BIAS <= value <= MAX_LOGIT_BIAS:
            allowed = f"token ids from 0 to numbers from -{MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}"
            got = f"{shown(token)}: {shown(value)}"
            raise RequestError(f"logit_bias must map {allowed}, got {got}", "logit_bias")


def _check_together(params: SamplingParams) -> None:
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise RequestError(
            f"min_tokens must be at most max_tokens ({params.max_tokens}), got {params.min_tokens}",
            "min_tokens",
        )
    if params.stop_strings and not params.detokenize:
        raise RequestError("stop strings need detokenize=True: there is no text to search", "stop")
    if params.pooling is not None and (params.n, params.max_tokens) != (1, 1):
        raise RequestError("pooling needs n=1 and max_tokens=1: it makes a vector", "pooling")


def _is_list_of(value: object, test: Callable[[object], bool]) -> bool:
    return isinstance(value, list | tuple) and all(test(item) for item in value)


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _refusal(params: SamplingParams, name: str, allowed: str) -> RequestError:
    return RequestError(f"{name} must be {allowed}, got {shown(getattr(params, name))}", name)
