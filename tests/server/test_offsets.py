"""text_offset: where tokens begin in the text that is returned."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.engine.detokenizer import IncrementalDetokenizer
from saccade.engine.tokenizer import Tokenizer
from saccade.server.offsets import Offsets
from saccade.server.tokens import TokenTexts

from ..engine.tokenizers_for_tests import tokenizer
from .running import Running, completion, streamed

KINDS = {kind: tokenizer(kind) for kind in ("byte_level", "sentencepiece_bpe")}
TEXTS = st.text(st.sampled_from("a bxhé中😀!"), max_size=12)
BOS = "<s>"


def expected(words: Tokenizer, ids: list[int], text: str) -> list[int]:
    """By the bytes that come before each token; the first one, BOS, has none."""
    texts, content = TokenTexts(words), text.encode()
    pieces = [b"", *map(texts.bytes_of, ids[1:])]
    if b"".join(pieces) != content:  # the space that SentencePiece puts before a text
        pieces[1] = pieces[1].removeprefix(b" ")
    assert b"".join(pieces) == content
    before = [b"".join(pieces[:index]) for index in range(len(pieces))]
    return [len(each.decode("utf-8", "ignore")) for each in before]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_an_echoed_text(kind: str, text: str) -> None:
    words = KINDS[kind]
    ids = words.encode(text)
    assert words.piece(ids[0]) == BOS
    walk = Offsets(TokenTexts(words), shown=text)
    assert [walk.take(token) for token in ids] == expected(words, ids, text)


def test_a_special_token_that_is_written_out_has_a_width() -> None:
    words = KINDS["byte_level"]
    ids = words.encode("<s>a</s>b")
    assert [words.piece(token) for token in ids] == [BOS, BOS, "a", "</s>", "b"]
    walk = Offsets(TokenTexts(words), shown="<s>a</s>b")
    assert [walk.take(token) for token in ids] == [0, 3, 3, 4, 8]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, cut=st.integers(0, 30), skip=st.booleans())
def test_a_continued_text(kind: str, text: str, cut: int, skip: bool) -> None:
    """Cut anywhere, in the middle of a character too: it belongs to the continuation."""
    words = KINDS[kind]
    ids = words.encode(text)
    cut = max(1, min(cut, len(ids)))
    prompt, rest = ids[:cut], ids[cut:]
    detokenizer = IncrementalDetokenizer(words, prompt, skip)
    shown = "".join(map(detokenizer.push, rest)) + detokenizer.flush()
    walk = Offsets(TokenTexts(words), prompt, skip)
    walk.begin_at(7)
    found = [walk.take(token) - 7 for token in rest]
    assert found == sorted(found) and all(0 <= each <= len(shown) for each in found)
    texts = TokenTexts(words)
    for token, (begin, end) in zip(rest, pairwise([*found, len(shown)]), strict=False):
        content = texts.bytes_of(token).decode("utf-8", "replace")
        if skip and token in words.special_ids:
            assert begin == end or token == rest[-1]  # the rest of a character may come at the end
        elif "\ufffd" not in content and kind == "byte_level":
            assert shown[begin:end].startswith(content)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=20))
def test_broken_characters_drift_nowhere(ids: list[int]) -> None:
    """Bytes in any order, then a letter: its place is where the text has it."""
    for words in KINDS.values():
        letter = words.id_of("x")
        assert letter is not None
        tokens = [*ids, letter, letter]
        detokenizer = IncrementalDetokenizer(words, [letter])
        text = "".join(map(detokenizer.push, tokens)) + detokenizer.flush()
        walk = Offsets(TokenTexts(words), [letter])
        found = [walk.take(token) for token in tokens]
        assert found == sorted(found)
        assert found[-1] == len(text) - 1 and text.endswith("xx")


@given(st.lists(st.integers(0, 255), min_size=1, max_size=12))
def test_the_parts_of_a_character_stand_where_it_does(ids: list[int]) -> None:
    """Also of one that is never finished."""
    words = KINDS["byte_level"]
    texts = TokenTexts(words)
    tokens = [token for token in ids if token not in words.special_ids]
    pieces = [texts.bytes_of(token) for token in tokens]
    whole = b"".join(pieces).decode(errors="replace")
    places, before = [], b""
    for index, piece in enumerate(pieces):
        head = before.decode(errors="replace")
        cuts = head + b"".join(pieces[index:]).decode(errors="replace") != whole
        places.append(len(head) - cuts)
        before += piece
    walk = Offsets(texts)
    assert [walk.take(token) for token in tokens] == places


def test_without_a_tokenizer_there_is_no_text() -> None:
    walk = Offsets(TokenTexts(None), [1, 2])
    assert [walk.take(token) for token in (1, 2, 3)] == [0, 0, 0]


# ---- over HTTP: <s> is token 0 of the tiny model, and special ----

PROMPTS: list[Any] = [
    "def add",
    "<s>def é中😀",
    [0, 40, 41, 0, 42],
    ["<s>a", "中", "b c"],
]


def check(text: str, logprobs: dict[str, Any], start: int = 0) -> None:
    """Slices of the text between offsets are the tokens, unless they are a part of a character."""
    offsets = logprobs["text_offset"]
    assert offsets[0] == start and offsets == sorted(offsets) and offsets[-1] <= len(text)
    for token, (begin, end) in zip(
        logprobs["tokens"], pairwise([*offsets, len(text)]), strict=True
    ):
        if token in ("<s>", "</s>"):
            assert text[begin:end] in ("", token)
        elif not token.startswith("bytes:") and end > begin and "\ufffd" not in text[begin:end]:
            assert text[begin:end] == token
    whole = [token for token in logprobs["tokens"] if not token.startswith(("bytes:", "<"))]
    assert not whole or any(a < b for a, b in pairwise([*offsets, len(text)]))


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
@pytest.mark.parametrize("echo", [False, True])
def test_offsets_index_the_text_that_is_returned(server: Running, prompt: Any, echo: bool) -> None:
    body = {"echo": echo, "logprobs": 1, "n": 2, "seed": 3, "temperature": 1, "max_tokens": 24}
    reply = completion(server, prompt, **body)
    found = {choice["index"]: choice for choice in reply["choices"]}
    for choice in found.values():
        check(choice["text"], choice["logprobs"])
    joined: dict[int, dict[str, Any]] = {}
    for chunk in streamed(server, "/v1/completions", {"prompt": prompt, **body}):
        for choice in chunk["choices"]:
            mine = joined.setdefault(choice["index"], {"text": "", "text_offset": []})
            mine["text"] += choice["text"]
            mine["text_offset"] += choice["logprobs"]["text_offset"]
    assert joined == {
        index: {"text": choice["text"], "text_offset": choice["logprobs"]["text_offset"]}
        for index, choice in found.items()
    }


def test_a_token_that_is_added_has_no_width(server: Running) -> None:
    (choice,) = completion(server, [0, 0, 40], echo=True, logprobs=0, max_tokens=1)["choices"]
    assert choice["logprobs"]["tokens"][:2] == ["<s>", "<s>"]
    assert choice["logprobs"]["text_offset"][:4] == [0, 0, 0, 1]
    (choice,) = completion(server, "<s>I", echo=True, logprobs=0, max_tokens=1)["choices"]
    assert choice["text"].startswith("<s>I")
    assert choice["logprobs"]["text_offset"] == [0, 3, 4]


def test_tokens_that_a_stop_string_cuts_off_stand_at_the_end(server: Running) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "logprobs": 0, "echo": True}
    text = completion(server, **options)["choices"][0]["text"]
    stop = text[len("def add") + 4 :][:3]
    body = {"prompt": "def add", "temperature": 0, "stop": stop, **options}
    (choice,) = completion(server, **options, stop=stop)["choices"]
    assert choice["finish_reason"] == "stop"
    check(choice["text"], choice["logprobs"])
    last = streamed(server, "/v1/completions", body)[-1]["choices"][0]
    assert last["finish_reason"] == "stop"
    assert max(last["logprobs"]["text_offset"]) <= len(choice["text"])
