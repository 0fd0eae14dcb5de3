"""Which states a step reads and writes: two of every page, in turn, as the host has noted them."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from saccade.engine.attention.base import LayerShape
from saccade.engine.batch import Batch, Phase, Run
from saccade.engine.graphs import signature
from saccade.engine.recurrent_shape import RecurrentShape, Tail
from saccade.engine.snapshots import Left, Snapshots, States, plan_states
from saccade.kernels.key_conv import cpu

PAGE = 16
TAILS = (Tail("inputs", 4, 8), Tail("others", 3, 8, dilation=3))
SHAPE = LayerShape(4, 0, 8, 8, 1.0, recurrent=RecurrentShape(4, 8, 8, TAILS))


def states() -> States:
    return States(8, [SHAPE])


def plan(known: States, *chunks: tuple[int, int, list[int]]) -> tuple[Snapshots, Left]:
    """The plan of chunks (start, stop, the sequence's pages)."""
    runs, row = [], 0
    for number, (start, stop, pages) in enumerate(chunks):
        request = cast(Any, SimpleNamespace(pages=[pages]))
        runs.append((Run(number, request, start, stop, Phase.DECODE, cast(Any, None)), row))
        row += stop - start
    positions = torch.tensor([p for start, stop, _ in chunks for p in range(start, stop)])
    return plan_states(Batch(positions, positions, [], [], runs), 0, PAGE, known)


def step(known: States, *chunks: tuple[int, int, list[int]]) -> tuple[list[int], list[int]]:
    """The states that a step reads and writes."""
    found, left = plan(known, *chunks)
    left.note()
    return found.walk.load.tolist(), found.store.tolist()


def test_a_step_writes_the_state_that_it_does_not_read() -> None:
    known = states()
    assert step(known, (0, 5, [3])) == ([-1], [6])
    assert step(known, (5, 6, [3])) == ([6], [7])
    assert step(known, (6, 7, [3])) == ([7], [6])
    # Over borders of pages: the end of each keeps its state.
    assert step(known, (7, 40, [3, 5, 1])) == ([6], [7, 10, 2])
    assert step(known, (40, 41, [3, 5, 1])) == ([2], [3])
    # Another sequence goes on after the first page, and reads what lies there.
    assert step(known, (16, 17, [3, 4]), (41, 42, [3, 5, 1])) == ([7, 3], [8, 2])


def test_what_broke_is_planned_again_as_it_was() -> None:
    known = states()
    step(known, (0, 20, [3, 5]), (0, 3, [6]))
    pair = (20, 21, [3, 5]), (3, 4, [6])
    first, _ = plan(known, *pair)  # and breaks: nothing is noted
    again, left = plan(known, *pair)
    assert again.walk.load.tolist() == first.walk.load.tolist()
    assert again.store.tolist() == first.store.tolist()
    left.note()  # breaks behind the last layer
    once_more, _ = plan(known, pair[1])
    assert once_more.walk.load.tolist() == again.walk.load.tolist()[1:]
    assert once_more.store.tolist() == again.store.tolist()[1:]


def test_a_state_that_is_not_there_is_missed() -> None:
    known = states()
    step(known, (0, 20, [3, 5]))
    for start, pages in ((19, [3, 5]), (20, [3, 2]), (21, [3, 5])):
        with pytest.raises(RuntimeError, match="is not in the page of the last token"):
            plan(known, (start, start + 1, pages))
    # A step that broke has overwritten the state that it was to leave ...
    step(known, (20, 21, [3, 5]))
    plan(known, (21, 22, [3, 5]))
    with pytest.raises(RuntimeError, match="is not in the page"):
        plan(known, (20, 21, [3, 5]))
    # ... and whoever gets a page anew finds nothing of its former owner.
    step(known, (0, 4, [5]))
    with pytest.raises(RuntimeError, match="is not in the page"):
        plan(known, (21, 22, [3, 5]))


def test_copies_of_pages_take_their_states_along() -> None:
    known = states()
    step(known, (0, 5, [3]))
    step(known, (5, 6, [3]))
    known.copy([3], [7])
    assert step(known, (6, 7, [7]), (6, 7, [3])) == ([15, 7], [14, 6])


def test_decode_steps_of_as_many_sequences_share_a_graph() -> None:
    """Whatever they read, and whether a page begins or not; a step that begins a text does not."""
    known = states()
    step(known, (0, 15, [0]), (0, 20, [1, 2]))
    found = []
    for more in range(3):
        made, left = plan(known, (15 + more, 16 + more, [0, 3]), (20 + more, 21 + more, [1, 2]))
        left.note()
        found.append(signature(made))
    assert len(set(found)) == 1
    begins, _ = plan(known, (0, 1, [4]), (23, 24, [1, 2]))
    assert signature(begins) != found[0]


@pytest.mark.parametrize(("taps", "dilation"), [(4, 1), (3, 3)])
def test_convolutions_keep_the_last_inputs(taps: int, dilation: int) -> None:
    """As the whole text gives them at once, channel by channel, in every cut."""
    text, weight = torch.randn(40, 8), torch.randn(taps, 8)
    reach, known = (taps - 1) * dilation, states()
    padded = torch.cat([torch.zeros(reach, 8), text])
    sums = sum(weight[tap] * padded[reach - tap * dilation :][:40] for tap in range(taps))
    expected = torch.nn.functional.silu(torch.as_tensor(sums))
    tail = torch.full((8, 2, reach, 8), torch.nan)
    cuts = [0, 1, 3, 4, 15, 16, 17, 39, 40]
    for start, stop in pairwise(cuts):
        made, left = plan(known, (start, stop, [3, 5, 1]))
        x = text[start:stop]
        tap = made.taps[taps, dilation]
        arguments = (x[:, None], tail.flatten(0, 1)[:0], tap.before, weight[:, None], False)
        assert cpu.supports(*arguments) is None
        assert torch.allclose(made.convolve(tail, x, weight, dilation), expected[start:stop])
        left.note()
    kept = tail.flatten(0, 1)[np.asarray(made.store)[-1]]
    assert torch.equal(kept, text[-reach:])
