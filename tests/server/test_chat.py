"""Chat templates: equal to transformers, fitted messages, refusals, and bounds on what they do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.engine.errors import CheckpointError, RequestError
from saccade.server.chat import ChatTemplate
from saccade.server.sandbox import RenderLimits

from .chat_templates import CHATML, FAMILIES, GEMMA, LLAMA31, PARTS, QWEN3, WITH_TOOLS

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather <now> & "here", été',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["city"],
        },
    },
}
USER = {"role": "user", "content": "  What is <1> & é?\n"}
ANSWER = {"role": "assistant", "content": " Two, of course.  "}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Zürich", "days": [1, 2]}'},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"sky": "clear"}'}
SYSTEM = {"role": "system", "content": "Be brief."}
CHATS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "turns": [USER, ANSWER, USER],
    "system": [SYSTEM, USER, ANSWER, USER],
    "call": [USER, CALL, RESULT, ANSWER, USER],
    "thought": [USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}, USER],
    "reasoned": [USER, {**ANSWER, "reasoning": "I think."}],
    "alternation": [USER, USER],
}


def transformers_tokenizer(template: str | dict[str, str]) -> Any:
    """transformers' side, over a vocabulary of one word: it only renders."""
    import transformers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, "x"))
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)
    made.chat_template = template
    return made


def ours(template: str | dict[str, str], **options: Any) -> ChatTemplate:
    named = {"default": template} if isinstance(template, str) else template
    return ChatTemplate(named, TOKENS, **options)


def as_objects(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a user of transformers writes: arguments as an object."""
    copy = json.loads(json.dumps(messages))
    for message in copy:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return copy


def expected(theirs: Any, messages: list[dict[str, Any]], **options: Any) -> str | None:
    """transformers' text, None where the template raises."""
    import jinja2

    try:
        return str(theirs.apply_chat_template(messages, tokenize=False, **options))
    except (jinja2.TemplateError, TypeError, ValueError):
        return None


class Pairs(dict[str, tuple[ChatTemplate, Any]]):
    """(ours, transformers') per family, made when first asked for."""

    def __missing__(self, family: str) -> tuple[ChatTemplate, Any]:
        self[family] = (ours(FAMILIES[family]), transformers_tokenizer(FAMILIES[family]))
        return self[family]


CACHE = Pairs()


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("parts", "deepseek")])
def test_equals_transformers(family: str, chat: str) -> None:
    template, theirs = CACHE[family]
    for tools in (None, [WEATHER]) if family in WITH_TOOLS else (None,):
        for prompt in (False, True):
            options: dict[str, Any] = {"tools": tools, "add_generation_prompt": prompt}
            wanted = expected(theirs, as_objects(CHATS[chat]), **options)
            if wanted is None or "None" in wanted:  # it cannot say that there is no content
                blank = [{**each, "content": each["content"] or ""} for each in CHATS[chat]]
                wanted = expected(theirs, as_objects(blank), **options)
            if wanted is None:
                with pytest.raises(RequestError, match="cannot render"):
                    template.render(CHATS[chat], **options)
            else:
                assert template.render(CHATS[chat], **options) == wanted


def test_families_render_what_they_can() -> None:
    """The comparison above is of texts, but for these refusals."""
    refused = {
        (family, chat)
        for family in FAMILIES
        for chat in CHATS
        if expected(transformers_tokenizer(FAMILIES[family]), as_objects(CHATS[chat])) is None
    }
    alternating = {(family, "alternation") for family in ("llama2", "mistral", "gemma")}
    calls = {(family, "call") for family in ("llama2", "gemma", "chatml", "hermes", "phi")}
    assert refused == alternating | calls | {("gemma", "system"), ("deepseek", "call")}


ROLES = st.sampled_from(["user", "assistant", "system"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.tuples(ROLES, TEXT), min_size=1, max_size=5),
    prompt=st.booleans(),
    think=st.sampled_from([None, True, False]),
)
def test_any_messages_equal_transformers(
    turns: list[tuple[str, str]], prompt: bool, think: bool | None
) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    kwargs = {} if think is None else {"enable_thinking": think}
    for family in ("llama3", "llama3.1", "qwen2.5", "qwen3", "phi", "gemma"):
        template, theirs = CACHE[family]
        wanted = expected(theirs, messages, add_generation_prompt=prompt, **kwargs)
        if wanted is None:
            with pytest.raises(RequestError):
                template.render(messages, add_generation_prompt=prompt, kwargs=kwargs)
        else:
            found = template.render(messages, add_generation_prompt=prompt, kwargs=kwargs)
            assert found == wanted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["So far", "So far ", "\n so", "é\ue000"])
def test_goes_on_with_the_last_message(family: str, text: str) -> None:
    content: Any = [{"type": "text", "text": text}] if family == "parts" else text
    messages = [USER, {"role": "assistant", "content": content}]
    if family == "parts":
        messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}, messages[1]]
    wanted = expected(
        transformers_tokenizer(FAMILIES[family]), messages, continue_final_message=True
    )
    assert wanted is not None
    found = ours(FAMILIES[family]).render(
        messages, add_generation_prompt=False, continue_final_message=True
    )
    assert found == wanted
    assert found.endswith((text.strip(), text))


def test_going_on_has_rules() -> None:
    template = ours(CHATML)
    with pytest.raises(RequestError, match="exclude each other"):
        template.render([USER, ANSWER], continue_final_message=True)
    with pytest.raises(RequestError, match="text to go on with"):
        ours(QWEN3).render([USER, CALL], add_generation_prompt=False, continue_final_message=True)
    silent = ours("{% for message in messages[:-1] %}{{ message.content }}{% endfor %}")
    with pytest.raises(RequestError, match="leaves out the last message"):
        silent.render([USER, ANSWER], add_generation_prompt=False, continue_final_message=True)


def test_text_parts_become_what_the_template_reads() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    listed = [{"role": "user", "content": parts}]
    assert "one\ntwo" in ours(CHATML).render(listed)
    assert "onetwo" in ours(QWEN3).render(listed)  # it reads parts itself
    assert ours(PARTS).render([{"role": "user", "content": "plain"}]).startswith("<|user|>plain")
    assert "[{" not in ours(LLAMA31).render(listed)


def test_arguments_become_what_the_template_reads() -> None:
    chat = [USER, CALL, RESULT]
    assert '{"city": "Zürich", "days": [1, 2]}\n```' in ours(FAMILIES["deepseek"]).render(chat)
    assert '"parameters": {"city": "Zürich"' in ours(LLAMA31).render(chat)
    assert "None" not in ours(LLAMA31).render(chat)


def test_none_never_reaches_the_prompt() -> None:
    calls = "{{ m.tool_calls | tojson if m.tool_calls }}"
    template = "{% for m in messages %}{{ m.content | trim }}" + calls + "{% endfor %}"
    assert "None" not in ours(template).render([USER, CALL])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_assistant_that_said_nothing_has_an_empty_turn(family: str) -> None:
    template = ours(FAMILIES[family])
    empty = template.render([USER, {"role": "assistant", "content": ""}, USER])
    for silent in (
        {"content": None},
        {},
        {"content": None, "tool_calls": [], "refusal": None},
        {"content": "", "tool_calls": []},
    ):
        assert template.render([USER, {"role": "assistant", **silent}, USER]) == empty
    said = {**ANSWER, "tool_calls": []}
    assert template.render([USER, said, USER]) == template.render([USER, ANSWER, USER])


def test_a_template_shows_whether_it_takes_several_calls() -> None:
    assert not ours(LLAMA31).takes_several_calls
    assert ours(QWEN3).takes_several_calls and ours(FAMILIES["mistral"]).takes_several_calls
    assert ours(CHATML).takes_several_calls  # it reads no calls at all


def test_developer_is_system_where_the_template_knows_none() -> None:
    chat = [{"role": "developer", "content": "Be brief."}, USER]
    assert "<|im_start|>system\nBe brief." in ours(CHATML).render(chat)
    assert "developer: Be brief." in ours(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}{# developer #}"
    ).render(chat)


def test_kwargs_reach_the_template_and_cannot_replace_its_variables() -> None:
    template = ours(QWEN3)
    assert template.render([USER], kwargs={"enable_thinking": False}).endswith("</think>\n\n")
    for name in ("messages", "tools", "add_generation_prompt", "bos_token"):
        with pytest.raises(RequestError, match=name) as caught:
            template.render([USER], kwargs={name: "x"})
        assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        ([1], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([USER, {**ANSWER, "function_call": {"name": "f"}}], "messages[1].function_call"),
        ([USER, {"role": "user", "content": ["x"]}], "messages[1].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "tool_calls": 1}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
    ],
)
def test_bad_messages_are_named(messages: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        ours(CHATML).render(messages)
    assert caught.value.param == param


def called(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "abcdefghi", "function": {"name": "f", "arguments": arguments}}
    return [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]


@pytest.mark.parametrize("arguments", [3, None, [1], True])
def test_arguments_must_be_a_text_or_an_object(arguments: Any) -> None:
    with pytest.raises(RequestError, match="arguments must be a JSON object, as text, got"):
        ours(QWEN3).render(called(arguments))


@pytest.mark.parametrize("family", [*WITH_TOOLS, "deepseek"])
@pytest.mark.parametrize("part", ['{"city": "Z\u00fc', "{", '["\\\\', "3", "[" * 100_000])
def test_a_call_that_was_cut_off_stands_as_it_was_written(family: str, part: str) -> None:
    """In the place of the object, whether the template writes it as JSON or takes a text."""
    template, tools = ours(FAMILIES[family]), [WEATHER] if family in WITH_TOOLS else None
    whole, written = template.render(called({"zzz": 1}), tools=tools), '{"zzz": 1}'
    assert whole.count(written) == 1
    assert template.render(called(part), tools=tools) == whole.replace(written, part)


def test_json_of_a_whole_message_holds_a_call_that_was_cut_off() -> None:
    for filters in ("tojson", "tojson(indent=4)", "tojson(sort_keys=true)"):
        template = "{% for m in messages %}{{ m.tool_calls | FILTER if m.tool_calls }}{% endfor %}"
        written = ours(template.replace("FILTER", filters)).render(called('{"a": "b'))
        assert '"arguments": {"a": "b' in written and written.count("arguments") == 1
        assert json.loads(written.replace('{"a": "b', "0"))[0]["function"]["name"] == "f"


def test_a_template_that_reads_the_entries_has_no_place_for_such_a_call() -> None:
    xml = "{% for m in messages %}{% for c in m.tool_calls or () %}" + (
        "{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}"
        "{% endfor %}{% endfor %}"
    )
    assert ours(xml).render(called('{"a": "b"}')) == "<a>b"
    with pytest.raises(RequestError, match="reads its entries") as caught:
        ours(xml).render(called('{"a": "b'))
    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"
    assert ours(CHATML).render(called('{"a": "b')) == ours(CHATML).render(called({}))  # shows none


def test_a_template_refuses_in_its_own_words() -> None:
    with pytest.raises(RequestError, match="Conversation roles must alternate"):
        ours(GEMMA).render([USER, USER])


def test_other_mistakes_keep_their_text_to_themselves() -> None:
    with pytest.raises(RequestError, match="does not fit this input") as caught:
        ours("{{ messages[0].content + 1 }}").render([USER])
    assert "concatenate" not in str(caught.value)


def test_tools_need_a_template_that_shows_them() -> None:
    with pytest.raises(RequestError, match="no place for tools") as caught:
        ours(CHATML).render([USER], tools=[WEATHER])
    assert caught.value.param == "tools"


# ---- bounds ----

SLOW = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for a in range(99999) if range(99999) | list %}{% endfor %}",
]
LARGE = [
    "{{ 'a' * 999999999 }}",
    "{{ 999999999 * 'a' }}",
    "{{ [1] * 999999999 }}",
    "{{ 2 ** 99999999 }}",
    "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{{ 'a' | center(999999999) }}",
    "{{ 'a\nb' | indent(999999999) }}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '%0*d' % (999999999, 1) }}",
    "{{ '%0999999999d' | format(1) }}",
    "{{ '{:0999999999}'.format(1) }}",
    "{% set s = 'a' * 100000 %}{{ s.replace('a', s) }}",
    "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}",
]


@pytest.mark.parametrize("source", [*SLOW, *LARGE])
def test_time_and_size_are_bounded(source: str) -> None:
    guarded = "{% if messages[0].content == 'go' * 500 %}" + source + "{% endif %}"
    template = ours(guarded, limits=RenderLimits(characters=1_000_000, seconds=0.3))
    start = time.monotonic()
    with pytest.raises(RequestError, match="cannot render"):
        template.render([{"role": "user", "content": "go" * 500}])
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{{ dict.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
    ],
)
def test_python_is_out_of_reach(source: str) -> None:
    guarded = "{% if messages[0].content == 'go' %}" + source + "{% endif %}"
    with pytest.raises(RequestError, match="cannot render"):
        ours(guarded).render([{"role": "user", "content": "go"}])


# ---- files ----


def write_config(folder: Path, **entries: Any) -> Path:
    entries = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"} | entries
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    return folder


def test_reads_the_folder_as_transformers_does(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template="{{ bos_token }}one")
    assert ChatTemplate.from_folder(tmp_path).render([USER]) == "<s>one"
    named = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]
    write_config(tmp_path, chat_template=named)
    assert ChatTemplate.from_folder(tmp_path).render([USER]) == "two"
    (tmp_path / "additional_chat_templates").mkdir()
    extra = tmp_path / "additional_chat_templates" / "tool_use.jinja"
    extra.write_text("{% for tool in tools %}{{ tool.function.name }}{% endfor %}")
    (tmp_path / "chat_template.jinja").write_text("four")
    template = ChatTemplate.from_folder(tmp_path)
    assert template.render([USER]) == "four"
    assert template.render([USER], tools=[WEATHER]) == "get_weather"
    assert ChatTemplate.from_folder(tmp_path, override="five").render([USER]) == "five"


def test_without_a_template_nobody_chats(tmp_path: Path) -> None:
    template = ChatTemplate.from_folder(tmp_path)
    assert not template.exists
    with pytest.raises(RequestError, match="no chat template"):
        template.render([USER])
    write_config(tmp_path, chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(RequestError, match="none of them 'default'"):
        ChatTemplate.from_folder(tmp_path).render([USER])


@pytest.mark.parametrize("source", ["{% if %}", "{{", "{% for %}", "{{ x | no_such_filter }}"])
def test_a_broken_template_is_found_at_the_start(tmp_path: Path, source: str) -> None:
    write_config(tmp_path, chat_template=source)
    with pytest.raises(CheckpointError, match="chat template 'default'"):
        ChatTemplate.from_folder(tmp_path)


def test_rendering_needs_no_torch() -> None:
    """The HTTP process renders; it never loads what the engine computes with."""
    program = "import sys, saccade.server.chat; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.split() == ["set()"]
