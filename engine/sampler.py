"""Logits to tokens. A row's token depends on its logits and its own request's state only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..kernels import gpu
from .device_sampler import draw
from .errors import SaccadeError
from .filters import draw_token
from .grammar_state import GrammarState, MaskTime
from .logprobs import NOT_FINITE, token_logprobs
from .outputs import TokenLogprobs
from .params import SamplingParams
from .penalties import Row
from .randomness import draw_seed, uniform
from .sampler_state import SamplerState

_MASKED = "no token can be sampled: all of them are masked out"


@dataclass(frozen=True, slots=True)
class Sampled:
    """One row's result. With `error` set, token is -1 and only this row's request has failed."""

    token: int
    logprobs: TokenLogprobs | None = None
    error: SaccadeError | None = None


@dataclass(frozen=True, slots=True)
class _Best:
    """What is known of a row before it is looked at by itself: its most likely token, or, if drawn,
    the answer, if any is usable; whether its logits are finite.
    """

    token: int
    finite: bool
    drawn: bool = False
    usable: bool = True


class Sampler:
    """Chooses the next token of every row; holds nothing between calls."""

    def __init__(self, seed_source: Callable[[], int] = draw_seed) -> None:
        """seed_source: where requests without a seed get theirs from."""
        self._seed_source = seed_source

    def new_state(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        eos_ids: Iterable[int],
        *,
        stream: int = 0,
        grammar: GrammarState | None = None,
    ) -> SamplerState:
        """The state of a completion that begins; `stream` is its index among the request's n."""
        seed = self._seed_source() if params.seed is None else params.seed
        return SamplerState(params, prompt, eos_ids, seed=seed, stream=stream, grammar=grammar)

    def sample(self, logits: torch.Tensor, rows: Sequence[SamplerState]) -> list[Sampled]:
        """One token per row of logits float32 [R, V], any device; `rows` [R] are only read.

        The caller tells each state with `advance(token)` when the token is accepted. Non-finite
        logits (their maximum NaN or infinite) give that row an error and leave the others alone.
        On a GPU all rows are sampled there, but for those with a structure or log-probabilities.
        """
        if logits.dtype != torch.float32 or logits.ndim != 2 or len(logits) != len(rows):
            found = f"{logits.dtype} {list(logits.shape)}"
            raise ValueError(f"expected float32 logits [{len(rows)}, V], found {found}")
        if not rows:
            return []
        best = _best_on_device(logits, rows) if gpu.serves(logits) else _best(logits)
        mask_time = MaskTime()
        return [
            self._row(logits[i], state, each, mask_time)
            for i, (state, each) in enumerate(zip(rows, best, strict=True))
        ]

    def _row(
        self, logits: torch.Tensor, state: SamplerState, best: _Best, mask_time: MaskTime
    ) -> Sampled:
        if not best.finite:
            return _failed(NOT_FINITE)
        if best.drawn:
            return Sampled(best.token) if best.usable else _failed(_MASKED)
        if state.is_plain:
            return Sampled(best.token)
        raw: Row = np.ascontiguousarray(logits.detach().cpu().numpy())
        try:
            row = state.adjusted(raw, mask_time)
        except SaccadeError as error:
            return Sampled(-1, error=error)
        if not np.isfinite(row.max()):
            return _failed(_MASKED)
        token = _choose(row, state)
        count = state.params.logprobs
        return Sampled(token, None if count is None else token_logprobs(raw, token, count))


def _best(logits: torch.Tensor) -> list[_Best]:
    """Of logits for the processor, where NumPy's argmax takes a fraction of the time of torch's."""
    values = logits.detach().cpu().numpy()
    # It takes the first of equal maxima, and a NaN as the greatest: one pass serves greedy rows and
    # finds every unusable row.
    tokens = values.argmax(axis=-1)
    finite = np.isfinite(values[np.arange(len(values)), tokens])
    return [_Best(*each) for each in zip(tokens.tolist(), finite.tolist(), strict=True)]


def _best_on_device(logits: torch.Tensor, rows: Sequence[SamplerState]) -> list[_Best]:
    """Of logits on a GPU, where rows without a structure or log-probabilities are drawn, too."""
    best = logits.argmax(dim=-1, keepdim=True)  # as in `_best`
    finite = logits.gather(1, best).isfinite().flatten()
    tokens, usable = best.flatten(), torch.ones_like(finite)
    drawn = [i for i, row in enumerate(rows) if row.fits_device and not row.is_plain]
    if drawn:
        at = torch.tensor(drawn, device="cpu").to(logits.device, non_blocking=True)
        tokens[at], usable[at] = draw(logits[at], [rows[i] for i in drawn])
    # One wait for the device.
    answers = torch.stack([tokens, finite.long(), usable.long()]).tolist()
    on_device = set(drawn)
    return [
        _Best(token, bool(finite), i in on_device, bool(usable))
        for i, (token, finite, usable) in enumerate(zip(*answers, strict=True))
    ]


def _choose(row: Row, state: SamplerState) -> int:
    params = state.params
    if params.is_greedy:
        return int(row.argmax())  # the lowest id among equals
    u = uniform(state.seed, state.stream, state.num_output)
    return draw_token(row, params.temperature, params.top_k, params.top_p, params.min_p, u)


def _failed(reason: str) -> Sampled:
    return Sampled(-1, error=SaccadeError(reason))
