"""Sink and window attention: the first few keys and the most recent ones (StreamingLLM's mask, full
cache kept).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...kernels.attend import Keys
from .base import LayerShape, Step
from .dense import Dense


@dataclass(frozen=True)
class Window(Dense):
    """Row i sees key j when i - j < size or j < sinks (Xiao et al. 2023, arXiv 2309.17453, mask
    form).

    Positions and the cache stay as they are, so a later dense step may still see every key. Where
    the model has a sliding window of its own, the smaller window counts, and there are no sinks:
    their pages are not kept.
    """

    size: int = 4096
    sinks: int = 4

    def __post_init__(self) -> None:
        if self.size < 1 or self.sinks < 0:
            raise ValueError(
                f"window: size must be at least 1 and sinks at least 0, "
                f"got {self.size}, {self.sinks}"
            )

    def plan(self, shape: LayerShape, step: Step) -> Keys:
        """The keys of every row: causal, sinks and window."""
        window = self.size if shape.window is None else min(self.size, shape.window)
        sinks = self.sinks if shape.window is None else 0
        return Keys(step.cu_rows, step.positions, step.page_table, window=window, sinks=sinks)

    def most_keys(self, shape: LayerShape) -> int:
        """Window and sinks."""
        return self.size + self.sinks
