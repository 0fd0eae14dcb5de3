"""MoSA on the GPU path, interpreted: every mode chooses, keeps and attends by kernels in Triton,
and gives the tokens of the engine on the processor.
"""

from __future__ import annotations

from typing import Any

import pytest

from saccade import Engine
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
