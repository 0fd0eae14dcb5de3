"""The training script on a toy model, and the folder that is shipped."""

import json
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from saccade.benchmarks.quality import corpus, data, evaluate_demo, train_demo
from saccade.benchmarks.quality.model import Shape, TinyLlama, load
from saccade.benchmarks.quality.start import write_induction

DEMO = Path(__file__).parents[2] / "engine" / "demo"
SHAPE = Shape(
    vocab_size=290, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16
)
PHASE = train_demo.Phase(1.0, 96, 4, 0.4, 0.2, 0.2)
TEXT = (
    "def area(width, height):\n    # The result has 2 digits: 42.\n    return width * height\n" * 80
)


@pytest.fixture(scope="module")
def source() -> train_demo.Source:
    tokenizer = corpus.train_tokenizer([TEXT], vocab_size=SHAPE.vocab_size)
    return train_demo.Source(tokenizer, [("shapes.py", TEXT)], 512)


def test_batches_are_a_function_of_the_seed(source: train_demo.Source) -> None:
    first, second = (source.batch(random.Random(5), PHASE) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {tuple(tensor.shape) for tensor in first.values()} == {(4, 96)}


def test_steps_reduce_the_loss(source: train_demo.Source) -> None:
    torch.manual_seed(0)
    model = TinyLlama(SHAPE)
    batch = source.batch(random.Random(0), PHASE)
    steppers = train_demo.optimizers(model)
    seen = []
    for _ in range(4):
        text, answer, _ = train_demo.losses(model, batch)
        (text + answer).backward()
        seen.append(float((text + answer).detach()))
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
    assert seen[-1] < seen[0] - 0.1


def test_folder_can_be_loaded_and_resumed(source: train_demo.Source, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TinyLlama(SHAPE)
    progress = train_demo.Progress()
    train_demo.train(model, source, tmp_path, 0.005, progress, (PHASE,))
    train_demo.write_folder(model, source.tokenizer, tmp_path, progress)
    assert progress.step >= 1 and (tmp_path / "log.jsonl").exists()
    exact, shipped = load(tmp_path, "training.safetensors"), load(tmp_path)
    tokens = torch.tensor([[0, 5, 6, 7]])
    assert torch.equal(exact.hidden(tokens), model.hidden(tokens))
    assert torch.allclose(shipped.hidden(tokens), model.hidden(tokens), atol=0.1)
    assert (
        Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() == SHAPE.vocab_size
    )


def test_structured_start_copies_without_training() -> None:
    torch.manual_seed(0)
    model = TinyLlama(Shape(vocab_size=512))
    write_induction(model)
    ids, answers, _ = data.repeats(random.Random(1), 512, 3, 160)
    with torch.no_grad():
        guessed = model.logits(model.hidden(torch.tensor([ids])))[0].argmax(-1).tolist()
    asked = [index for index in range(1, 160) if answers[index]]
    assert sum(guessed[index - 1] == ids[index] for index in asked) > 0.5 * len(asked)


def test_shipped_folder() -> None:
    config = json.loads((DEMO / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 16384
    assert (DEMO / "model.safetensors").stat().st_size <= 12_000_000
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 12_500_000
    model = load(DEMO)
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=300).filter(lambda text: "<|" not in text))  # no special token
def test_shipped_tokenizer_is_lossless(text: str) -> None:
    tokenizer = _shipped_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@cache
def _shipped_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def test_shipped_checkpoint_finds_a_pass_key_and_writes_python() -> None:
    model, tokenizer = load(DEMO), _shipped_tokenizer()
    text = data.code_text(random.Random(3), TEXT * 3, 9000)
    prompt, key = evaluate_demo.passkey_prompt(random.Random(7), tokenizer, text, 600, 0.4, False)
    assert evaluate_demo.answers_right(model, tokenizer, prompt, key)
    for begun, rest in (
        ("    for name", " in"),
        ("if x is not", " None"),
        ("        self.assert", "Equal"),
        ("except ImportError", ":"),
    ):
        assert evaluate_demo.answers_right(model, tokenizer, begun, rest), begun


def test_transformers_agrees_with_the_shipped_folder() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    encode = transformers.AutoTokenizer.from_pretrained(DEMO)
    text = "def main() -> None:\n    print('x = 42')\n"
    ids = encode(text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == _shipped_tokenizer().encode(text).ids
    ours = load(DEMO)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(ours.hidden(ids)), theirs(ids).logits, rtol=1e-4, atol=1e-4
        )
