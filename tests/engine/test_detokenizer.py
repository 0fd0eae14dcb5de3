"""Deltas joined are the full decode, for every kind of vocabulary and any token sequence."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.engine.detokenizer import IncrementalDetokenizer, byte_level_alphabet
from saccade.engine.tokenizer import Tokenizer

from .tokenizers_for_tests import KINDS, tokenizer

cached = cache(tokenizer)
TEXTS = [
    "hello world",
    "  two  spaces ",
    "naïve 中文 🙂👍🏽 e\u0301",
    "\ufffd odd",
    "",
    "do n't. a b",
]


def deltas(tok: Tokenizer, ids: list[int], **options: object) -> list[str]:
    detokenizer = IncrementalDetokenizer(tok, **options)  # type: ignore[arg-type]
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(kind=st.sampled_from(sorted(KINDS)), data=st.data(), skip=st.booleans())
def test_deltas_joined_are_the_full_decode(kind: str, data: st.DataObject, skip: bool) -> None:
    tok = cached(kind)
    # Ids beyond the vocabulary stand for the padding that many checkpoints' embeddings have.
    hard = [0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0xFF, 0x20, tok.vocab_size - 1, tok.vocab_size - 5]
    hard += [token for piece in ("▁", "▁▁", "ä", "\u00b8", "Ń") if (token := tok.id_of(piece))]
    one = st.integers(0, tok.vocab_size + 3) | st.sampled_from(hard)
    ids = data.draw(st.lists(one, max_size=30))
    assert "".join(deltas(tok, ids, skip_special_tokens=skip)) == tok.decode(ids, skip)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_bpe"])
@pytest.mark.parametrize("text", TEXTS)
def test_no_delta_holds_a_part_of_a_character(kind: str, text: str) -> None:
    tok = cached(kind)
    parts = deltas(tok, tok.encode(text))
    assert "".join(parts) == text
    assert "".join(parts).count("\ufffd") == text.count("\ufffd")
    for part in parts[:-1]:
        assert part.count("\ufffd") <= text.count("\ufffd")


def test_byte_level_text_comes_as_soon_as_a_character_is_complete() -> None:
    tok = cached("byte_level")
    bytes_ = "a中".encode()
    letters = {byte: letter for letter, byte in byte_level_alphabet().items()}
    pieces = [tok.id_of(letters[byte]) or 0 for byte in bytes_]
    assert deltas(tok, pieces) == ["a", "", "", "中", ""]
    assert deltas(tok, pieces[:-1]) == ["a", "", "", "\ufffd"]


def test_a_run_of_fallback_bytes_is_one_unit() -> None:
    tok = cached("sentencepiece_bpe")
    x = tok.id_of("x") or 0
    assert deltas(tok, [x, 0xE4, 0xB8, 0xAD, x]) == ["x", "", "", "", "中x", ""]
    assert deltas(tok, [x, 0xE4, 0xB8, 0xAD, 0xFF, x])[-2] == "\ufffd" * 4 + "x"
    assert deltas(tok, [0xE4, 0xB8, 0xAD])[-1] == "中"


@given(
    kind=st.sampled_from(["byte_level", "sentencepiece_bpe", "unigram", "wordpiece"]),
    data=st.data(),
)
def test_after_a_prompt_the_deltas_continue_its_text(kind: str, data: st.DataObject) -> None:
    tok = cached(kind)
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size - 1), min_size=1, max_size=24))
    cut = data.draw(st.integers(0, len(ids)))
    prompt, output = ids[:cut], ids[cut:]
    before, whole = tok.decode(prompt), tok.decode(ids)
    if before.endswith("\ufffd") or not whole.startswith(before):
        return  # the prompt itself ends within a character
    assert before + "".join(deltas(tok, output, prompt_ids=prompt)) == whole


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_bpe"])
def test_a_character_begun_by_the_prompt_is_completed(kind: str) -> None:
    tok = cached(kind)
    ids = tok.encode("a 🙂", add_special_tokens=False)
    assert "".join(deltas(tok, ids[-2:], prompt_ids=ids[:-2])) == "🙂"


def test_the_space_between_prompt_and_output_is_kept() -> None:
    tok = cached("sentencepiece_bpe")
    hello = tok.id_of("▁hello") or 0
    assert deltas(tok, [hello, hello]) == ["hello", " hello", ""]
    assert deltas(tok, [hello], prompt_ids=[hello]) == [" hello", ""]
    only_special = [tok.bos_id or 0] * 20
    assert deltas(tok, [hello], prompt_ids=only_special) == ["hello", ""]
    assert deltas(tok, [hello], prompt_ids=[hello, *only_special]) == [" hello", ""]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_bpe"])
@pytest.mark.parametrize("token", [0xFF, 0xE4, 0x20])
def test_decoding_work_per_token_is_bounded(
    kind: str, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even for endless rubbish, the ids handed to the library grow linearly."""
    tok, work = tokenizer(kind), 0
    decode = tok.decode

    def counted(ids: list[int], skip_special_tokens: bool = True) -> str:
        nonlocal work
        work += len(ids)
        return decode(ids, skip_special_tokens)

    monkeypatch.setattr(tok, "decode", counted)
    deltas(tok, [token, tok.id_of("▁") or 0] * 500 + [token] * 1000)
    assert work < 5000
