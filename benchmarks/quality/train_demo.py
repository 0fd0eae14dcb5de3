"""Train the demo checkpoint on a CPU.

python -m saccade.benchmarks.quality.train_demo --out DIR --minutes N [--resume]

The plan is a share of the time: short samples first, where retrieval is dense and induction heads
form fast, then longer ones up to 16K tokens. The folder is written every few minutes in Hugging
Face form; --resume goes on from the last one (with the optimizer's moments started anew).
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from . import corpus, data
from .model import Shape, TinyLlama, hf_config, load, save_weights
from .start import write_induction

IGNORED_TOKENS = 3  # the special tokens are never drawn in random strings


@dataclass(frozen=True)
class Phase:
    """What one share of the time trains on."""

    until: float  # share of the time at which the phase ends
    length: int  # tokens per row
    rows: int
    code: float  # shares of the rows; the rest are pass-keys
    lookups: float
    repeats: float


PHASES = (
    Phase(0.12, 512, 8, 0.50, 0.25, 0.12),
    Phase(0.30, 512, 8, 0.65, 0.20, 0.05),
    Phase(0.53, 2048, 2, 0.58, 0.12, 0.03),
    Phase(0.70, 4096, 1, 0.45, 0.10, 0.02),
    Phase(0.86, 8192, 1, 0.15, 0.10, 0.00),
    Phase(0.88, 16384, 1, 0.00, 0.05, 0.00),
    Phase(1.00, 8192, 1, 0.10, 0.05, 0.00),
)


@dataclass
class Progress:
    """What a resumed run must know."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Source:
    """Rows of token ids with their masks, from the corpus and the generators."""

    def __init__(self, tokenizer: Tokenizer, files: Iterable[tuple[str, str]], limit: int) -> None:
        kept = list(files)
        self.tokenizer, self.limit = tokenizer, limit
        self.bos, self.eos = tokenizer.token_to_id(corpus.BOS), tokenizer.token_to_id(corpus.EOS)
        library = [text for path, text in kept if not corpus.is_test(path)]
        tests = [text for path, text in kept if corpus.is_test(path)]
        self.text = "\n".join(library)
        self.streams = [self._stream(texts) for texts in (library, tests) if texts]

    def _stream(self, texts: list[str]) -> Tensor:
        ids: list[int] = []
        for encoded in self.tokenizer.encode_batch(texts):
            ids += [*encoded.ids, self.eos]
        return torch.tensor(ids, dtype=torch.int16)

    def code(self, rng: random.Random, length: int) -> list[int]:
        """A window of `length` tokens of source code, library three times as often as tests."""
        stream = self.streams[0 if rng.random() < 0.75 else -1]
        start = rng.randrange(max(1, len(stream) - length))
        return [self.bos, *stream[start : start + length - 1].tolist()]

    def row(
        self, rng: random.Random, phase: Phase
    ) -> tuple[list[int], list[bool], list[bool], bool]:
        """Ids, answer mask, text mask, and whether the row is synthetic."""
        length, kind = phase.length, rng.random()
        if kind < phase.code:
            ids = self.code(rng, length)
            return ids, [False] * len(ids), [True] * len(ids), False
        kind -= phase.code
        if kind < phase.repeats:
            vocab = self.tokenizer.get_vocab_size()
            return *data.repeats(rng, vocab, IGNORED_TOKENS, length), True
        chars = int(length * data.CHARS_PER_TOKEN)
        if kind < phase.repeats + phase.lookups:
            sample = data.lookup(rng, min(chars, 20_000))
        else:
            secrets = rng.randint(1, 3 if length < 1024 else 8)
            sample = data.passkey(rng, self.text, int(chars * rng.uniform(0.85, 1.0)), secrets)
        return *data.encode(sample, self.tokenizer, length), True

    def batch(self, rng: random.Random, phase: Phase) -> dict[str, Tensor]:
        """Tensors of one step, each [rows, length]; short rows are filled up with code."""
        columns: dict[str, list[list[int]]] = {
            "ids": [],
            "answers": [],
            "text": [],
            "positions": [],
        }
        for _ in range(phase.rows):
            ids, answers, text, synthetic = self.row(rng, phase)
            missing = phase.length - len(ids)
            ids = ids + (self.code(rng, missing) if missing > 1 else [self.eos] * missing)
            answers, text = answers + [False] * missing, text + [False] * missing
            spread = synthetic and phase.length < 16384 and rng.random() < 0.6
            limit = self.limit if spread else phase.length
            positions = data.skipped_positions(rng, phase.length, limit)
            for name, column in zip(columns, (ids, answers, text, positions), strict=True):
                columns[name].append([int(value) for value in column])
        return {name: torch.tensor(column) for name, column in columns.items()}


def losses(model: TinyLlama, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    """Mean loss of ordinary text, mean loss of answers, share of answer tokens guessed right."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(batch["ids"][:, :-1], batch["positions"][:, :-1])
        answers, text = batch["answers"][:, 1:].bool(), batch["text"][:, 1:].bool()
        wanted = answers | text
        logits = model.logits(hidden[wanted])
    each = F.cross_entropy(logits.float(), batch["ids"][:, 1:][wanted], reduction="none")
    asked = answers[wanted]
    with torch.no_grad():
        right = (logits[asked].argmax(-1) == batch["ids"][:, 1:][wanted][asked]).float()
    zero = each.sum() * 0.0
    text_loss = each[~asked].mean() if (~asked).any() else zero
    answer_loss = each[asked].mean() if asked.any() else zero
    return text_loss, answer_loss, float(right.mean()) if asked.any() else math.nan


def optimizers(model: TinyLlama) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, Adam for the embedding and the norms."""
    inner = [w for n, w in model.named_parameters() if w.dim() == 2 and "embed" not in n]
    outer = [w for n, w in model.named_parameters() if w.dim() != 2 or "embed" in n]
    return [
        torch.optim.Muon(
            inner, lr=2.5e-3, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(outer, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(share: float, steps_since_start: int) -> float:
    """Learning-rate factor: a short warm-up in steps, level for half the time, then down to 3 %."""
    warm = min(1.0, (steps_since_start + 1) / 10)
    return warm * min(1.0, 0.03 + 0.97 * (1.0 - share) / 0.55)


def write_folder(model: TinyLlama, tokenizer: Tokenizer, out: Path, progress: Progress) -> None:
    """Write the Hugging Face folder, and what a resumed run needs."""
    out.mkdir(parents=True, exist_ok=True)
    bos, eos, pad = (tokenizer.token_to_id(name) for name in (corpus.BOS, corpus.EOS, corpus.PAD))
    special = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    names = {"bos_token": corpus.BOS, "eos_token": corpus.EOS, "pad_token": corpus.PAD}
    texts = {
        "config.json": hf_config(model.shape, bos, eos, pad),
        "generation_config.json": {**special, "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.shape.max_position_embeddings,
        },
    }
    for name, value in texts.items():
        (out / name).write_text(json.dumps(value, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    save_weights(model, out / "model.safetensors", torch.bfloat16)
    save_weights(model, out / "training.safetensors", torch.float32)
    (out / "progress.json").write_text(json.dumps(vars(progress)) + "\n")


def train(
    model: TinyLlama,
    source: Source,
    out: Path,
    minutes: float,
    progress: Progress,
    phases: tuple[Phase, ...],
) -> None:
    """Train until `minutes` have passed in all runs together; log to out/log.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    steppers = optimizers(model)
    base = [group["lr"] for stepper in steppers for group in stepper.param_groups]
    rng = random.Random(progress.step)
    torch.manual_seed(progress.step)
    started, before, saved, first = (
        time.monotonic(),
        progress.seconds,
        time.monotonic(),
        progress.step,
    )
    with (out / "log.jsonl").open("a", buffering=1) as log:
        while (share := progress.seconds / (60 * minutes)) < 1.0:
            phase = next(phase for phase in phases if share < phase.until)
            factor = rate(share, progress.step - first)
            groups = [group for stepper in steppers for group in stepper.param_groups]
            for group, value in zip(groups, base, strict=True):
                group["lr"] = value * factor
            text_loss, answer_loss, right = losses(model, source.batch(rng, phase))
            (text_loss + answer_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            progress.step += 1
            progress.tokens += phase.rows * phase.length
            progress.seconds = before + time.monotonic() - started
            if progress.step % 5 == 0 or phase.length >= 4096:
                record = {
                    **vars(progress),
                    "length": phase.length,
                    "text": text_loss.item(),
                    "answer": answer_loss.item(),
                    "right": None if math.isnan(right) else right,
                }
                log.write(json.dumps(record) + "\n")
            if time.monotonic() - saved > 120:
                write_folder(model, source.tokenizer, out, progress)
                saved = time.monotonic()


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, train, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=68.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    kept, _ = corpus.split(list(corpus.source_files()))
    if options.resume:
        tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
        model = load(options.out, "training.safetensors")
        progress = Progress(**json.loads((options.out / "progress.json").read_text()))
    else:
        tokenizer = corpus.train_tokenizer(
            [text for path, text in kept if not corpus.is_test(path)]
        )
        model = TinyLlama(replace(Shape(), vocab_size=tokenizer.get_vocab_size()))
        write_induction(model)
        progress = Progress()
    source = Source(tokenizer, kept, model.shape.max_position_embeddings)
    train(model, source, options.out, options.minutes, progress, PHASES)
    write_folder(model, tokenizer, options.out, progress)


if __name__ == "__main__":
    main()
