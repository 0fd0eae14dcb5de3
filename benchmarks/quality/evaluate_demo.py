"""Measure a demo checkpoint.

python -m saccade.benchmarks.quality.evaluate_demo --model DIR --out DIR [--log log.jsonl]

Held-out perplexity against simple baselines, pass-key and look-up accuracy, as JSON; with --log,
the loss curve as a PNG.
"""

import argparse
import bz2
import json
import lzma
import math
import random
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from . import corpus, data
from .model import TinyLlama, load

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
DEPTHS = (0.05, 0.25, 0.5, 0.75, 0.95)
PAIRS = (8, 16, 32, 64)
WINDOW = 2048


def hidden_states(model: TinyLlama, ids: list[int]) -> Tensor:
    """Hidden states [T, hidden] of one sequence, with products in bf16."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return model.hidden(torch.tensor([ids]))[0]


def answers_right(model: TinyLlama, tokenizer: Tokenizer, prompt: str, answer: str) -> bool:
    """Tell whether greedy decoding after the prompt would give the answer, token by token."""
    ids = tokenizer.encode(prompt + answer).ids
    size = len(ids) - len(tokenizer.encode(prompt).ids)
    with torch.no_grad():
        guessed = model.logits(hidden_states(model, ids[:-1])[-size:].float()).argmax(-1)
    return guessed.tolist() == ids[-size:]


def passkey_prompt(
    rng: random.Random, tokenizer: Tokenizer, text: str, length: int, depth: float, plain: bool
) -> tuple[str, str]:
    """A prompt of at most `length` tokens with a key at a relative depth, and its answer."""
    key = data.digits(rng, 5, 5)
    seed = rng.random()
    chars = length * 2.6

    def build() -> str:
        again = random.Random(seed)
        size = int(chars)
        filler = data.neutral_text(again, size) if plain else data.code_text(again, text, size)
        cut = filler.rfind("\n" if not plain else " ", 0, int(len(filler) * depth)) + 1
        line = f"# The pass key is {key}. Remember it.\n"
        end = "# What is the pass key? The pass key is"
        return filler[:cut].rstrip() + "\n" + line + filler[cut:] + end

    for _ in range(12):
        prompt = build()
        tokens = len(tokenizer.encode(prompt).ids)
        if 0.97 * length < tokens <= length - 8:
            break
        chars *= 0.985 * length / tokens
    return prompt, " " + key


def passkeys(model: TinyLlama, tokenizer: Tokenizer, text: str) -> list[dict[str, Any]]:
    """Accuracy by filler, length and depth, over fresh keys and held-out filler."""
    rows = []
    for plain in (False, True):
        for length in LENGTHS:
            rng = random.Random(1000 + length)
            trials = 4 if length <= 2048 else 2 if length <= 8192 else 1
            depths: dict[str, float] = {}
            for depth in DEPTHS:
                cases = [
                    passkey_prompt(rng, tokenizer, text, length, depth, plain)
                    for _ in range(trials)
                ]
                right = [answers_right(model, tokenizer, *case) for case in cases]
                depths[str(depth)] = fmean(right)
            accuracy = fmean(depths.values())
            row = {
                "filler": "sentences" if plain else "code",
                "length": length,
                "trials": trials * 5,
            }
            rows.append({**row, "accuracy": accuracy, "by_depth": depths})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def lookups(model: TinyLlama, tokenizer: Tokenizer, trials: int = 20) -> list[dict[str, Any]]:
    """Accuracy of one question after a table of n entries with numbers as values."""
    rows = []
    for pairs in PAIRS:
        rng = random.Random(pairs)
        right = []
        for _ in range(trials):
            table = {data.identifier(rng): data.digits(rng, 5, 5) for _ in range(pairs)}
            key = rng.choice(list(table))
            lines = "".join(f"config['{name}'] = {value}\n" for name, value in table.items())
            prompt = lines + f"\n# config['{key}'] ="
            right.append(answers_right(model, tokenizer, prompt, " " + table[key]))
        rows.append({"pairs": pairs, "trials": trials, "accuracy": fmean(right)})
    return rows


def negative_log_likelihood(model: TinyLlama, ids: list[int], bos: int) -> float:
    """Nats of a file's tokens, in windows of 2048 that each begin anew behind a BOS."""
    total = 0.0
    for start in range(0, len(ids), WINDOW - 1):
        piece = ids[start : start + WINDOW - 1]
        with torch.no_grad():
            logits = model.logits(hidden_states(model, [bos, *piece[:-1]]).float())
        total += float(F.cross_entropy(logits, torch.tensor(piece), reduction="sum"))
    return total


def language(
    model: TinyLlama, tokenizer: Tokenizer, kept: list[str], held: list[str], limit: int
) -> dict[str, float]:
    """Perplexity and bits per byte on held-out files (first `limit` tokens), beside baselines."""
    bos = tokenizer.token_to_id(corpus.BOS)
    counts: Counter[int] = Counter()
    for encoded in tokenizer.encode_batch(kept, add_special_tokens=False):
        counts.update(encoded.ids)
    whole = counts.total() + tokenizer.get_vocab_size()
    tokens, size, nats, unigram, lzma_size, bz2_size = 0, 0, 0.0, 0.0, 0, 0
    for text in held:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        nats += negative_log_likelihood(model, ids, bos)
        unigram -= sum(math.log((counts[token] + 1) / whole) for token in ids)
        raw = text.encode()
        tokens, size = tokens + len(ids), size + len(raw)
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
        lzma_size += len(lzma.compress(raw, lzma.FORMAT_RAW, filters=filters))
        bz2_size += len(bz2.compress(raw))
        if tokens >= limit:
            break
    bits = 1 / (math.log(2) * size)
    return {
        "tokens": tokens,
        "bytes": size,
        "perplexity": math.exp(nats / tokens),
        "unigram_perplexity": math.exp(unigram / tokens),
        "uniform_perplexity": tokenizer.get_vocab_size(),
        "bits_per_byte": nats * bits,
        "unigram_bits_per_byte": unigram * bits,
        "lzma_bits_per_byte": 8 * lzma_size / size,
        "bz2_bits_per_byte": 8 * bz2_size / size,
    }


def plot(log: Path, out: Path) -> None:
    """Draw the training losses over tokens from log.jsonl as a small PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), dpi=80)
    for name, label in (("text", "text"), ("answer", "retrieval answers")):
        points = [(r["tokens"] / 1e6, r[name]) for r in records if r[name] > 0]
        smooth = [fmean(y for _, y in points[max(0, i - 9) : i + 1]) for i in range(len(points))]
        axes.plot([x for x, _ in points], smooth, label=label, linewidth=1.2)
    axes.set_xlabel("tokens seen, millions")
    axes.set_ylabel("loss, nats per token")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, and write evaluation.json (and loss.png)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--tokens", type=int, default=120_000)
    options = parser.parse_args(arguments)
    if options.log:
        plot(options.log, options.out / "loss.png")
    model = load(options.model).eval()
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    kept, held = corpus.split(list(corpus.source_files()))
    library = [text for path, text in held if not corpus.is_test(path)]
    training = [text for path, text in kept if not corpus.is_test(path)]
    result = {
        "held_out_library": language(model, tokenizer, training, library, options.tokens),
        "lookup": lookups(model, tokenizer),
    }
    print(json.dumps(result, indent=1), flush=True)
    result["passkey"] = passkeys(model, tokenizer, "\n".join(library))
    (options.out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
