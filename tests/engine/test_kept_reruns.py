"""A step that broke while lists of kept tokens were being changed, where tokens are replaced.

tests/engine/test_engine_reruns.py breaks steps of all methods where a layer has attended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine import kept_step
from saccade.engine.attention.kept_lists import KeptLists
from saccade.engine.cache import kept_undo_bytes
from saccade.engine.kept_rule import KeptRule
from saccade.engine.kept_step import KeptStep, Replaced
from saccade.engine.runner import StepResult
from saccade.engine.step_plan import Chunk, PageCopy
from saccade.kernels import native
from saccade.kernels.keep import KeptState, ListRoom

from .conftest import Checkpoints, check_idle
from .cuts import CROWD, TIGHT, Alone, check, engine_for, serve
from .engine_probe import greedy, some_tokens
from .test_engine_cuts import CASES

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        native.chosen_isa() is None, reason="torch's own products round by batch size"
    ),
]
STREAMS = ["mosa_stream", "mosa_stream_k"]
WIDE = {**TIGHT, "spare_pages": 50}


class Watched:
    """Whether the step at work is of several requests, and how many slots were put back."""

    def __init__(self, engine: Engine, patch: pytest.MonkeyPatch) -> None:
        self.several = False
        self.chunks: Sequence[Chunk] = ()
        self.put_back = self.saved = 0
        run, undo, replace = engine._runner.run, KeptStep.undo, KeptStep.replace

        def watched_run(chunks: Sequence[Chunk], copies: Sequence[PageCopy]) -> StepResult:
            self.several, self.chunks = len(chunks) > 1, chunks
            return run(chunks, copies)

        def watched_undo(step: KeptStep) -> list[Replaced] | None:
            found = undo(step)
            self.put_back += sum(len(each.slots) for each in found or ())
            return found

        def watched_replace(step: KeptStep, replaced: Replaced) -> None:
            assert max(chunk.count for chunk in self.chunks) > 1  # decode copies nothing
            self.saved += len(replaced.slots)
            replace(step, replaced)

        engine._runner.run = watched_run  # type: ignore[method-assign]
        patch.setattr(KeptStep, "undo", watched_undo)
        patch.setattr(KeptStep, "replace", watched_replace)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("case", STREAMS)
def test_a_break_within_a_layer_changes_no_bit(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, case: str, written: bool
) -> None:
    """Between a layer's choice and its attention, or behind both."""
    family, policy = CASES[case]
    folder = checkpoint(family)
    engine, alone = engine_for(folder, CROWD, dict(WIDE), policy), Alone(folder, policy)
    watched, attend, calls, breaks = Watched(engine, monkeypatch), KeptLists.attend, 0, 0

    def broken(lists: KeptLists, *args: Any) -> torch.Tensor:
        nonlocal calls, breaks
        calls += watched.several
        breaks_here = watched.several and calls % 4 == 0  # of 3 layers: in one after the other
        out = attend(lists, *args) if written or not breaks_here else torch.empty(0)
        if breaks_here:
            breaks += 1
            raise ZeroDivisionError("this layer breaks, once")
        return out

    with monkeypatch.context() as patch:
        patch.setattr(KeptLists, "attend", broken)
        generations, recorder = serve(engine, CROWD)
    for wish, generation in zip(CROWD, generations, strict=True):
        check(wish, generation, recorder, alone)
    assert breaks > 10 and watched.put_back > 0
    check_idle(engine)


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("victim", range(4))
def test_a_request_that_always_breaks_fails_alone(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, case: str, victim: int
) -> None:
    """From its tenth token on, in the last layer, when all others have been changed."""
    family, policy = CASES[case]
    folder = checkpoint(family)
    engine, alone = engine_for(folder, CROWD, dict(WIDE), policy), Alone(folder, policy)
    watched, runner, last = Watched(engine, monkeypatch), engine._runner, 0

    def note_layer() -> None:
        nonlocal last
        runner.progress += 1
        last = (last + 1) % len(runner.shapes)
        # Known by its prompt, the only one of this length.
        bad = [c for c in watched.chunks if len(c.request.prompt) == len(CROWD[victim].prompt)]
        if last == 0 and any(chunk.start + chunk.count > 10 for chunk in bad):
            raise ZeroDivisionError("this request breaks")

    runner._note_layer = note_layer  # type: ignore[method-assign]
    generations, recorder = serve(engine, CROWD)
    for index, (wish, generation) in enumerate(zip(CROWD, generations, strict=True)):
        if index == victim:
            assert generation.error == "this request breaks"
        else:
            check(wish, generation, recorder, alone)
    check_idle(engine)


def test_a_break_within_a_choice_fails_all_of_the_step_and_nobody_later(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has changed is not known then."""
    family, policy = CASES["mosa_stream"]
    folder = checkpoint(family)
    engine, alone = engine_for(folder, CROWD, dict(WIDE), policy), Alone(folder, policy)
    watched = Watched(engine, monkeypatch)

    def choose(*args: Any) -> torch.Tensor:
        if watched.several:
            raise ZeroDivisionError("no choice")
        return keep_best(*args)

    keep_best: Callable[..., torch.Tensor] = kept_step.keep_best
    with monkeypatch.context() as patch:
        patch.setattr(kept_step, "keep_best", choose)
        generations, _ = serve(engine, CROWD)
    assert [each.error for each in generations[:2]] == ["no choice"] * 2
    generations, recorder = serve(engine, CROWD)
    for wish, generation in zip(CROWD, generations, strict=True):
        check(wish, generation, recorder, alone)
    check_idle(engine)


@pytest.mark.parametrize("case", STREAMS)
def test_what_a_step_remembers_is_declared(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """The most that any step remembered, of the smallest plan that would do."""
    family, policy = CASES[case]
    engine = Engine(checkpoint(family), page_size=16, max_num_batched_tokens=64, **policy)
    most, run, cache = 0, engine._runner.run, engine._runner._cache

    def measured(*args: Any) -> StepResult:
        nonlocal most
        result = run(*args)
        steps = [layer.kept.step for layer in cache.layers if layer.kept is not None]
        tensors = [
            tensor
            for step in steps
            for tensor in (
                *(choice.slots for choice in step._choices),
                *(part for each in step._replaced for part in (each.slots, each.k, each.v)),
            )
        ]
        most = max(most, sum(each.nbytes for each in tensors))
        return result

    engine._runner.run = measured  # type: ignore[method-assign]
    engine.generate([some_tokens(300, seed=2), some_tokens(150, seed=3)], greedy(2))
    (rule,) = [group.kept for group in engine.scheduler.tables.groups if group.kept]
    dtype = cache.layers[0].kept.k.dtype  # type: ignore[union-attr]
    declared = kept_undo_bytes(engine._runner.shapes, rule, dtype, 64, 2, 302)
    assert declared / 20 < most <= declared
    without = kept_undo_bytes(engine._runner.shapes, KeptRule(4), dtype, 64, 2, 302)
    assert without == 0 and engine.memory.request.scratch_bytes > declared
    engine.close()


def test_lists_that_have_chosen_stay_as_they_are() -> None:
    """Run again, alone, a list gives its rows the same slots; its state says so already."""
    step, scores = KeptStep(), torch.rand(8, 3)
    state = [torch.zeros(4, 3, 16), torch.zeros(4, 3, 16, dtype=torch.int32)]
    room = ListRoom(
        torch.tensor([0, 5, 8], dtype=torch.int32),
        torch.tensor([0, 1, 2, 3, 4, 0, 1, 2]),
        torch.tensor([0, 1, 2, 2, 2, 0, 1, 2], dtype=torch.int32),
        torch.tensor([1, 2, 2, 2, 2, 1, 2, 2], dtype=torch.int32),
        first=False,
    )
    table = torch.tensor([[2], [1]], dtype=torch.int32)
    step.begin()
    slots = step.choose(scores, KeptState(state[0], state[1], table), room)
    known = [each.clone() for each in state]
    assert step.undo() == []

    def alone(rows: slice, cu: list[int], pages: list[int]) -> torch.Tensor:
        step.begin()
        own = ListRoom(
            torch.tensor(cu, dtype=torch.int32),
            *(each[rows].clone() for each in (room.positions, room.before, room.after)),
            first=False,
        )
        return step.choose(
            scores[rows],
            KeptState(state[0], state[1], torch.tensor([pages], dtype=torch.int32).T),
            own,
        )

    assert alone(slice(5, 8), [0, 3], [1]).equal(slots[5:])
    assert alone(slice(0, 5), [0, 5], [2]).equal(slots[:5])
    assert all(map(torch.equal, state, known))
    with pytest.raises(RuntimeError, match="not all"):
        alone(slice(0, 8), [0, 5, 8], [2, 3])
    step.settle()
    step.begin()
    table[1] = 3
    assert step.choose(scores, KeptState(state[0], state[1], table), room).shape == slots.shape
    assert not all(map(torch.equal, state, known))
