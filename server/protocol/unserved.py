"""Fields that are known and not served: each is refused unless its value changes nothing.

A client that sends such a field counts on it; of a field that nobody knows that cannot be said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from .errors import ApiError

Neutral = Mapping[str, tuple[Any, ...]]  # by field: the values that change nothing

# The older names of the fields of `structured_outputs` in vLLM.
GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


def check_neutral(
    fields: Any,
    table: Neutral,
    why: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
) -> None:
    """Refuses a field of the table that would change something. ApiError.

    why: by field, a message that says more; params: what clients call it, if not so.
    """
    for name, neutral in table.items():
        value = getattr(fields, name)
        if not any(type(value) is type(each) and value == each for each in neutral):
            param = (params or {}).get(name, name)
            message = (why or {}).get(name, f"{param} is not supported by this server")
            raise ApiError(400, message, param, "unsupported_parameter")


# Fields of OpenAI's /v1/responses that need a store or features that are not here.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "store": (None, False),
    "previous_response_id": (None,),
    "conversation": (None,),
    "background": (None, False),
    "prompt": (None,),
    "truncation": (None, "disabled"),
    "max_tool_calls": (None,),
}
_WHY = {
    "store": "this server keeps no responses: leave store out, or send false",
    "previous_response_id": "this server keeps no responses: send the whole conversation as input",
    "conversation": "this server keeps no conversations: send the whole conversation as input",
}
# Of completions and chats: what this route calls otherwise,
_ELSEWHERE = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "logprobs": 'top_logprobs, or "message.output_text.logprobs" in include,',
    **dict.fromkeys(("structured_outputs", *GUIDED), "text.format"),
}
# and what it does not have.
_OTHERS: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "stop": (None, []),
    "stop_token_ids": (None, []),
    "include_stop_str_in_output": (None, False),
    "presence_penalty": (None, 0, 0.0),
    "frequency_penalty": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
    "logit_bias": (None, {}),
    "ignore_eos": (None, False),
    "min_tokens": (None, 0),
    "skip_special_tokens": (None, True),
    "prompt_logprobs": (None,),
    "truncate_prompt_tokens": (None,),
    "add_special_tokens": (None, False),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "documents": (None, []),
    "include_reasoning": (None, True),
    "return_token_ids": (None, False),
    "return_tokens_as_token_ids": (None, False),
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1, 1.0),
    "logits_processors": (None, []),
    "kv_transfer_params": (None,),
    "mm_processor_kwargs": (None,),
    "structural_tag": (None,),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "chat_template": (None,),
    "modalities": (None, ["text"]),
    "audio": (None,),
}


class UnservedFields(msgspec.Struct, kw_only=True):
    """What /v1/responses refuses unless it is neutral."""

    UNSERVED: ClassVar[Neutral] = (
        _UNSUPPORTED | dict.fromkeys(_ELSEWHERE, (None,)) | {"logprobs": (None, False)} | _OTHERS
    )

    store: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None
    truncation: Any = None
    max_tool_calls: Any = None
    messages: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    logprobs: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    n: Any = None
    best_of: Any = None
    stop: Any = None
    stop_token_ids: Any = None
    include_stop_str_in_output: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    repetition_penalty: Any = None
    logit_bias: Any = None
    ignore_eos: Any = None
    min_tokens: Any = None
    skip_special_tokens: Any = None
    prompt_logprobs: Any = None
    truncate_prompt_tokens: Any = None
    add_special_tokens: Any = None
    add_generation_prompt: Any = None
    continue_final_message: Any = None
    documents: Any = None
    include_reasoning: Any = None
    return_token_ids: Any = None
    return_tokens_as_token_ids: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    logits_processors: Any = None
    kv_transfer_params: Any = None
    mm_processor_kwargs: Any = None
    structural_tag: Any = None
    functions: Any = None
    function_call: Any = None
    chat_template: Any = None
    modalities: Any = None
    audio: Any = None

    def check_unserved(self) -> None:
        """ApiError for the first that is not."""
        why = {
            name: f"{name} is not supported on this route: use {own}"
            for name, own in _ELSEWHERE.items()
        } | {name: f"{name} is not supported on this route" for name in _OTHERS}
        check_neutral(self, self.UNSERVED, why | _WHY)
