"""Structures: what is refused at the door, what compiles, and which tokens they allow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade import SamplingParams, Structure
from saccade.engine import grammar_state
from saccade.engine.errors import RequestError, SaccadeError
from saccade.engine.grammar import GrammarCompiler
from saccade.engine.grammar_state import GrammarState, MaskTime
from saccade.engine.structure import MAX_CHARS, MAX_CHOICES, MAX_DEPTH
from saccade.engine.token_bytes import token_bytes
from saccade.engine.tokenizer import Tokenizer
from saccade.engine.tokenizer_files import TokenizerFiles

from . import tokenizers_for_tests as kinds

WORDS = ["<tool_call>", "  "]  # added, and no special tokens


def byte_level() -> Tokenizer:
    backend = kinds.byte_level()
    backend.add_tokens([tokenizers.AddedToken(word, special=False) for word in WORDS])
    backend.add_special_tokens(["[CALL]"])
    return Tokenizer(TokenizerFiles(backend))


def compiler(tokenizer: Tokenizer | None = None, **options: Any) -> GrammarCompiler:
    tokenizer = tokenizer or byte_level()
    options = {"vocab_size": tokenizer.vocab_size, "eos_ids": [1, 257], **options}
    return GrammarCompiler(tokenizer, **options)


BYTES = byte_level()
COMPILER = compiler(BYTES, eos_ids=[BYTES.id_of("</s>")])
END = BYTES.id_of("</s>")


def follows(state: GrammarState, tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """How many of these tokens the masks allow, one after the other."""
    for count, token in enumerate(ids):
        if not state.allowed(tokenizer.vocab_size)[token]:
            return count
        state.advance(token)
    return len(ids)


CONTENT = token_bytes(BYTES) or []


def accepts(structure: Structure, text: str) -> bool:
    """Whether a model could write exactly this text, in whatever tokens, and end there."""
    return writes(COMPILER.compile(structure).copy(), text.encode("utf-8"))


def writes(state: GrammarState, text: bytes) -> bool:
    """Where only one text can follow, only its usual tokens are allowed: so all are tried."""
    if state.is_complete or not text:
        return not text and (state.is_complete or bool(state.allowed(BYTES.vocab_size)[END]))
    for token in np.flatnonzero(state.allowed(BYTES.vocab_size)).tolist():
        if CONTENT[token] and text.startswith(CONTENT[token]) and token not in BYTES.special_ids:
            after = state.copy()
            after.advance(token)
            if writes(after, text[len(CONTENT[token]) :]):
                return True
    return False


# ---- the door ----


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Structure("xml", "x"), "kind must be one of"),  # type: ignore[arg-type]
        (lambda: Structure.regex(""), "regex must not be empty"),
        (lambda: Structure.regex(3), "regex must be a text"),  # type: ignore[arg-type]
        (lambda: Structure.regex("a" * (MAX_CHARS + 1)), f"at most {MAX_CHARS} characters"),
        (lambda: Structure.regex("\ud800"), "lone surrogate at character 0"),
        (lambda: Structure.json_schema("{"), "json_schema is not JSON"),
        (lambda: Structure.json_schema("[1]"), "json_schema must be an object"),
        (lambda: Structure.json_schema("[" * 99_999), "json_schema is not JSON"),
        (lambda: Structure.json_schema({"a": float("nan")}), "not a JSON value"),
        (lambda: Structure.json_schema({"a": {1, 2}}), "not a JSON value"),
        (lambda: Structure.choice([]), "list of 1 to"),
        (lambda: Structure.choice(["a", ""]), "none of them empty"),
        (lambda: Structure.choice(["a", 3]), "list of 1 to"),  # type: ignore[list-item]
        (lambda: Structure.choice("ab"), "list of 1 to"),
        (lambda: Structure.choice(["a"] * (MAX_CHOICES + 1)), "list of 1 to"),
        (lambda: SamplingParams(structure="json"), "structure must be a Structure"),
    ],
)
def test_malformed_structures_are_refused(make: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        make()
    assert caught.value.param == "structure"


def test_schemas_are_as_deep_as_allowed() -> None:
    def nested(depth: int) -> dict[str, Any]:
        inner: dict[str, Any] = {}
        for _ in range(depth - 1):
            inner = {"items": inner}
        return inner

    Structure.json_schema(nested(MAX_DEPTH))
    with pytest.raises(RequestError, match=f"at most {MAX_DEPTH} levels"):
        Structure.json_schema(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (Structure.regex("(a"), r"used: [^\n]* parse error: unclosed group$"),
        (Structure.regex("(?=a)b"), "parse error: look-around, [^\n]* is not supported$"),
        (Structure.regex("a" * 1000 + "("), "aaa [.]{3} aaa[^\n]*: unclosed group$"),
        (Structure.grammar("start: /(/"), "unclosed group$"),
        (
            Structure.json_schema({"pattern": "a[", "type": "string"}),
            "in 'a\\[': unclosed character",
        ),
        (Structure.json_schema({"pattern": "a\n(", "type": "string"}), "parse error[^\n]*unclosed"),
        (Structure.regex("()"), "the empty one alone"),
        (Structure.grammar("start: nowhere"), "unknown name"),
        (Structure.grammar("this is no grammar"), "cannot be used"),
        (Structure.json_schema({"type": "strange"}), "Invalid type: strange"),
        (Structure.json_schema({"not": {"type": "string"}}), "Unimplemented keys"),
        (Structure.json_schema({"$ref": "http://127.0.0.1/x"}), "cannot be used"),
        (Structure.json_schema({"$ref": "#"}), "no text satisfies it"),
        (Structure.json_schema({"enum": []}), "cannot be used"),
        (
            Structure.json_schema(
                {"type": "object", "properties": {"a": False}, "required": ["a"]}
            ),
            "unsatisfiable",
        ),
    ],
)
def test_what_does_not_compile_is_refused_with_the_reason(
    structure: Structure, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        COMPILER.compile(structure)
    assert caught.value.param == "structure"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "structure",
    [
        Structure.regex("(a{1000}){1000}"),
        Structure.regex("((a|b|ab){1,1000}c){1,1000}"),
        Structure.json_schema({"type": "string", "pattern": "^(a{1000}){1000}$"}),
        Structure.json_schema({"enum": [f"value {i}" for i in range(8000)]}),
        Structure.json_schema(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"{i}{j}": {}}} for i in range(8)]} for j in range(8)
                ]
            }
        ),
        Structure.grammar('start: x\nx: x x | "a" | "aa" | x "a" x | x x x'),
        Structure.regex("(.*a.{0,200}){5}"),
    ],
)
def test_costly_structures_cost_little(structure: Structure) -> None:
    """Refused or served, but never for long: neither at the door nor at a token."""
    start = time.monotonic()
    try:
        state = COMPILER.compile(structure).copy()
    except RequestError:
        state = None
    assert time.monotonic() - start < 4
    slowest = 0.0
    for letter in "aabab" * 8 if state is not None else "":
        start = time.thread_time()  # others may hold the processor for longer than this takes
        try:
            follows(state, BYTES, BYTES.encode_plain(letter))
        except SaccadeError:
            break
        slowest = max(slowest, time.thread_time() - start)
    assert slowest < 0.5


def test_a_compilation_has_a_deadline() -> None:
    slow = compiler(seconds=0.2)
    slow.warm_up()
    slow._build = lambda structure: time.sleep(3)  # type: ignore[method-assign,return-value,assignment]
    start = time.monotonic()
    for _ in range(3):  # the third finds both threads busy
        with pytest.raises(RequestError, match=r"longer than 0\.2 seconds"):
            slow.compile(Structure.json_object())
    assert time.monotonic() - start < 2


def test_compiled_structures_are_kept() -> None:
    structure = Structure.regex("kept[0-9]+")
    assert COMPILER.compile(structure) is COMPILER.compile(Structure.regex("kept[0-9]+"))


def test_without_a_tokenizer_there_is_no_structure() -> None:
    with pytest.raises(RequestError, match=r"tokenizer\.json"):
        GrammarCompiler(None, 128, [1]).compile(Structure.json_object())
    with pytest.raises(RequestError, match="end-of-sequence"):
        compiler(eos_ids=[]).compile(Structure.json_object())


def test_without_llguidance_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine does not load it; a structure is refused with the reason."""
    code = "import sys, saccade.engine.engine; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match="llguidance, which is not installed"):
        compiler().compile(Structure.json_object())


# ---- what they allow ----

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "kind": {"enum": ["a", "é"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 2},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("structure", "good", "bad"),
    [
        (
            Structure.json_object(),
            ["{}", '{"a": [1, {"b": null}]}', '{\n  "é": "\\u00e9"\n}'],
            ["[]", "3", '{"a" 1}', "{} ", " {}", '{"a": 01}'],
        ),
        (
            Structure.json_schema(SCHEMA),
            ['{"name": "abc", "kind": "é"}', '{"name":"","kind":"a","sizes":[1,22]}'],
            ['{"name": "abcdef"', '{"kind": "a"', '{"name": "a", "kind": "b"', '{"name": "a"}'],
        ),
        (Structure.regex("[a-c]{2}(-[0-9]+)?"), ["ab", "cc-12"], ["a", "abc", "ab-", "xx"]),
        (
            Structure.choice(["yes", "no", 'a"\\\n\x00', "日本 {}.*"]),
            ["yes", "no", 'a"\\\n\x00', "日本 {}.*"],
            ["y", "maybe", "yesno", "日本 {}..."],
        ),
        (Structure.choice(["a", "ab"]), ["a", "ab"], ["b", "abb"]),
        (
            Structure.grammar('start: "x" ("," NUMBER)*\nNUMBER: /[0-9]+/'),
            ["x", "x,12,3"],
            ["x,", "12"],
        ),
    ],
)
def test_allows_what_it_says(structure: Structure, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert accepts(structure, text), text
    for text in bad:
        assert not accepts(structure, text), text


TEXT = st.characters(exclude_categories=["Cs", "Cc"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(TEXT, max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(TEXT, max_size=3), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(value=st.dictionaries(st.text(TEXT, max_size=4), VALUES, max_size=3), indent=st.booleans())
def test_any_json_object_is_one(value: dict[str, Any], indent: bool) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2 if indent else None)
    assert accepts(Structure.json_object(), text)


@settings(deadline=None)
@given(text=st.text('abc{}[]":,0123 \n\\ué', max_size=12))
def test_nothing_else_is_a_json_object(text: str) -> None:
    if accepts(Structure.json_object(), text):
        assert isinstance(json.loads(text), dict)


@settings(deadline=None)
@given(
    pattern=st.sampled_from(["a*b", "(ab|c)+", "[^a]{1,3}", "a?b?c?d", "(a|b(c|d))*e"]),
    text=st.text("abcde", max_size=6),
)
def test_regexes_match_whole_texts(pattern: str, text: str) -> None:
    assert accepts(Structure.regex(pattern), text) == bool(re.fullmatch(pattern, text))


def test_special_tokens_are_never_text() -> None:
    mask = COMPILER.compile(Structure.regex("(.|\n)*")).allowed(BYTES.vocab_size)
    specials = BYTES.special_ids - {END}
    assert specials and not any(mask[token] for token in specials)
    assert mask[END]
    assert all(mask[BYTES.id_of(word)] for word in WORDS)


def test_an_end_comes_with_every_end_token() -> None:
    several = compiler(eos_ids=[3, 7]).compile(Structure.regex("ab?")).copy()
    assert not several.allowed(BYTES.vocab_size)[[3, 7]].any()
    follows(several, BYTES, BYTES.encode_plain("a"))
    assert several.allowed(BYTES.vocab_size)[[3, 7]].all()
    assert not several.is_complete
    follows(several, BYTES, BYTES.encode_plain("b"))
    assert several.is_complete


def test_markers_are_special_tokens_where_there_are_any() -> None:
    special = Structure.grammar('start: mark_0 "x"', markers=("[CALL]",))
    mask = COMPILER.compile(special).allowed(BYTES.vocab_size)
    assert np.flatnonzero(mask).tolist() == [BYTES.id_of("[CALL]")]
    assert accepts(Structure.grammar('start: mark_0 "x"', markers=("<tool",)), "<toolx")
    state = COMPILER.compile(Structure.grammar('start: "<tool_call>" "x"')).copy()
    assert follows(state, BYTES, [BYTES.id_of("<tool_call>") or 0, *BYTES.encode_plain("x")]) == 2
    assert state.is_complete


def test_a_padded_vocabulary_is_never_sampled() -> None:
    wide = compiler(vocab_size=BYTES.vocab_size + 50)
    mask = wide.compile(Structure.regex(".*")).allowed(BYTES.vocab_size + 50)
    assert len(mask) == BYTES.vocab_size + 50
    assert not mask[BYTES.vocab_size :].any()
    narrow = compiler(vocab_size=100).compile(Structure.regex(".*")).allowed(100)
    assert len(narrow) == 100 and narrow.any()


def test_copies_go_their_own_ways() -> None:
    first = COMPILER.compile(Structure.regex("a+b|a+c")).copy()
    follows(first, BYTES, BYTES.encode_plain("aa"))
    second = first.copy()
    follows(first, BYTES, BYTES.encode_plain("b"))
    assert first.is_complete and not second.is_complete
    assert follows(second, BYTES, BYTES.encode_plain("c")) == 1


def test_a_wrong_token_is_an_error_of_this_state_alone() -> None:
    start = COMPILER.compile(Structure.regex("ab"))
    state = start.copy()
    state.advance(BYTES.encode_plain("x")[0])
    with pytest.raises(RequestError, match="too complex to follow") as caught:
        state.allowed(BYTES.vocab_size)
    assert caught.value.param == "structure"
    assert not state.is_complete
    assert start.copy().allowed(BYTES.vocab_size).any()


class Clock:
    """Masks that take the time of a script, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.takes = 0.0, 0.0
        monkeypatch.setattr(grammar_state.time, "thread_time", lambda: self.now)

    def deep_copy(self) -> Clock:
        return self

    def compute_bitmask(self) -> bytes:
        self.now += self.takes
        return bytes(4)

    def is_error(self) -> bool:
        return False


def test_completions_of_a_request_share_the_time_of_their_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    template: Any = GrammarState(clock)  # type: ignore[arg-type]
    first = template.for_request()
    second, other = first.copy(), template.for_request()
    clock.takes = 0.45
    for state in (first, second, first, second):
        state.allowed(32)
    for state in (first, second):
        with pytest.raises(RequestError, match="too complex"):
            state.allowed(32)
    other.allowed(32)
    clock.takes = 0.001
    for _ in range(5000):  # quick ones may take as long as they like
        other.allowed(32)


def test_where_a_step_has_taken_long_only_quick_masks_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    slow, quick = (GrammarState(clock) for _ in range(2))  # type: ignore[arg-type]
    clock.takes = 0.02
    slow.allowed(32)
    clock.takes = 0.001
    quick.allowed(32)
    step = MaskTime()
    step.spent = 0.6
    quick.allowed(32, step)
    with pytest.raises(RequestError, match="too complex"):
        slow.allowed(32, step)
    assert step.spent == pytest.approx(0.601)
    slow.allowed(32, MaskTime())  # another step


# ---- bytes of tokens ----


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_bpe", "unigram"])
def test_bytes_are_what_the_detokenizer_writes(kind: str) -> None:
    tokenizer = Tokenizer(TokenizerFiles(getattr(kinds, kind)()))
    found = token_bytes(tokenizer)
    assert found is not None and len(found) == tokenizer.vocab_size
    anchor = tokenizer.encode_plain("a")
    before = tokenizer.decode(anchor)
    compared = 0
    for token, content in enumerate(found):
        text = tokenizer.decode([*anchor, token], skip_special_tokens=False)
        if content and token not in tokenizer.special_ids and "\ufffd" not in text:
            assert before + content.decode("utf-8") == text
            compared += 1
    assert compared >= len(found) // 3 - 5


@pytest.mark.parametrize("kind", ["sentencepiece_bpe", "unigram"])
def test_structures_work_with_every_kind_of_vocabulary(kind: str) -> None:
    tokenizer = Tokenizer(TokenizerFiles(getattr(kinds, kind)()))
    end = tokenizer.id_of("</s>")
    assert end is not None
    state = GrammarCompiler(tokenizer, tokenizer.vocab_size, [end]).compile(
        Structure.choice(["ab", "中 é"])
    )
    ids = [tokenizer.id_of(piece) for piece in ("中", "▁", "é")]
    copy = state.copy()
    assert follows(copy, tokenizer, [token for token in ids if token is not None]) == 3
    assert copy.is_complete


def test_the_demo_vocabulary() -> None:
    tokenizer = Tokenizer.from_folder(Path(__file__).parents[2] / "engine" / "demo")
    end = tokenizer.eos_id
    assert end is not None
    state = GrammarCompiler(tokenizer, tokenizer.vocab_size, [end]).compile(
        Structure.json_schema(SCHEMA)
    )
    copy = state.copy()
    ids = tokenizer.encode('{"name": "abc", "kind": "é", "sizes": [10]}', add_special_tokens=False)
    assert follows(copy, tokenizer, ids) == len(ids)
    assert copy.is_complete


SHAPE = Structure.json_schema(
    {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    | {"additionalProperties": False}
)
FORMS = {
    "json_schema": (SHAPE, '{"a":1}', '{"a":2}'),
    "json_object": (Structure.json_object(), "{}", "[]"),
    "regex": (Structure.regex("[0-9]{2}"), "42", "4a"),
    "choice": (Structure.choice(["yes", "no"]), "no", "nay"),
    "grammar": (Structure.grammar('start: mark_0 "x"', markers=("<c>",)), "<c>x", "<d>x"),
}


@pytest.mark.parametrize("kind", FORMS)
def test_a_form_behind_free_text(kind: str) -> None:
    form, good, bad = FORMS[kind]
    opened, perhaps = form.behind("</t>"), form.behind("</t>", "<t>")
    for free in ("", "hm", "a < b </t", '{"a":1} [0]\n\n'):
        for space in ("", "\n\n"):
            assert accepts(opened, f"{free}</t>{space}{good}")
            assert accepts(perhaps, f"<t>{free}</t>{space}{good}")
        assert not accepts(opened, f"{free}</t>{bad}")
        assert not accepts(perhaps, f"<t>{free}</t>{bad}")
    assert accepts(perhaps, good) and not accepts(opened, good)
    assert not accepts(perhaps, bad) and not accepts(perhaps, f"hm</t>{good}")


def test_the_marker_behind_free_text_may_be_a_special_token() -> None:
    state = COMPILER.compile(FORMS["choice"][0].behind("[CALL]")).copy()
    call = BYTES.id_of("[CALL]")
    assert call is not None
    ids = [*BYTES.encode_plain("a [CALL b"), call, *BYTES.encode_plain("yes")]
    assert follows(state, BYTES, ids) == len(ids) and state.is_complete
    state = COMPILER.compile(FORMS["choice"][0].behind("[CALL]")).copy()
    assert not writes(state, b"a yes")


def test_either_of_two_forms() -> None:
    for first in FORMS:
        for second in FORMS:
            both = Structure(**{**vars(FORMS[first][0]), "otherwise": FORMS[second][0]})
            for structure in (both, both.behind("</t>", "<t>")):
                for name in (first, second):
                    assert accepts(structure, FORMS[name][1])
                    assert accepts(structure, FORMS[name][1])
                assert not accepts(structure, "[[")


def test_what_nothing_satisfies_is_refused_behind_free_text_as_well() -> None:
    impossible = Structure.json_schema({"type": "integer", "minimum": 3, "maximum": 2})
    for structure in (impossible, impossible.behind("</t>"), impossible.behind("</t>", "<t>")):
        with pytest.raises(RequestError, match="cannot be used"):
            COMPILER.compile(structure)
