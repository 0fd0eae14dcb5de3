"""MoSA on the GPU path, interpreted: every mode chooses, keeps and attends by kernels in Triton,
and gives the tokens of the engine on the processor.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine.attention.experts import KeptCache
from saccade.kernels import native
from saccade.kernels.ops import Op

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import greedy, some_tokens

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value", "ignore:divide by zero", "ignore:Conversion of an array"
)
OPTIONS = {"max_model_len": 256, "page_size": 16, "max_num_seqs": 4}
CHOSEN = ("keep_above", "keep_best", "keep_top", "attend_turns", "attend", "write_pages")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Which ops of MoSA a GPU's kernels served; their references raise."""
    found: set[str] = set()
    call = Op.__call__

    def watched(op: Op, *args: Any) -> Any:
        if op.name in CHOSEN:
            refusals = op.refusals(*args)
            if all(refusals.values()):
                raise RuntimeError(f"nothing serves {op.name}: {refusals}")
            found.add(op.name)
        return call(op, *args)

    monkeypatch.setattr(Op, "__call__", watched)
    return found


def answers(engine: Engine, lengths: tuple[int, ...], new: int) -> list[list[int]]:
    """Greedy tokens after prompts that run together."""
    prompts = [some_tokens(length, seed=i) for i, length in enumerate(lengths)]
    found = engine.generate(prompts, greedy(new))
    assert all(each.error is None for each in found)
    return [list(each.outputs[0].token_ids) for each in found]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mosa", "mosa_pure"])
@pytest.mark.parametrize(
    ("spec", "ops"),
    [
        ("mosa", {"keep_above", "attend", "write_pages"}),
        ("mosa(mode=stream)", {"keep_best", "attend_turns", "attend", "write_pages"}),
        ("mosa(mode=whole)", {"keep_top", "attend", "write_pages"}),
    ],
)
def test_every_mode_by_kernels(
    checkpoint: Checkpoints,
    make_engine: Engines,
    interpreted: None,
    used: set[str],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    spec: str,
    ops: set[str],
) -> None:
    """Prompts in chunks where the mode allows, and rows of decode beside them."""
    whole = "whole" in spec
    options: dict[str, Any] = OPTIONS | {"attention": spec}
    if not whole:
        options["max_num_batched_tokens"] = 23
    asked = ((40, 5), 1) if whole else ((40, 5), 4)
    folder = checkpoint(family)
    expected = answers(make_engine(folder, device="cpu", **options), *asked)
    used.clear()
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert answers(make_engine(folder, device="cuda", **options), *asked) == expected
    assert used == ops


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "spec"), [("mosa_pure", "mosa"), ("mosa_pure", "mosa(mode=stream)")]
)
def test_decode_steps_are_replayed(
    checkpoint: Checkpoints,
    make_engine: Engines,
    emulated: None,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    spec: str,
) -> None:
    """What heads choose changes from replay to replay; unchosen tokens take no slot. Lists are
    those of the processor, token by token and score by score.
    """
    folder, options = checkpoint(family), OPTIONS | {"attention": spec}
    processor = make_engine(folder, device="cpu", **options)
    expected = answers(processor, (18, 3), 7)
    monkeypatch.setattr(native, "kernels", lambda: None)
    engine = make_engine(folder, device="cuda", **options)
    assert answers(engine, (18, 3), 7) == expected
    made = engine._runner.graphs
    assert made is not None and not made.refusals and made.replays >= 4
    for ours, theirs in zip(lists_of(engine), lists_of(processor), strict=True):
        assert torch.equal(ours.positions, theirs.positions)
        assert torch.allclose(ours.scores, theirs.scores, atol=1e-5)
    for phase, counts in processor.reads.as_dict().items():
        assert engine.reads.as_dict()[phase] == pytest.approx(counts, rel=1e-6)


@pytest.mark.slow
def test_a_replayed_step_that_breaks_is_run_again(
    checkpoint: Checkpoints,
    make_engine: Engines,
    emulated: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lists that have chosen in a graph do not choose again: two that replace a token would."""
    monkeypatch.setattr(native, "kernels", lambda: None)
    folder, options = checkpoint("mosa"), OPTIONS | {"attention": "mosa(mode=stream, k=3)"}
    engines = [make_engine(folder, device="cuda", **options) for _ in range(2)]
    runner, broken = engines[1]._runner, 0
    run, made = runner.run, runner.graphs
    assert made is not None

    def breaks(chunks: Any, copies: Any) -> Any:
        nonlocal broken
        found = run(chunks, copies)
        if len(chunks) == 2 and made.replays in (2, 4, 5):
            broken += 1
            raise ZeroDivisionError("this step breaks")
        return found

    runner.run = breaks  # type: ignore[method-assign]
    whole, again = (answers(engine, (18, 3), 9) for engine in engines)
    assert again == whole and broken >= 3
    for ours, theirs in zip(*map(lists_of, engines), strict=True):
        assert torch.equal(ours.positions, theirs.positions)
        assert torch.allclose(ours.scores, theirs.scores, atol=1e-5)  # products of other batches


def lists_of(engine: Engine) -> list[KeptCache]:
    """Of every layer."""
    return [cache.kept for cache in engine._runner._cache.layers if cache.kept is not None]
