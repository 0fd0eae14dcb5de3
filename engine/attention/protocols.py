"""What a method may say or do beyond `AttentionMethod`: each protocol is opt-in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from .base import AttentionMethod, LayerShape, Step


@dataclass(frozen=True)
class StepBounds:
    """The largest step: its rows and sequences, the tokens of the longest of these, and the threads
    of the processor.
    """

    rows: int
    seqs: int
    length: int
    threads: int


@runtime_checkable
class ScratchMethod(Protocol):
    """A method whose kernels on the processor take memory that grows with the context."""

    def kernel_scratch(self, shape: LayerShape, most: StepBounds) -> int:
        """Bytes that they allocate at most in a layer of this shape."""
        ...


class PlannedMethod(Protocol):
    """A method whose plan says what it reads: the same in every layer, so it is asked once a step
    if `reads_are_planned`.
    """

    reads_are_planned: ClassVar[bool]


def is_planned(method: AttentionMethod) -> bool:
    """Whether it is a PlannedMethod that says so. Asked in every step: `isinstance`
    with a protocol takes far longer.
    """
    return bool(getattr(method, "reads_are_planned", False))


@runtime_checkable
class PhasedMethod(Protocol):
    """A method whose options say how it attends in each phase, where a spec names it for both."""

    def for_prefill(self) -> AttentionMethod:
        """What prompt tokens attend by."""
        ...

    def for_decode(self) -> AttentionMethod:
        """What generated tokens attend by."""
        ...


@runtime_checkable
class BoundedMethod(Protocol):
    """A method that reads no more than so many keys however long the context is."""

    def most_keys(self, shape: LayerShape) -> int | tuple[int, ...] | None:
        """The most keys of a row, of the mean over its heads; one number for each of several
        branches that read apart from each other; None: these options have no bound.

        A layer that reads more has fallen back to dense attention, and is counted as such.
        """
        ...


@runtime_checkable
class EvictingMethod(Protocol):
    """A method that needs no more of the context than its last and its first tokens."""

    def keeps(self, shape: LayerShape) -> tuple[int, int] | None:
        """(window, sinks): the last and the first tokens that it ever reads; pages of others are
        freed if both phases of the layer say the same. None: these options keep all pages.
        """
        ...


@runtime_checkable
class SelectingMethod(Protocol):
    """A method that chooses blocks of keys."""

    def blocks_selected(self, shape: LayerShape, step: Step, plan: Any) -> torch.Tensor:
        """float64 [S]: blocks that one layer chose, forced ones too: mean over query heads, summed
        over a sequence's rows. Asked when `keys_read` is.
        """
        ...


@runtime_checkable
class LatentMethod(Protocol):
    """A method that reads the latents of a latent layer; the others need K and V."""

    def expands(self, shape: LayerShape) -> bool:
        """Whether it makes keys and values of the latents, or else attends over the latents."""
        ...


@runtime_checkable
class BranchMethod(Protocol):
    """A method that adds up the branches of layers that gate them; others would leave out the
    gates.
    """

    def gates(self, shape: LayerShape) -> int:
        """How many of a layer's gates it uses; 0: it leaves the output as it is."""
        ...


@runtime_checkable
class MeasuredMethod(Protocol):
    """A method that goes by figures measured for a checkpoint, beyond what its options say."""

    def measured(self, shape: LayerShape) -> AttentionMethod:
        """The same for layers of this shape, named by their figures; ValueError without any."""
        ...


@runtime_checkable
class PromptEndMethod(Protocol):
    """A method that treats the last rows of a prompt apart from those before."""

    def tail(self, prompt_len: int) -> int:
        """The first position whose K and V, in a deeper layer, depend on where the prompt ends.

        Pages from there on serve only prompts of the same length.
        """
        ...


@runtime_checkable
class PromptModeMethod(Protocol):
    """A method that reads a whole prompt in one of a few ways, by its length."""

    def prompt_mode(self, prompt_len: int) -> str:
        """The way for a prompt of this length. Its pages serve only prompts of the same way."""
        ...
