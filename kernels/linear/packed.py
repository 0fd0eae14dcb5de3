"""The packed weight: panels of 32 outputs, so that one streaming pass feeds the vector lanes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

PANEL = 32


@dataclass(frozen=True)
class PackedWeight:
    """A weight [out, in] rearranged for the compiled kernels; `unpack` gives it back.

    data: [panels, in / unit, 32, unit], outputs padded with zero rows to whole panels. unit is 2
    for bf16 (the machine's dot-product pairs; an odd `in` is padded with a zero column) and 1
    otherwise. bias: float32 [out] or None. Where `as_rows` made it, for a GPU, data is [out, in].
    """

    data: torch.Tensor
    bias: torch.Tensor | None
    in_features: int
    out_features: int

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weight."""
        return self.data.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight and bias."""
        return self.data.nbytes + (self.bias.nbytes if self.bias is not None else 0)

    def unpack(self) -> torch.Tensor:
        """The weight as [out, in]."""
        if self.data.ndim == 2:
            return self.data
        panels, steps, _, unit = self.data.shape
        dense = self.data.permute(0, 2, 1, 3).reshape(panels * PANEL, steps * unit)
        return dense[: self.out_features, : self.in_features]

    def as_rows(self, move: Callable[[torch.Tensor], torch.Tensor]) -> PackedWeight:
        """The same weight, its rows one behind the other, with `move` applied to its tensors."""
        data = move(self.unpack().contiguous())
        bias = None if self.bias is None else move(self.bias)
        return PackedWeight(data, bias, self.in_features, self.out_features)


def pack(weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
    """Packs weight [out, in] and bias [out]; the caller may free the original. ValueError for a bad
    shape.
    """
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shape = None if bias is None else tuple(bias.shape)
        raise ValueError(
            f"pack needs weight [out, in] and bias [out], got {tuple(weight.shape)} and {shape}"
        )
    out_features, in_features = weight.shape
    unit = 2 if weight.dtype == torch.bfloat16 else 1
    panels, steps = -(-out_features // PANEL), -(-in_features // unit)
    data = torch.zeros((panels, steps, PANEL, unit), dtype=weight.dtype)
    padded = torch.nn.functional.pad(weight, (0, steps * unit - in_features))
    whole = out_features // PANEL
    data[:whole] = padded[: whole * PANEL].reshape(whole, PANEL, steps, unit).permute(0, 2, 1, 3)
    if whole < panels:
        rest = padded[whole * PANEL :].reshape(out_features - whole * PANEL, steps, unit)
        data[whole, :, : rest.shape[0]] = rest.permute(1, 0, 2)
    return PackedWeight(
        data, None if bias is None else bias.float().contiguous(), in_features, out_features
    )


@dataclass(frozen=True)
class PackedHeads:
    """A weight per head, all of one shape. data: as `PackedWeight`, [H, panels, ...]."""

    data: torch.Tensor
    in_features: int
    out_features: int

    def __len__(self) -> int:
        return self.data.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all heads."""
        return self.data.nbytes

    def head(self, h: int) -> PackedWeight:
        """The weight of one head."""
        return PackedWeight(self.data[h], None, self.in_features, self.out_features)

    def as_rows(self, move: Callable[[torch.Tensor], torch.Tensor]) -> PackedHeads:
        """As `PackedWeight.as_rows`: data is [H, out, in]."""
        shape = (len(self), self.out_features, self.in_features)
        dense = torch.empty(shape, dtype=self.data.dtype)
        for h in range(len(self)):  # one at a time: there may be hundreds
            dense[h] = self.head(h).unpack()
        return PackedHeads(move(dense), self.in_features, self.out_features)


def pack_heads(weights: Iterable[torch.Tensor], heads: int | None = None) -> PackedHeads:
    """Packs weights [H, out, in], or so many [out, in]; the caller may free the originals.

    One at a time: no more than one is there twice. ValueError for no heads, or different shapes.
    """
    if isinstance(weights, torch.Tensor):
        heads = weights.shape[0]
    data = torch.empty(0)
    shape: tuple[int, ...] = ()
    for h, weight in enumerate(weights):
        packed = pack(weight).data
        if not h:
            shape = tuple(weight.shape)
            data = torch.empty((heads or 0, *packed.shape), dtype=packed.dtype)
        if tuple(weight.shape) != shape:
            raise ValueError(f"pack_heads: weights of {shape} and of {tuple(weight.shape)}")
        data[h] = packed
    if not shape:
        raise ValueError("pack_heads needs at least one head")
    return PackedHeads(data, shape[1], shape[0])
