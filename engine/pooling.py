"""One vector for a text: the mean of its rows' final hidden states, or the last of them.

The sum is made in fp32 in a fixed tree over absolute positions, so that however a prompt was cut
into chunks, the vector is bitwise the same.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import SaccadeError

Vector = NDArray[np.float32]

# Position p is added to the sum p % _LANES, in ascending order; the sums are added up at the end.
_LANES = 64


class Pooling:
    """Collects a prompt's hidden states from its chunks, in any cut and with any repetition."""

    def __init__(self, kind: str, tokens: int) -> None:
        """kind: of POOLINGS. The mean needs every row: none may come from the prefix cache."""
        self._kind, self._tokens = kind, tokens
        self._next = 0  # rows before this position are in the sums
        self._sums: torch.Tensor | None = None
        self._last: torch.Tensor | None = None

    def add(self, start: int, hidden: torch.Tensor) -> None:
        """Takes the hidden states [R, H] of positions start .. start + R - 1.

        SaccadeError when positions before them are missing.
        """
        stop = min(start + hidden.shape[0], self._tokens)
        if start <= self._tokens - 1 < stop:
            self._last = hidden[self._tokens - 1 - start].float()
        if self._kind == "mean":
            self._add_to_sums(start, stop, hidden)

    def _add_to_sums(self, start: int, stop: int, hidden: torch.Tensor) -> None:
        if start > self._next:
            raise SaccadeError(f"pooling: hidden states from position {self._next} on are missing")
        if self._sums is None:
            self._sums = torch.zeros(_LANES, hidden.shape[1])
        for at in range(self._next - self._next % _LANES, stop, _LANES):
            first, end = max(at, self._next), min(at + _LANES, stop)
            if first < end:
                self._sums[first - at : end - at] += hidden[first - start : end - start].float()
        self._next = max(self._next, stop)

    @property
    def complete(self) -> bool:
        """Whether every row that counts has come."""
        return self._last is not None and (self._kind == "last" or self._next >= self._tokens)

    def result(self) -> Vector:
        """float32 [H]. SaccadeError when incomplete."""
        if not self.complete or self._last is None:
            raise SaccadeError("pooling: the prompt has not been read to its end")
        total = self._last
        if self._sums is not None:
            total = torch.zeros(self._sums.shape[1])
            for lane in self._sums:
                total += lane
            total /= self._tokens
        found: Vector = total.cpu().numpy()
        return found


def normalized(vector: Vector) -> Vector:
    """The vector with length 1; one of zeros stays as it is."""
    length = float(np.sqrt(np.square(vector, dtype=np.float64).sum()))
    return vector if length == 0 else (vector / length).astype(np.float32)
