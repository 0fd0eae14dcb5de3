"""Dense causal attention: every row sees all keys before it (in the model's own sliding window, if
it has one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...kernels.attend import Keys
from .base import Aux, LayerCache, LayerShape, PageField, Step, causal_keys, per_sequence


@dataclass(frozen=True)
class Dense:
    """Softmax attention over all visible keys (Vaswani et al. 2017, arXiv 1706.03762). The oracle
    of every method.
    """

    reads_are_planned: ClassVar[bool] = True

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere."""
        return 1

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """Nothing beyond K and V."""
        return {}

    def plan(self, shape: LayerShape, step: Step) -> Keys:
        """The keys of every row: causal, in the layer's window."""
        rows = (step.cu_rows, step.positions, step.page_table)
        return Keys(*rows, window=shape.window, spans=step.spans)

    def summarize(self, cache: LayerCache, step: Step, plan: Keys, aux: Aux) -> None:
        """Nothing to finish."""

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: Keys,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Attention output [T, H, dv]."""
        return cache.attend(q, plan, shape.scale, shape.softcap, aux.sink_logits)[0]

    def keys_read(self, shape: LayerShape, step: Step, plan: Keys) -> torch.Tensor:
        """All visible keys."""
        return per_sequence(step, causal_keys(step, plan.window, plan.sinks))
