"""What the sampler must remember of one request between its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .grammar_state import GrammarState, MaskTime
from .params import SamplingParams
from .penalties import Ids, Penalties, Row

_NONE: tuple[Ids, Row] = (np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True)
class Edits:
    """How a row's logits change, step by step: tokens int64 [n], each once, and amounts float32."""

    bias: tuple[Ids, Row]  # is added
    repeated: tuple[Ids, Row]  # positive logits are divided by it, negative ones multiplied
    output: tuple[Ids, Row]  # is taken away
    banned: tuple[Ids, Row]  # cannot be sampled


class SamplerState:
    """One completion's sampling state; a function of (params, prompt, output, seed, stream) alone.

    So it may be dropped and built again from the tokens at any time (keep `seed` when params.seed
    is None), and it never outlives its request: nothing of it lies in a batch slot.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        eos_ids: Iterable[int],
        *,
        seed: int,
        stream: int = 0,
        output: Sequence[int] = (),
        grammar: GrammarState | None = None,
    ) -> None:
        """stream: which of the n completions of a request; output: tokens sampled already; grammar:
        the beginning of params.structure, which is copied."""
        self.params = params
        self.seed = seed
        self.stream = stream
        self.num_output = 0
        self._penalties = Penalties(params, prompt) if params.has_penalties else None
        bias = params.logit_bias or {}
        self._bias_ids: Ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias: Row = np.fromiter(bias.values(), np.float32, len(bias))
        self._grammar = None if grammar is None else grammar.copy()
        eos = set(eos_ids)
        self._eos: Ids = np.array(sorted(eos), np.int64)
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else eos)
        self._ends: Ids = np.array(sorted(ends), np.int64)
        for token in output:
            self.advance(token)

    def advance(self, token: int) -> None:
        """Takes note that `token` was appended to the output; amortised O(1)."""
        self.num_output += 1
        if self._penalties is not None:
            self._penalties.add(token)
        if self._grammar is not None:
            self._grammar.advance(token)

    @property
    def is_complete(self) -> bool:
        """True when the structure asked for is whole, so that no token can follow."""
        return self._grammar is not None and self._grammar.is_complete

    @property
    def changes_logits(self) -> bool:
        """True when the next token's logits are adjusted before choosing."""
        changes = self._penalties is not None or len(self._bias) > 0
        return changes or self._grammar is not None or self._must_go_on

    @property
    def is_plain(self) -> bool:
        """True when the next token is just the argmax of the raw logits, with nothing reported."""
        greedy = self.params.is_greedy and self.params.logprobs is None
        return greedy and not self.changes_logits

    def adjusted(self, row: Row, mask_time: MaskTime | None = None) -> Row:
        """The logits [V] to choose from: bias, then penalties, then masks; `row` stays as it is.

        mask_time: of the structures of a step's rows together.
        Raises SaccadeError when the structure cannot be followed any more.
        """
        if not self.changes_logits:
            return row
        row = row.copy()
        row[self._bias_ids] += self._bias
        if self._penalties is not None:
            self._penalties.apply(row)
        if self._grammar is not None:
            self._mask_by_grammar(row, self._grammar, mask_time)
        elif self._must_go_on:
            row[self._ends[self._ends < len(row)]] = -np.inf
        return row

    @property
    def fits_device(self) -> bool:
        """True when the token can be chosen where the logits are: no mask of the whole vocabulary
        has to go there, and no log-probabilities have to come back.
        """
        return self._grammar is None and self.params.logprobs is None

    def edits(self, width: int) -> Edits:
        """What `adjusted` does to logits [width], without a structure."""
        repeated, output, banned = _NONE, _NONE, _NONE
        if self._penalties is not None:
            ids = self._penalties.repeated
            repeated = ids, np.full(len(ids), self.params.repetition_penalty, np.float32)
            output = self._penalties.output
        if self._must_go_on:
            ids = self._ends[self._ends < width]
            banned = ids, np.zeros(len(ids), np.float32)
        return Edits((self._bias_ids, self._bias), repeated, output, banned)

    def _mask_by_grammar(self, row: Row, grammar: GrammarState, mask_time: MaskTime | None) -> None:
        """Leaves what the structure allows; where that is an end alone, it is no use to forbid it.

        With ignore_eos an end-of-sequence would be a token like others, which no structure has.
        """
        allowed = grammar.allowed(len(row), mask_time)
        avoided = self._ends if self._must_go_on else self._ends[:0]
        if self.params.ignore_eos:
            avoided = np.concatenate([avoided, self._eos])
        ongoing = allowed.copy()
        ongoing[avoided[avoided < len(row)]] = False
        row[~(ongoing if ongoing.any() else allowed)] = -np.inf

    @property
    def _must_go_on(self) -> bool:
        return self.num_output < self.params.min_tokens and len(self._ends) > 0
