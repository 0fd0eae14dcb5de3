"""One call of `write_pages`, as its implementations take it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .layout import PageLayout


class WriteCall(NamedTuple):
    """The arguments of `saccade.kernels.store.write_pages`, whose door has checked them.

    k_pages, v_pages: as `layout` allocates them; k: [T, Hkv, d]; v: [T, Hkv, dv]; slots: int64 [T].
    """

    layout: PageLayout
    k_pages: torch.Tensor
    v_pages: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    slots: torch.Tensor
    clear: bool = True
