"""The paged memory of all layers: K, V and page fields, allocated together, same page ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..kernels.store import PageLayout
from .attention.base import (
    EvictingMethod,
    LatentMethod,
    LayerCache,
    LayerShape,
    PageField,
)
from .attention.parse import method_text
from .attention.policy import AttentionPolicy
from .step_plan import LayerGroup, PageCopy


def layer_groups(
    shapes: Sequence[LayerShape], policy: AttentionPolicy
) -> tuple[list[LayerGroup], list[int]]:
    """Layers that keep the same tokens share page tables: the groups, and each layer's group.

    Raises ValueError for a layer whose one phase drops what the other may read.
    """
    wanted = [layer_group(layer, shape, policy) for layer, shape in enumerate(shapes)]
    groups = sorted(set(wanted), key=lambda g: (g.window or 0, g.sinks, g.compact))
    return groups, [groups.index(each) for each in wanted]


def layer_group(layer: int, shape: LayerShape, policy: AttentionPolicy) -> LayerGroup:
    """What a layer keeps. ValueError where its two phases disagree on what may be dropped."""
    prefill, decode = policy.prefill[layer], policy.decode[layer]
    kept = [
        method.keeps(shape) if isinstance(method, EvictingMethod) else None
        for method in (prefill, decode)
    ]
    if kept[0] != kept[1]:
        raise ValueError(
            f"layer {layer}: one phase frees pages that the other may read: "
            f"{method_text(prefill)} for prompts, {method_text(decode)} for generated tokens; "
            f"a method that evicts must serve both phases alike"
        )
    window, sinks = kept[0] or (shape.window, 0)
    if window is not None and window < shape.key_taps - 1:
        raise ValueError(
            f"layer {layer} convolves keys over {shape.key_taps} tokens, but pages are freed after "
            f"{window}; a window must be at least {shape.key_taps - 1}"
        )
    return LayerGroup(window, sinks, compact=kept[0] is not None)


def layer_fields(
    shape: LayerShape, policy: AttentionPolicy, layer: int, page_size: int
) -> dict[str, PageField]:
    """The page fields that this layer, and its prefill and decode methods, need.

    Raises ValueError for a method that cannot serve a layer of this shape.
    """
    methods = (policy.prefill[layer], policy.decode[layer])
    if shape.latent is not None and not all(isinstance(each, LatentMethod) for each in methods):
        raise ValueError(f"layer {layer} keeps latents, which only the method asa reads")
    return shape.fields | {
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
