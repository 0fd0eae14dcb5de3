"""A step that broke in some layer is run again, a request at a time: nothing that it had written by
then may show. Here every step of several requests breaks once, in one layer after the other.

tests/engine/test_engine_failures.py has the requests that an exception belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from saccade import Engine
from saccade.engine.runner import StepResult
from saccade.engine.step_plan import Chunk, PageCopy
from saccade.kernels import native

from .conftest import Checkpoints, check_idle
from .cuts import CROWD, TIGHT, Alone, check, engine_for, serve
from .test_engine_cuts import CASES

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        native.chosen_isa() is None, reason="torch's own products round by batch size"
    ),
]
# Methods and layers that keep more in pages than K and V of every token, or free pages early.
NAMES = """dense streaming_evict streaming_evict_in_part moba delta quest lessismore zerotuning
    moba_kconv moba_kconv_rope streaming_kconv infllm minimax deltanet deltanet_bf16 qwen4 qsa
    qsa_bf16 minicpm adaptive adaptive_full adaptive_phases nsa nsa_paper nsa_weighted asa asa_wide
    mosa mosa_tight mosa_stream mosa_stream_k""".split()
KEPT = {name: CASES[name] for name in NAMES} | {
    "delta_guard": (
        "llama",
        {"prefill_attention": "delta(window=9, sinks=2, gamma=4, anchor_guard=0.02)"},
    ),
}
FORK_AT_PAGES = {name for name in KEPT if "kconv" in name} | {
    "deltanet", "deltanet_bf16", "qwen4", "qsa", "qsa_bf16"
}  # fmt: skip
# Pages without which no two of these requests share a step.
MORE = {"mosa": 1, "mosa_stream": 2, "mosa_stream_k": 2}


class Breaks:
    """Makes every step of more than one request raise, once, when some layer has attended."""

    def __init__(self, engine: Engine) -> None:
        self.count = self.after_copies = 0
        self._left, self._copied = -1, False
        self._runner = runner = engine._runner
        self._layers, self._run, self._copy = len(runner.shapes), runner.run, runner.copy_pages
        runner.run = self.run  # type: ignore[method-assign]
        runner.copy_pages = self.copy_pages  # type: ignore[method-assign]
        runner._note_layer = self.note_layer  # type: ignore[method-assign]

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        self._copied = bool(copies)
        self._copy(copies)

    def run(self, chunks: Sequence[Chunk], copies: Sequence[PageCopy]) -> StepResult:
        self._left = self.count % self._layers + 1 if len(chunks) > 1 else -1
        return self._run(chunks, copies)

    def note_layer(self) -> None:
        self._runner.progress += 1
        self._left -= 1
        if self._left == 0:
            self.count += 1
            self.after_copies += self._copied
            raise ZeroDivisionError("this layer breaks, once")


@pytest.mark.parametrize("spare", [TIGHT["spare_pages"], 50])
@pytest.mark.parametrize("case", KEPT)
def test_no_break_changes_a_bit(checkpoint: Checkpoints, case: str, spare: int) -> None:
    """With pages that requests take from each other, and with enough for all to fork."""
    family, policy = KEPT[case]
    folder = checkpoint(family)
    pages = spare + MORE.get(case, 0)
    engine = engine_for(folder, CROWD, {**TIGHT, "spare_pages": pages}, policy)
    breaks, alone = Breaks(engine), Alone(folder, policy)
    generations, recorder = serve(engine, CROWD)
    for wish, generation in zip(CROWD, generations, strict=True):
        check(wish, generation, recorder, alone)
    check_idle(engine)
    assert breaks.count >= 2 * len(engine._runner.shapes)
    # Copies are made before the step, once; what breaks afterwards does not undo them.
    assert breaks.after_copies > 0 or spare < 50 or case in FORK_AT_PAGES
