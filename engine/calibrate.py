"""Measuring what a checkpoint's routers need to be known for serving: a threshold per head.

Training keeps, of a whole text, a head's best tokens; that needs the text's end. A threshold on
the score keeps about as many without it. It is measured on given texts: first on the scores that
the rule of training gives, then, as layers feel what is kept in the layers before, on those that
the thresholds themselves give. How far causal rules are from the rule of training is measured on
texts held out: perplexity, and the overlap of the rows that heads choose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .assembly import Parts, assemble
from .attention.base import Aux, LayerShape
from .attention.watch import Watch
from .checkpoint.calibration import CALIBRATION, CalibratedVariant
from .checkpoint.config_json import read_config
from .checkpoint.files import find_checkpoint
from .config import EngineConfig
from .errors import CheckpointError, RequestError
from .inputs import Prompt, encode
from .params import SamplingParams, validate_prompt_ids
from .request import Request
from .tokenizer import Tokenizer

HELD_OUT = 4  # of so many texts one is held out, the last ones


@dataclass(frozen=True)
class Divergence:
    """A rule beside the rule of training, on the same texts.

    chosen: share of rows that a head chooses. overlap: rows chosen by both rules of those chosen by
    either (Jaccard), mean over heads, layers and texts; least: of the head and layer with the
    lowest mean.
    """

    attention: str
    perplexity: float
    chosen: float
    overlap: float
    least: float


@dataclass(frozen=True)
class Calibration:
    """thresholds: per layer and head. tokens: of all texts, of `length` tokens at most each."""

    thresholds: list[list[float]]
    length: int
    texts: int
    held_out: int  # texts that were measured but had no part in the thresholds; 0: all had
    rounds: int
    rules: list[Divergence]  # that of training first

    def write(self, path: Path) -> None:
        """As JSON, which `calibration` takes; a file that is there is replaced when all is written.

        OSError when it cannot be.
        """
        draft = path.with_name(path.name + ".tmp")
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        draft.replace(path)


@dataclass
class _Seen(Watch):
    """A Watch that keeps what the routers of one text say and the heads choose, by layer."""

    scores: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # float32 [rows, E]
    chosen: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # bool [rows, E]

    def enter(
        self,
        layer: int,
        shape: LayerShape,
        positions: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        aux: Aux,
    ) -> None:
        """Texts are run alone, so rows come in order of position."""
        scores, pairs = aux.rows["router"], aux.chosen
        mask = torch.zeros(scores.shape, dtype=torch.bool)
        if pairs is not None:
            mask[pairs.rows, pairs.heads] = True
        self.scores.setdefault(layer, []).append(scores.clone())
        self.chosen.setdefault(layer, []).append(mask)


@dataclass(frozen=True)
class _Text:
    """One text under one rule."""

    scores: torch.Tensor  # float32 [L, T, E]
    chosen: torch.Tensor  # bool [L, T, E]
    loss: float  # sum over its tokens but the first


class Calibrator:
    """A checkpoint whose heads choose their tokens. `config` as for an engine of its own; its
    attention and calibration are of no matter.

    Raises CheckpointError for a checkpoint without such heads.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._folder = find_checkpoint(config.model)
        model = read_config(self._folder)
        if not isinstance(model.variant, CalibratedVariant):
            raise CheckpointError(
                f"{config.model}: the heads of this model have nothing to calibrate"
            )
        self._variant: CalibratedVariant = model.variant
        self._config: EngineConfig = replace(config, max_num_seqs=1, enable_prefix_caching=False)
        self._vocabulary: int = model.vocab_size
        self.length: int = min(self._variant.train_length, model.max_position - 1)

    @staticmethod
    def of(model: str, **options: Any) -> Calibrator:
        """For the checkpoint folder `model`; options as for an engine. ValueError for a bad one."""
        return Calibrator(EngineConfig(model, **options))

    @property
    def default_path(self) -> Path:
        """Where engines look for the figures if none are named."""
        return self._folder / CALIBRATION

    def calibrate(self, text: Prompt, length: int | None = None, rounds: int = 1) -> Calibration:
        """text (or token ids) is cut into texts of `length` tokens; None: the length of training.

        RequestError for fewer than two tokens or a length or number of rounds out of range.
        """
        size = self.length if length is None else length
        if not 2 <= size <= self.length:
            raise RequestError(f"length must be in 2 .. {self.length}, not {size}", "length")
        if not 0 <= rounds <= 16:
            raise RequestError(f"rounds must be in 0 .. 16, not {rounds}", "rounds")
        tokens = list(encode(text, self._tokenizer()))
        validate_prompt_ids(tokens, self._vocabulary)
        texts = _cut(tokens, size)
        held_out = len(texts) // HELD_OUT
        own = texts[: len(texts) - held_out]
        judged = texts[len(own) :] or texts
        training, causal, *others = self._variant.rules
        reference = self._run(training, texts, None)
        thresholds = self._thresholds(reference[: len(own)])
        for _ in range(rounds):
            thresholds = self._thresholds(self._run(causal, own, thresholds))
        reference = reference[-len(judged) :]
        rules = [_divergence(training, reference, reference)]
        for rule in (causal, *others):
            rules.append(_divergence(rule, self._run(rule, judged, thresholds), reference))
        return Calibration(thresholds, size, len(texts), held_out, rounds, rules)

    def _tokenizer(self) -> Tokenizer | None:
        has_one = (self._folder / "tokenizer.json").exists()
        return Tokenizer.from_folder(self._folder) if has_one else None

    def _thresholds(self, texts: Sequence[_Text]) -> list[list[float]]:
        """Per layer and head, the score that leaves as many above it as training keeps."""
        wanted = sum(self._variant.wanted(text.scores.shape[1]) for text in texts)
        free = [text.scores[:, self._variant.always :] for text in texts]
        every = torch.cat(free, 1).transpose(1, 2)  # [L, E, rows]
        return [[_threshold(scores, wanted) for scores in heads] for heads in every]

    def _run(
        self, rule: str, texts: Sequence[list[int]], thresholds: list[list[float]] | None
    ) -> list[_Text]:
        """All texts under a rule, one after the other."""
        longest = max(map(len, texts))
        config = replace(
            self._config,
            attention=rule,
            prefill_attention=None,
            decode_attention=None,
            max_model_len=longest + 1,
            max_num_batched_tokens=longest,
            calibration=None,
        )
        with TemporaryDirectory() as folder:
            if thresholds is not None:
                path = Path(folder) / "calibration.json"
                path.write_text(json.dumps({"thresholds": thresholds}))
                config = replace(config, calibration=str(path))
            parts = assemble(config)
        return [_run_text(parts, text) for text in texts]


def _threshold(scores: torch.Tensor, wanted: int) -> float:
    """The score that leaves nearest to `wanted` of these above it, or 0.

    Many may be equal: in the first layer all those of one token are.
    """
    best = scores.sort(descending=True).values
    if wanted >= len(best):
        return 0.0
    least = best[wanted]
    fewer, more = int((best > least).sum()), int((best >= least).sum())
    below = float(best[more]) if more < len(best) else 0.0
    return float(least) if wanted - fewer <= more - wanted else below


def _cut(tokens: Sequence[int], length: int) -> list[list[int]]:
    """Texts of `length` tokens; what is left over is one if it is at least half as long."""
    if len(tokens) < 2:
        raise RequestError("a text of at least two tokens is needed", "prompt")
    texts = [list(tokens[at : at + length]) for at in range(0, len(tokens), length)]
    return texts if len(texts) == 1 or 2 * len(texts[-1]) >= length else texts[:-1]


def _run_text(parts: Parts, text: list[int]) -> _Text:
    """The text is computed whole in one step; nothing is sampled."""
    seen, request = _Seen(), Request("text", text, SamplingParams(max_tokens=1), parts.policies.own)
    parts.scheduler.add(request)
    plan = parts.scheduler.schedule()
    result = parts.runner.run(plan.live, plan.copies, seen)
    parts.scheduler.abort(request.id)
    if result.not_finite():
        raise CheckpointError("the model's hidden states are not finite (NaN or infinity)")
    loss = 0.0
    for start, logits in result.chunk_logits(0):
        rows = logits[: len(text) - 1 - start].log_softmax(1)
        following = torch.tensor(text[start + 1 : start + 1 + len(rows)])
        loss -= float(rows.gather(1, following[:, None]).double().sum())
    layers = range(len(seen.scores))
    return _Text(
        torch.stack([torch.cat(seen.scores[layer]) for layer in layers]),
        torch.stack([torch.cat(seen.chosen[layer]) for layer in layers]),
        loss,
    )


def _divergence(rule: str, texts: Sequence[_Text], reference: Sequence[_Text]) -> Divergence:
    both, either = (
        torch.stack(
            [
                join(text.chosen, other.chosen).sum(1)
                for text, other in zip(texts, reference, strict=True)
            ]
        ).double()
        for join in (torch.logical_and, torch.logical_or)
    )
    overlap = (both / either.clamp(min=1)).where(either > 0, 1.0)  # [texts, L, E]
    rows = sum(text.chosen.shape[1] for text in texts)
    chosen = sum(float(text.chosen.double().mean((0, 2)).sum()) for text in texts) / rows
    tokens = rows - len(texts)
    perplexity = math.exp(sum(text.loss for text in texts) / tokens)
    least = float(overlap.mean(0).min())
    return Divergence(rule, perplexity, chosen, float(overlap.mean()), least)
