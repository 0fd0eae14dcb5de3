"""The paged memory of all layers: K, V and page fields, allocated together, same page ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..kernels.store import PageLayout
from .attention.base import LatentMethod, LayerCache, LayerShape, PageField
from .attention.policy import AttentionPolicy
from .step_plan import LayerGroup, PageCopy


def layer_groups(shapes: Sequence[LayerShape]) -> tuple[list[LayerGroup], list[int]]:
    """Layers that keep the same tokens share page tables: the groups, and each layer's group."""
    windows = sorted({shape.window for shape in shapes}, key=lambda w: (w is not None, w or 0))
    return [LayerGroup(window) for window in windows], [windows.index(s.window) for s in shapes]


def layer_fields(
    shape: LayerShape, policy: AttentionPolicy, layer: int, page_size: int
) -> dict[str, PageField]:
    """The page fields that this layer's prefill and decode methods need.

    Raises ValueError for a method that cannot serve a layer of this shape.
    """
    methods = (policy.prefill[layer], policy.decode[layer])
    if shape.latent is not None and not all(isinstance(each, LatentMethod) for each in methods):
        raise ValueError(f"layer {layer} keeps latents, which only the method asa reads")
    return {
        name: field for method in methods for name, field in method.fields(shape, page_size).items()
    }


def bytes_per_page(
    shapes: Sequence[LayerShape],
    group_of: Sequence[int],
    group: int,
    policy: AttentionPolicy,
    layout: PageLayout,
    dtype: torch.dtype,
) -> int:
    """Bytes of one page over all layers of a group, page fields included."""
    total = 0
    for layer, shape in enumerate(shapes):
        if group_of[layer] == group:
            total += layout.bytes_per_page(shape.num_kv_heads, *shape.kept, dtype)
            for field in layer_fields(shape, policy, layer, layout.page_size).values():
                total += torch.Size(field.shape).numel() * (field.dtype or dtype).itemsize
    return total


class KVCache:
    """One LayerCache per layer. Pages are zeroed memory, committed by the system when first
    written.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        group_of: Sequence[int],
        pages_per_group: Sequence[int],
        policy: AttentionPolicy,
        layout: PageLayout,
        dtype: torch.dtype,
    ) -> None:
        self.group_of = list(group_of)
        self.layout = layout
        self.layers = [
            _allocate(
                i,
                shape,
                pages_per_group[group],
                layer_fields(shape, policy, i, layout.page_size),
                layout,
                dtype,
            )
            for i, (shape, group) in enumerate(zip(shapes, group_of, strict=True))
        ]

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Carries out the copies of a step plan: (group, source page, destination page)."""
        for group in {copy[0] for copy in copies}:
            source = torch.tensor([copy[1] for copy in copies if copy[0] == group])
            target = torch.tensor([copy[2] for copy in copies if copy[0] == group])
            for layer, cache in enumerate(self.layers):
                if self.group_of[layer] == group:
                    for pages in (cache.k, cache.v, *cache.fields.values()):
                        pages[target] = pages[source]


def _allocate(
    layer: int,
    shape: LayerShape,
    pages: int,
    fields: dict[str, PageField],
    layout: PageLayout,
    dtype: torch.dtype,
) -> LayerCache:
    k, v = layout.allocate(pages, shape.num_kv_heads, *shape.kept, dtype)
    extra = {
        name: torch.zeros((pages, *field.shape), dtype=field.dtype or dtype)
        for name, field in fields.items()
    }
    return LayerCache(layer, layout, k, v, extra)
