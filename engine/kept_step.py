"""What a step changes of one layer's lists, where kept tokens are replaced: so that a step that
broke can be run again.

A step changes a list twice: when rows choose (`keep_best` gives a token its slot, whose position
and score are from then on its own), and when they attend (its K and V go there). A list that has
chosen is not asked again: a row's scores do not depend on the batch around it, so its rows get the
slots that they got. K and V of a token that was replaced are needed again, by the rows before the
one that took its place: they are put back. A row that comes alone, as in decode, has none before
it, so that steps of decode copy nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels.keep import KeptState, ListRoom, keep_best


@dataclass(frozen=True)
class Choice:
    """The slots that the rows of some lists got."""

    table: torch.Tensor  # int32 [S, max pages], of the lists
    room: ListRoom
    slots: torch.Tensor  # int32 [T, E]

    def by_list(self) -> dict[tuple[int, int, int], torch.Tensor]:
        """(first page, position of the first row, rows) -> int32 [rows, E]. While a step runs, the
        pages of a list are those of one sequence alone.
        """
        return {
            (int(self.table[s, 0]), int(self.room.positions[begin]), end - begin): self.slots[
                begin:end
            ]
            for s, (begin, end) in enumerate(self.room.sequences)
        }


@dataclass(frozen=True)
class Replaced:
    """K [N, 1, d] and V [N, 1, dv] that lay at slots int64 [N] of pages of one head."""

    slots: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


class KeptStep:
    """`begin`, `choose` and `replace` while a step runs; when it broke `undo`, more of these, and
    `settle`.
    """

    def __init__(self) -> None:
        self._choices: list[Choice] = []
        self._replaced: list[Replaced] = []
        self._chooses = False  # `keep_best` is at work, or broke
        self._again: dict[tuple[int, int, int], torch.Tensor] | None = None

    def begin(self) -> None:
        """A step, or a part of one that broke, begins."""
        self._choices, self._replaced, self._chooses = [], [], False

    @property
    def runs_again(self) -> bool:
        """Whether a step that broke is being run again."""
        return self._again is not None

    @property
    def latest(self) -> Choice | None:
        """What the lists have chosen last in this step, if anything."""
        return self._choices[-1] if self._choices else None

    def note(self, choice: Choice) -> None:
        """Some lists have chosen in a graph, which wrote into the tensors of this choice."""
        self._choices.append(choice)

    def choose(self, scores: torch.Tensor, state: KeptState, room: ListRoom) -> torch.Tensor:
        """As `keep_best`, but lists that have chosen in a step that broke stay as they are.

        Raises RuntimeError where only some of the lists have, which are never all run together.
        """
        if self._again:
            lists = Choice(state.table, room, scores).by_list()
            known = [self._again[each] for each in lists if each in self._again]
            if known and len(known) < len(lists):
                raise RuntimeError("some lists of kept tokens, but not all, have chosen before")
            if known:
                return torch.cat(known)
        self._chooses = True
        slots = keep_best(scores, state, room)
        self._choices.append(Choice(state.table, room, slots))
        self._chooses = False
        return slots

    def replace(self, replaced: Replaced) -> None:
        """What is about to be overwritten."""
        self._replaced.append(replaced)

    def undo(self) -> list[Replaced] | None:
        """The step broke and will be run again, whole or in parts: what must be put back first.

        None: it cannot be, for it broke within a choice.
        """
        if self._chooses:
            return None
        self._again = {}
        for choice in self._choices:
            self._again.update(choice.by_list())
        return self._replaced

    def settle(self) -> None:
        """All that shall be run again has been."""
        self._again = None
