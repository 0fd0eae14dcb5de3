"""The data of the demo checkpoint: deterministic, correct spans, a lossless tokenizer."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from saccade.benchmarks.quality import corpus, data

TEXT = (
    "def area(width, height):\n    # The result has 2 digits: 42.\n    return width * height\n" * 60
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return corpus.train_tokenizer([TEXT], vocab_size=400)


def test_split_is_by_path_and_complete() -> None:
    files = [(f"folder/module_{index}.py", "pass\n") for index in range(500)]
    kept, held = corpus.split(files)
    assert sorted(kept + held) == sorted(files)
    assert 5 <= len(held) <= 40
    assert corpus.split(list(reversed(files)))[1] == list(reversed(held))


def test_source_files_skip_what_is_not_text(tmp_path) -> None:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("x = 1\n")
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "legacy.py").write_bytes(b"# \xe9\n")
    assert list(corpus.source_files(tmp_path)) == [("good.py", "x = 1\n")]


def test_every_digit_is_a_token(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(" 48213", add_special_tokens=False).tokens
    assert tokens[1:] == list("48213")


def test_bos_is_added_once(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("return").tokens[0] == corpus.BOS
    assert corpus.BOS not in tokenizer.encode("return").tokens[1:]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
def test_small_tokenizer_is_lossless(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["lookup", "passkey"])
def test_answers_are_found_further_up(kind: str, seed: int) -> None:
    def make(rng: random.Random) -> data.Sample:
        return data.lookup(rng, 900) if kind == "lookup" else data.passkey(rng, TEXT, 3000, 3)

    sample = make(random.Random(seed))
    assert sample == make(random.Random(seed))
    assert sample.answers
    for start, end in sample.answers:
        assert sample.text[start] == " "
        assert sample.text[start:end].strip() in sample.text[:start]


def test_masks_mark_exactly_the_answers(tokenizer: Tokenizer) -> None:
    sample = data.Sample()
    sample.add("The pass key is 123. What? The pass key is")
    sample.answer(" 123")
    sample.add(".\n")
    ids, answers, text = data.encode(sample, tokenizer, 1000)
    marked = [token for token, flag in zip(ids, answers, strict=True) if flag]
    assert tokenizer.decode(marked) == " 123"
    assert [a ^ t for a, t in zip(answers, text, strict=True)] == [True] * len(ids)
    assert len(data.encode(sample, tokenizer, 7)[0]) == 7


@pytest.mark.parametrize("seed", range(10))
def test_repeats_only_ask_for_what_was_said(seed: int) -> None:
    ids, answers, text = data.repeats(random.Random(seed), 100, 3, 256)
    assert len(ids) == len(answers) == len(text) == 256
    assert any(answers) and not any(text) and min(ids) >= 3
    for index, asked in enumerate(answers):
        if asked:
            pair = (ids[index - 1], ids[index])
            assert pair in set(itertools.pairwise(ids))


@pytest.mark.parametrize("seed", range(10))
def test_positions_ascend_below_the_limit(seed: int) -> None:
    positions = data.skipped_positions(random.Random(seed), 64, 1000)
    assert len(positions) == 64 and positions[0] == 0 and positions[-1] < 1000
    assert all(a < b for a, b in itertools.pairwise(positions))
    assert data.skipped_positions(random.Random(seed), 64, 64) == list(range(64))
