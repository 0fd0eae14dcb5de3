"""Tokenizer files, good and bad, and agreement with transformers about special tokens."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import normalizers

from saccade.engine.errors import CheckpointError, RequestError
from saccade.engine.tokenizer import Tokenizer
from saccade.engine.tokenizer_files import TokenizerFiles

from .tokenizers_for_tests import KINDS, byte_level, save, sentencepiece_bpe, tokenizer

NAMES = {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}}
TEXT = "hello  world 中 <s> </s> end"


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_bpe", "unigram"])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"bos_token": None},
    ],
)
@pytest.mark.parametrize("with_post_processor", [True, False])
def test_encode_agrees_with_transformers(
    tmp_path: Path, kind: str, extra: dict[str, Any], with_post_processor: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    backend = KINDS[kind]()
    if not with_post_processor:
        backend.post_processor = None
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **extra}
    folder = save(tmp_path, backend, config)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = Tokenizer.from_folder(folder)
    for special in (True, False):
        ids = ours.encode(TEXT, add_special_tokens=special)
        assert ids == theirs.encode(TEXT, add_special_tokens=special)
        for skip in (True, False):
            expected = theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert ours.decode(ids, skip) == expected


def test_names_templates_and_sizes(tmp_path: Path) -> None:
    config = {**NAMES, "chat_template": "{{ bos_token }}", "add_prefix_space": None}
    tok = Tokenizer.from_folder(save(tmp_path, byte_level(), config))
    assert tok.bos_id == tok.id_of("<s>") and tok.eos_id == tok.id_of("</s>")
    assert tok.named_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tok.chat_template == "{{ bos_token }}"
    assert {tok.piece(token) for token in tok.special_ids} == {"<s>", "</s>", "<pad>"}
    assert tok.piece(tok.vocab_size - 1) is not None and tok.piece(tok.vocab_size) is None
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer.from_folder(tmp_path).chat_template == "file"


def test_a_list_of_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    tok = Tokenizer.from_folder(save(tmp_path, byte_level(), {"chat_template": named}))
    assert tok.chat_templates == {"default": "d", "tool_use": "t"} and tok.chat_template == "d"


def test_tokenizer_json_alone_is_enough(tmp_path: Path) -> None:
    tok = Tokenizer.from_folder(save(tmp_path, sentencepiece_bpe(), None))
    assert tok.bos_id is None and tok.eos_id is None and tok.chat_template is None
    assert tok.decode(tok.encode("hello a 中")) == "hello a 中"


def test_saved_truncation_and_padding_are_ignored(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    tok = Tokenizer.from_folder(save(tmp_path, backend, None))
    assert tok.decode(tok.encode("hello world")) == "hello world"
    assert len(tok.encode("x" * 30)) == 31


def test_tokens_that_only_the_config_knows_are_added_at_their_ids(tmp_path: Path) -> None:
    backend = byte_level()
    size = backend.get_vocab_size()
    entry = {"content": "<new>", "special": True}
    folder = save(tmp_path, backend, {"added_tokens_decoder": {str(size): entry}})
    tok = Tokenizer.from_folder(folder)
    assert tok.encode("<new>", add_special_tokens=False) == [size] and size in tok.special_ids
    save(tmp_path, backend, {"added_tokens_decoder": {str(size + 1): entry}})
    with pytest.raises(
        CheckpointError, match=r"tokenizer_config.json: added_tokens_decoder.*<new>"
    ):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", None, "tokenizer.json: file not found"),
        ("tokenizer.json", b"{", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", b"{}", "tokenizer.json: not a tokenizer"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json"),
        ("tokenizer_config.json", b'{"bos_token": {"id": 3}}', "bos_token: expected a token"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template: expected"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder"),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"1": {}, "01": {}}}',
            "one token id twice",
        ),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: not UTF-8"),
    ],
)
def test_broken_files_are_named(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    save(tmp_path, byte_level(), None)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        Tokenizer.from_folder(tmp_path)


def test_texts_that_cannot_be_encoded_are_refused() -> None:
    tok = tokenizer("byte_level")
    with pytest.raises(RequestError, match="lone surrogate at character 2"):
        tok.encode("ab\ud800c")
    with pytest.raises(RequestError, match="must be text"):
        tok.encode(b"abc")  # type: ignore[arg-type]
    small = Tokenizer.__new__(Tokenizer)
    small.__dict__.update(tok.__dict__, _max_chars=5)
    assert small.encode("abcde")
    with pytest.raises(RequestError, match="at most 5 characters, got 6"):
        small.encode("abcdef")
    assert tok.encode("", add_special_tokens=False) == [] and tok.encode("a\0b")


@pytest.mark.parametrize("ids", [[-1], [2**40], ["x"]])
def test_ids_that_cannot_be_decoded_are_refused(ids: list[Any]) -> None:
    with pytest.raises(RequestError, match="token ids"):
        tokenizer("byte_level").decode(ids)


def test_ids_without_a_token_leave_no_text() -> None:
    tok = tokenizer("sentencepiece_bpe")
    assert tok.decode([tok.vocab_size + 5, tok.id_of("x") or 0]) == "x"
    assert tok.text_of(0xE4) == "\ufffd" and tok.text_of(tok.bos_id or 0) == "<s>"


def test_the_files_of_a_folder_reload_to_the_same_tokenizer(tmp_path: Path) -> None:
    folder = save(tmp_path, byte_level(), NAMES)
    first, again = Tokenizer.from_folder(folder), Tokenizer.from_folder(str(folder))
    assert first.encode(TEXT) == again.encode(TEXT)
    assert json.loads((folder / "tokenizer.json").read_text())["decoder"] == first.decoder_spec


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_bpe", "unigram"])
def test_long_texts_are_encoded_as_short_ones(kind: str) -> None:
    """By another call of the library, which does not keep the interpreter to itself."""
    backend = KINDS[kind]()
    ours, text = Tokenizer(TokenizerFiles(backend)), TEXT * 600
    ids = ours.encode(text)
    assert ids == backend.encode(text).ids
    assert ours.encode(text, False) == backend.encode(text, add_special_tokens=False).ids
    assert ours.encode_plain(text)[:50] == ours.encode_plain(text[:500])[:50]
    for skip in (True, False):
        assert ours.decode(ids, skip) == backend.decode(ids, skip_special_tokens=skip)


def test_a_long_text_does_not_stop_other_threads() -> None:
    ours, text = Tokenizer(TokenizerFiles(byte_level())), "ab " * 500_000
    began = time.perf_counter()
    encoding = threading.Thread(target=ours.encode, args=(text,))
    encoding.start()
    longest, last = 0.0, began
    while encoding.is_alive():
        time.sleep(0.001)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert longest < 0.5 * (last - began)


TEXTS = ("    " * 40, "<tool中>" * 40, "中é😀" * 20, "hello " * 30, "xyz", "", "<s>\n" * 30)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_no_fewer_tokens_than_it_is_said_to_have(kind: str, text: str) -> None:
    ours = tokenizer(kind)
    assert ours.least_tokens(text) <= len(ours.encode(text, add_special_tokens=False))


def test_the_least_tokens_are_known_only_where_no_character_vanishes() -> None:
    def least(backend: tokenizers.Tokenizer, text: str) -> int:
        return Tokenizer(TokenizerFiles(backend)).least_tokens(text)

    text = "hello " * 100
    longest = len("<tool中>")
    for kind in ("byte_level", "sentencepiece_bpe"):
        assert least(KINDS[kind](), text) == -(-len(text) // longest)
    for kind in ("unigram", "wordpiece", "word_ends"):
        assert least(KINDS[kind](), text) == 0
    composing, shrinking, stripping = byte_level(), byte_level(), byte_level()
    composing.normalizer = normalizers.NFC()
    accents = "é" * 300  # a letter and its accent, which NFC makes one
    assert least(composing, text) == -(-len(text) // longest)
    assert 0 < least(composing, accents) == -(-150 // longest) <= len(composing.encode(accents))
    shrinking.normalizer = normalizers.NFKC()
    assert least(shrinking, text) == 0
    stripping.add_tokens([tokenizers.AddedToken("<cut>", lstrip=True, rstrip=True)])
    spaces = " " * 500 + "<cut>" + " " * 500
    assert least(stripping, spaces) == 1 == len(stripping.encode(spaces, add_special_tokens=False))
