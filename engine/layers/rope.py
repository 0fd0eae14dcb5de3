"""Rotary position embedding: frequencies per type, and the table of angles for every position."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch

from ..checkpoint.rope_config import RopeConfig

_BLOCK = 1024  # positions computed at a time: bounds the scratch memory of the table's construction
# Beyond the table a decoding stream needs a new block this often, and 64 streams find theirs again.
_LATE_BLOCK, _KEPT = 64, 256

Rows = tuple[torch.Tensor, torch.Tensor]  # cos, sin


def inverse_frequencies(rope: RopeConfig, head_dim: int, max_model_len: int) -> torch.Tensor:
    """Radians per token of each rotated pair: float32 [head_dim / 2].

    max_model_len matters to the types "dynamic" and "longrope" alone. Their frequencies depend on
    the length of the sequence, so that keys cached early would have to turn when the sequence
    grows, and a prompt's answer would depend on how it was cut. They are therefore fixed once, for
    max_model_len: those of short sequences up to the trained length, and beyond it those that the
    method gives to a sequence of exactly max_model_len tokens.
    """
    if rope.kind == "dynamic":
        stretch = rope.factor * max(max_model_len, rope.original_max_position)
        stretch = stretch / rope.original_max_position - (rope.factor - 1)
        return _unscaled(rope.theta * stretch ** (head_dim / (head_dim - 2)), head_dim)
    plain = _unscaled(rope.theta, head_dim)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, plain, head_dim)
    if rope.kind == "longrope":
        beyond = max_model_len > rope.original_max_position
        return plain / torch.tensor(rope.long_factors if beyond else rope.short_factors)
    return plain


def _unscaled(theta: float, head_dim: int) -> torch.Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / torch.pow(theta, exponents)


def _llama3(rope: RopeConfig, plain: torch.Tensor) -> torch.Tensor:
    """Keeps fast pairs, slows slow ones by `factor`, and blends by turns per trained length."""
    turns = rope.original_max_position * plain / (2 * math.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return (1 - keep) * plain / rope.factor + keep * plain


def _yarn(rope: RopeConfig, plain: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Keeps pairs that turn more than beta_fast times in the trained length, slows the others."""
    low, high = (_pair_turning(rope, turns, head_dim) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    slow = ((pairs - low) / (high - low)).clamp(0.0, 1.0)
    return plain / rope.factor * slow + plain * (1 - slow)


def _pair_turning(rope: RopeConfig, turns: float, head_dim: int) -> float:
    """The (fractional) pair that makes this many turns over the trained length."""
    radians = 2 * math.pi * turns
    return head_dim * math.log(rope.original_max_position / radians) / (2 * math.log(rope.theta))


class RotaryEmbedding:
    """cos and sin of every position: those below `length` from a table that is computed once, and
    those of a stream that goes on beyond it, when it gets there.

    A table, and not arithmetic in each step, because a vector routine may round an element
    differently by its place in the batch; the rows of a table are the same however a prompt is cut.
    It takes `nbytes` = 4 * head_dim bytes per position. Later positions are computed in aligned
    blocks, for the same reason, and the latest _KEPT of these blocks are kept.
    """

    def __init__(self, rope: RopeConfig, head_dim: int, length: int) -> None:
        self.inv_freq = inverse_frequencies(rope, head_dim, length)
        self._scaling = rope.attention_scaling
        self._kept: OrderedDict[tuple[int, int | None], Rows] = OrderedDict()
        self.cos = torch.empty(length, head_dim // 2)
        self.sin = torch.empty(length, head_dim // 2)
        for begin in range(0, length, _BLOCK):
            angles = self._angles(torch.arange(begin, min(begin + _BLOCK, length)))
            self.cos[begin : begin + _BLOCK] = angles.cos() * rope.attention_scaling
            self.sin[begin : begin + _BLOCK] = angles.sin() * rope.attention_scaling

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self.cos.nbytes + self.sin.nbytes

    def cos_sin(self, positions: torch.Tensor) -> Rows:
        """cos and sin, float32 [T, head_dim / 2] each, of positions int64 [T]."""
        length = self.cos.shape[0]
        if int(positions.max()) < length:
            return self.cos.index_select(0, positions), self.sin.index_select(0, positions)
        cos, sin = self._late_rows(positions, None)
        early = torch.nonzero(positions < length).flatten()
        cos[early], sin[early] = self.cos[positions[early]], self.sin[positions[early]]
        return cos, sin

    def turn(self, positions: torch.Tensor, last: int) -> Rows:
        """cos and sin, float32 [T, head_dim / 2] each, of what takes a query at each of these
        positions that lies beyond `last` back to `last`; those before stay where they are.
        """
        return self._late_rows(positions, last)

    def _angles(self, positions: torch.Tensor) -> torch.Tensor:
        """float64 [n, head_dim / 2], in radians. In the table's range an angle is rounded to
        float32, as in the models' training (its cosine is exact); beyond, where that rounding would
        grow to whole turns, it is exact.
        """
        exact = positions.double()[:, None] * self.inv_freq.double()
        rounded = (positions.float()[:, None] * self.inv_freq).double()
        return torch.where(positions[:, None] < self.cos.shape[0], rounded, exact)

    def _late_rows(self, positions: torch.Tensor, last: int | None) -> Rows:
        cos = torch.empty(positions.shape[0], self.inv_freq.shape[0])
        sin = torch.empty_like(cos)
        block = positions // _LATE_BLOCK
        for number in sorted(set(block.tolist())):
            rows = torch.nonzero(block == number).flatten()
            of_block = self._late_block(number, last)
            at = positions[rows] - number * _LATE_BLOCK
            cos[rows], sin[rows] = of_block[0][at], of_block[1][at]
        return cos, sin

    def _late_block(self, number: int, last: int | None) -> Rows:
        """_LATE_BLOCK positions: their angles (last: None), or the turns back to `last`."""
        key = (number, last)
        if key not in self._kept:
            positions = torch.arange(number * _LATE_BLOCK, (number + 1) * _LATE_BLOCK)
            angles = self._angles(positions)
            scaling = self._scaling
            if last is not None:
                back = self._angles(torch.tensor([last])) - angles
                angles, scaling = back.where(positions[:, None] > last, 0.0), 1.0
            found = (angles.cos() * scaling).float(), (angles.sin() * scaling).float()
            self._kept[key] = found
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
