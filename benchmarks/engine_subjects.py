"""What `saccade bench engine` compares: our engine and Hugging Face transformers."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from ..engine.engine import Engine
from ..engine.errors import SaccadeError
from ..engine.params import SamplingParams


@dataclass(frozen=True)
class Trial:
    """A prompt and its greedy continuation: seconds to the first token, and for each later one."""

    prefill_s: float
    step_s: float
    tokens: tuple[int, ...]


class Subject(Protocol):
    """Something that can continue a prompt."""

    @property
    def name(self) -> str:
        """As tables call it."""
        ...

    def run(self, prompt: Sequence[int], steps: int) -> Trial:
        """Continues `prompt` greedily by 1 + `steps` tokens."""
        ...


OURS, DENSE = "saccade", "saccade, dense"


class Ours:
    """Our engine, one sequence at a time, no prefix cache."""

    def __init__(self, model: str, max_model_len: int, options: dict[str, Any]) -> None:
        self.engine = Engine(
            model,
            max_model_len=max_model_len,
            max_num_seqs=1,
            enable_prefix_caching=False,
            **options,
        )
        self.name: str = OURS
        self._attention: str | None = None

    def dense(self) -> Ours:
        """The same engine, its requests asking for dense attention."""
        other = copy(self)
        other.name, other._attention = DENSE, "dense"
        return other

    def run(self, prompt: Sequence[int], steps: int) -> Trial:
        """Prefill is the time to the first token, decode that between the first and the last."""
        params = SamplingParams(
            max_tokens=steps + 1, temperature=0.0, ignore_eos=True, detokenize=False
        )
        done = self.engine.generate([list(prompt)], params, attention=self._attention)[0]
        timings = done.timings
        if done.error or timings.ttft_s is None or timings.decode_s is None:
            raise SaccadeError(f"the engine did not finish a benchmark request: {done.error}")
        return Trial(timings.ttft_s, timings.decode_s / steps, tuple(done.outputs[0].token_ids))


class Transformers:
    """Hugging Face transformers on the same checkpoint: SDPA, its own cache, one prefill call."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the checkpoint is local
        from transformers import AutoModelForCausalLM

        load: Any = AutoModelForCausalLM.from_pretrained
        self.model = load(
            str(folder), dtype=dtype, attn_implementation="sdpa", local_files_only=True
        ).eval()

    @property
    def name(self) -> str:
        """As tables call it."""
        return "transformers"

    def run(self, prompt: Sequence[int], steps: int) -> Trial:
        """Greedy tokens through `forward` alone, without the overhead of `generate`."""
        with torch.inference_mode():
            start = time.perf_counter()
            token, cache = self._forward(torch.tensor([list(prompt)]), None)
            tokens = [int(token)]
            begun = time.perf_counter()
            for _ in range(steps):
                token, cache = self._forward(token.view(1, 1), cache)
                tokens.append(int(token))
            end = time.perf_counter()
        return Trial(begun - start, (end - begun) / steps, tuple(tokens))

    def _forward(self, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].argmax(), out.past_key_values


def has_transformers() -> bool:
    """Whether the peer is installed."""
    return find_spec("transformers") is not None
