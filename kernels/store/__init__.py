"""The page store: the layout of K and V inside a page, and writing tokens into pages."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, cuda, reference, triton
from .call import WriteCall
from .layout import PageLayout
from .memory import field_refusal, field_steps, unwritten, zeroed
from .rows import RowLayout

__all__ = [
    "WRITE_PAGES",
    "PageLayout",
    "RowLayout",
    "WriteCall",
    "field_refusal",
    "field_steps",
    "unwritten",
    "write_pages",
    "zeroed",
]

WRITE_PAGES = Op(
    "write_pages",
    reference.write_pages,
    (
        Implementation("cpu", cpu.write_pages, cpu.supports),
        Implementation("cuda", cuda.write_pages, cuda.supports),
        Implementation("triton", triton.write_pages, triton.supports),
    ),
)


def write_pages(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    clear: bool = True,
) -> None:
    """Writes k [T, Hkv, d] and v [T, Hkv, dv] to slots int64 [T] (page id * page size + offset; -1:
    skip the row).

    Writing offset 0 clears the rest of that page of V, so that nothing a former owner left there (a
    NaN, say) can reach another sequence; clear=False: not so, the pages are in use. Raises
    ValueError when shapes or dtypes disagree.
    """
    head_dim, v_head_dim = layout.dims(k_pages, v_pages)
    want_k = (k_pages.shape[1], head_dim)
    want_v = (v_pages.shape[1], v_head_dim)
    if (
        k.shape[1:] != want_k
        or v.shape[1:] != want_v
        or not k.shape[0] == v.shape[0] == slots.shape[0]
    ):
        raise ValueError(
            f"write_pages: k {tuple(k.shape)}, v {tuple(v.shape)}, slots {tuple(slots.shape)} "
            f"do not fit pages of "
            f"K {want_k} and V {want_v}"
        )
    if k.dtype != k_pages.dtype or v.dtype != v_pages.dtype or slots.dtype != torch.int64:
        raise ValueError("write_pages: k, v must have the pages' dtype and slots must be int64")
    WRITE_PAGES(WriteCall(layout, k_pages, v_pages, k, v, slots, clear))
