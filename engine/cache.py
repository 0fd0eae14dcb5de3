"""The paged memory of all layers: K, V and page fields, allocated together, same page ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..kernels.store import PageLayout
from .attention.base import LayerCache, LayerShape, PageField
from .attention.experts import ExpertMethod, KeptCache
from .attention.parse import method_text
from .attention.policy import AttentionPolicy
from .attention.protocols import BranchMethod, EvictingMethod, LatentMethod
from .kept_rule import KeptRule
from .snapshots import States
from .step_plan import LayerGroup, PageCopy


def layer_groups(
    shapes: Sequence[LayerShape], policy: AttentionPolicy
) -> tuple[list[LayerGroup], list[int]]:
    """Layers that keep the same tokens share page tables: the groups, and each layer's group.
    Expert-choice heads, of whatever layer, have one more group together, the last.

    Raises ValueError for a layer whose one phase drops what the other may read.
    """
    wanted = [layer_group(layer, shape, policy) for layer, shape in enumerate(shapes)]
    groups = sorted(set(wanted), key=lambda g: (g.window or 0, g.sinks, g.compact))
    rule = kept_rule(shapes, policy)
    kept = [] if rule is None else [LayerGroup(kept=rule)]
    return groups + kept, [groups.index(each) for each in wanted]


def kept_rule(shapes: Sequence[LayerShape], policy: AttentionPolicy) -> KeptRule | None:
    """How many tokens each expert-choice head of the model keeps; None where there is none.

    Raises ValueError unless all layers and both phases agree.
    """
    rules = {
        method.kept_rule(shape)
        for methods in (policy.prefill, policy.decode)
        for method, shape in zip(methods, shapes, strict=True)
        if isinstance(method, ExpertMethod) and shape.experts is not None
    }
    if len(rules) > 1 or (rules and policy.differs):
        raise ValueError(
            "expert-choice heads have one list of tokens: all layers, and prompts and outputs, "
            "must attend by the same mosa(...)"
        )
    return rules.pop() if rules else None


def layer_group(layer: int, shape: LayerShape, policy: AttentionPolicy) -> LayerGroup:
    """What a layer keeps. ValueError where its two phases disagree on what may be dropped."""
    if shape.recurrent is not None:
        return LayerGroup(window=1)  # the page of the last token
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
    if shape.recurrent is not None:
        return shape.fields
    methods = (policy.prefill[layer], policy.decode[layer])
    if shape.latent is not None and not all(isinstance(each, LatentMethod) for each in methods):
        raise ValueError(f"layer {layer} keeps latents, which only the method asa reads")
    if shape.experts is not None and not all(isinstance(each, ExpertMethod) for each in methods):
        raise ValueError(f"layer {layer} has heads that choose tokens; only mosa serves these")
    for each in methods:
        if shape.branches and not (isinstance(each, BranchMethod) and each.gates(shape)):
            raise ValueError(
                f"layer {layer} gates the branches of native sparse attention, which only the "
                f"method nsa adds up, not {method_text(each)}"
            )
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
            total += layout.bytes_per_page(shape.kept_heads, *shape.kept, dtype)
            for field in layer_fields(shape, policy, layer, layout.page_size).values():
                total += torch.Size(field.shape).numel() * (field.dtype or dtype).itemsize
    return total


def kept_bytes_per_page(
    shapes: Sequence[LayerShape], layout: PageLayout, dtype: torch.dtype
) -> int:
    """Bytes of one page of kept tokens over all expert-choice heads: K, V, position and score."""
    total = 0
    for shape in shapes:
        if shape.experts is not None:
            heads = shape.experts.heads
            total += layout.bytes_per_page(heads, shape.head_dim, shape.v_head_dim, dtype)
            total += heads * layout.page_size * (torch.int32.itemsize + torch.float32.itemsize)
    return total


def kept_undo_bytes(
    shapes: Sequence[LayerShape],
    rule: KeptRule,
    dtype: torch.dtype,
    tokens: int,
    seqs: int,
    length: int,
) -> int:
    """What a step remembers, so that it can be run again, over all expert-choice heads whose tokens
    are replaced (see KeptStep): per row a slot, and K and V that lay there, of no more tokens than
    the lists have.

    tokens: rows of a step at most; seqs: sequences; length: of one, at most.
    """
    replaced = min(tokens, seqs * rule.most(length))
    total = 0
    for shape in shapes:
        if shape.experts is not None and not rule.appends:
            pair = (shape.head_dim + shape.v_head_dim) * dtype.itemsize + torch.int64.itemsize
            total += shape.experts.heads * (tokens * torch.int32.itemsize + replaced * pair)
    return total


class KVCache:
    """One LayerCache per layer. Pages are zeroed memory, committed by the system when first
    written. Layers with expert-choice heads have their pages in one more group, the last.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        group_of: Sequence[int],
        pages_per_group: Sequence[int],
        policy: AttentionPolicy,
        layout: PageLayout,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.group_of = list(group_of)
        self.layout = layout
        own = max(group_of) + 1  # the groups of layers; that of kept tokens comes behind
        self._kept_group = own if len(pages_per_group) > own else None
        self.layers = [
            LayerCache(
                i,
                layout,
                *layout.allocate(pages_per_group[g], shape.kept_heads, *shape.kept, dtype, device),
                allocate_fields(
                    layout,
                    pages_per_group[g],
                    layer_fields(shape, policy, i, layout.page_size),
                    dtype,
                    device,
                ),
                kept=_allocate_kept(pages_per_group[-1], shape, layout, dtype, device),
            )
            for i, (shape, g) in enumerate(zip(shapes, group_of, strict=True))
        ]
        # By group, of layers that carry something from token to token.
        self.states = {
            group: States(pages_per_group[group], carrying)
            for group in range(own)
            if (carrying := _carrying(shapes, group_of, group))
        }

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Carries out the copies of a step plan: (group, source page, destination page)."""
        for group in {copy[0] for copy in copies}:
            source = torch.tensor([copy[1] for copy in copies if copy[0] == group])
            target = torch.tensor([copy[2] for copy in copies if copy[0] == group])
            for pages in self._tensors(group):
                pages[target] = pages[source]
            if group in self.states:
                self.states[group].copy(source.tolist(), target.tolist())

    def begin_step(self) -> None:
        """From here on kept tokens may be replaced."""
        for kept in self._kept():
            kept.step.begin()

    def undo_step(self) -> bool:
        """Takes back what the step changed that its rows would read; False: it cannot be.

        All else that a step writes it writes again. Until `settle_step`, what runs is that step.
        """
        return all(kept.undo(self.layout) for kept in self._kept())

    @property
    def runs_again(self) -> bool:
        """Whether a step that broke is being run again, so that lists may have chosen before."""
        return any(kept.step.runs_again for kept in self._kept())

    def settle_step(self) -> None:
        """What runs next is another step."""
        for kept in self._kept():
            kept.step.settle()

    def _kept(self) -> list[KeptCache]:
        return [cache.kept for cache in self.layers if cache.kept is not None]

    def _tensors(self, group: int) -> Iterator[torch.Tensor]:
        """All that lies under the page ids of a group."""
        for layer, cache in enumerate(self.layers):
            if self.group_of[layer] == group:
                yield from (cache.k, cache.v, *cache.fields.values())
            elif group == self._kept_group and cache.kept is not None:
                yield from (cache.kept.k, cache.kept.v, cache.kept.positions, cache.kept.scores)


def _carrying(
    shapes: Sequence[LayerShape], group_of: Sequence[int], group: int
) -> list[LayerShape]:
    """The layers of a group that carry something from token to token."""
    own = [shape for shape, g in zip(shapes, group_of, strict=True) if g == group]
    return [shape for shape in own if shape.fields]


def allocate_fields(
    layout: PageLayout,
    pages: int,
    fields: dict[str, PageField],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """The fields of so many pages, zeroed; dtype: of K and V."""
    return {
        name: layout.allocate_field(
            pages, field.shape, field.dtype or dtype, device, by_head=field.by_head
        )
        for name, field in fields.items()
    }


def _allocate_kept(
    pages: int,
    shape: LayerShape,
    layout: PageLayout,
    dtype: torch.dtype,
    device: torch.device | str,
) -> KeptCache | None:
    experts = shape.experts
    if experts is None:
        return None
    dims = (shape.head_dim, shape.v_head_dim)
    return KeptCache.allocate(layout, pages, experts.heads, dims, dtype, device)
