"""One call of `attend`, as its implementations take it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..store import PageLayout, unwritten
from .keys import Keys


class AttendCall(NamedTuple):
    """The arguments of `saccade.kernels.attend.attend`, whose door has checked them.

    q: [T, H, d]; k_pages, v_pages: as `layout` allocates them; sink_logits: float32 [H] or None;
    value_dim: the values are the first value_dim channels of the keys; None: they are in v_pages.
    A named tuple, not a frozen dataclass: one is made in every layer of every step, and takes less
    than a microsecond, not two.
    """

    layout: PageLayout
    q: torch.Tensor
    k_pages: torch.Tensor
    v_pages: torch.Tensor
    keys: Keys
    scale: float
    out_dtype: torch.dtype
    softcap: float | None = None
    sink_logits: torch.Tensor | None = None
    value_dim: int | None = None

    @property
    def rows(self) -> int:
        """T, the query rows of all sequences."""
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        """H, the query heads."""
        return self.q.shape[1]

    @property
    def head_dim(self) -> int:
        """d, the channels of q and of a key."""
        return self.q.shape[2]

    @property
    def kv_heads(self) -> int:
        """KV heads, each of which `group` query heads share."""
        return self.k_pages.shape[1]

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.q.shape[1] // self.k_pages.shape[1]

    @property
    def v_dim(self) -> int:
        """dv, the channels of a value and of the output."""
        return self.value_dim or self.layout.dims(self.k_pages, self.v_pages)[1]

    @property
    def sequences(self) -> int:
        """S, the sequences of the rows."""
        return self.keys.page_table.shape[0]

    def results(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory for out [T, H, dv] of `out_dtype` and lse float32 [T, H], not yet written."""
        rows, heads, _ = self.q.shape
        out = unwritten((rows, heads, self.v_dim), self.out_dtype, self.q.device)
        return out, self.q.new_empty((rows, heads), dtype=torch.float32)

    def output_refusal(self) -> str | None:
        """Why kernels that answer in q's dtype or in fp32 cannot serve the call; None: they can."""
        if self.out_dtype in (self.q.dtype, torch.float32):
            return None
        return f"output {self.out_dtype} for input {self.q.dtype}"


def contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """An argument of a kernel that the call may lack, its elements one behind the other."""
    return None if tensor is None else tensor.contiguous()
