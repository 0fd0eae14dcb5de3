"""How often adaptive heads decide as an oracle would: constructed cases, and maps as the judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from saccade.engine.attention.adaptive import Adaptive
from saccade.engine.attention.base import Aux, LayerCache, LayerShape, Step
from saccade.engine.attention.watch import Judged, Watch
from saccade.engine.config import EngineConfig
from saccade.engine.look import Looker
from saccade.engine.look_maps import Decided
from saccade.kernels.attend import Keys
from saccade.kernels.store import PageLayout, write_pages
from saccade.server import cli

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import some_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH, DIM, NEEDLE = 96, 16, 5


@dataclass
class Judge(Watch):
    """A watch that keeps what it is told."""

    judged: list[Judged] = field(default_factory=list)
    reads: list[Keys] = field(default_factory=list)

    def judge(self, judged: Judged) -> None:
        self.judged.append(judged)

    def read(self, keys: Keys) -> None:
        self.reads.append(keys)


def decide(method: Adaptive, q: torch.Tensor, k: torch.Tensor) -> tuple[Judge, torch.Tensor]:
    """A layer over keys [LENGTH, 1, DIM], scale 1, all rows [LENGTH, H, DIM] in one step; the watch
    and which heads read their far keys, bool [LENGTH, H].
    """
    layout, judge = PageLayout(16), Judge()
    pages = layout.allocate(LENGTH // 16, 1, DIM, DIM, torch.float32)
    at = torch.arange(LENGTH)
    write_pages(layout, *pages, k, torch.randn(LENGTH, 1, DIM), at)
    shape = LayerShape(q.shape[1], 1, DIM, DIM, 1.0)
    step = Step(
        torch.tensor([0, LENGTH], dtype=torch.int32),
        at,
        at,
        torch.arange(LENGTH // 16, dtype=torch.int32)[None],
        torch.tensor([LENGTH]),
        slice(0, LENGTH),
        16,
    )
    state = {
        name: torch.zeros((LENGTH // 16, *each.shape), dtype=each.dtype or torch.float32)
        for name, each in method.fields(shape, 16).items()
    }
    cache = LayerCache(0, layout, *pages, state, judge)
    plan = method.plan(shape, step)
    method.summarize(cache, step, plan, Aux())
    method.attend(shape, cache, step, plan, q, Aux())
    assert plan.decided.far is not None
    return judge, plan.decided.far


def test_keys_of_one_kind_are_foretold_exactly() -> None:
    """Without variance the moments say all there is: every decision is the oracle's."""
    q, k = torch.randn(LENGTH, 3, DIM), torch.ones(LENGTH, 1, DIM)
    judge, far = decide(Adaptive(16, 0, 0.3, "blocks", 16), q, k)
    (judged,) = judge.judged
    asked = LENGTH - 16
    assert judged.decisions.tolist() == [asked] * 3 and torch.equal(judged.equal, judged.decisions)
    assert 0 < int(far.sum()) < 3 * asked
    assert torch.equal(judged.far, far.sum(0).double())
    assert torch.equal(judged.found, judged.needed)


def test_one_key_that_moments_hide_is_missed_where_it_is_asked_for() -> None:
    """Head 1 asks for the needle in every second row; the moments of its block do not show it."""
    k, q = torch.zeros(LENGTH, 1, DIM), torch.zeros(LENGTH, 2, DIM)
    k[NEEDLE, 0, 0], q[::2, 1, 0] = 8.0, 1.0
    # True: ln(16) - ln(e^8 + n) = -5.2; foretold by the variance of its block: -2.5; needed: -4.
    tau = float(torch.tensor(-4.0).sigmoid())
    judge, far = decide(Adaptive(16, 0, tau, "blocks", 16), q, k)
    (judged,) = judge.judged
    asking = len([row for row in range(0, LENGTH, 2) if row - 16 >= NEEDLE])
    late = len(range(32, LENGTH, 2))  # whose far keys are a whole block, or more
    assert judged.decisions.tolist() == [80, 80] and judged.needed.tolist() == [0, asking]
    assert not far[32:].any()
    assert judged.equal[0] == 80 and 80 - asking <= judged.equal[1] <= 80 - late
    safe, _ = decide(Adaptive(16, 0, tau, "blocks", 16, 1), q, k)
    assert torch.equal(safe.judged[0].found, judged.needed)  # the bound overlooks nothing
    own = Decided.of(judged, 1)
    assert own.recall == pytest.approx(float(judged.found[1] / asking)) and own.queries == 80


@pytest.mark.parametrize(("tau", "far"), [(0.0, 0), (2.0, LENGTH - 16)])
def test_certain_answers_are_always_right(tau: float, far: int) -> None:
    q, k = torch.randn(LENGTH, 2, DIM), torch.randn(LENGTH, 1, DIM)
    judge, _ = decide(Adaptive(16, 0, tau, "blocks", 16), q, k)
    (judged,) = judge.judged
    assert torch.equal(judged.equal, judged.decisions) and judged.needed.tolist() == [far, far]
    assert Decided.of(judged, 0) == Decided(LENGTH - 16, 1.0, 1.0, 1.0)


def test_nothing_far_nothing_decided() -> None:
    q, k = torch.randn(LENGTH, 2, DIM), torch.randn(LENGTH, 1, DIM)
    judge, _ = decide(Adaptive(LENGTH, 3, 0.9, "blocks", 16), q, k)
    assert judge.judged[0].decisions.tolist() == [0, 0]
    assert Decided.of(judge.judged[0], 0) == Decided(0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("chunk", [300, 64])
def test_what_look_reports_is_what_its_maps_show(checkpoint: Checkpoints, chunk: int) -> None:
    """The oracle again, from the weights of dense attention: local keys must have the share tau."""
    spec = "adaptive(20, 3, 0.4, blocks, 16)"
    options = {"kv_cache_memory": 1 << 21, "page_size": 16, "max_num_batched_tokens": chunk}
    looker = Looker(EngineConfig(str(checkpoint("llama")), attention=spec, **options))
    found = looker.look(some_tokens(150), cell=1, generated=30)
    at = torch.arange(150)
    local = (at[:, None] - at < 20) | (at < 3)
    asked = at - 20 + 1 > 3
    for each in found.heads:
        needed = (each.mass * local).sum(1)[asked] < 0.4
        far = (each.read * ~local).sum(1)[asked] > 0
        own = each.decided
        assert own is not None and own.queries == int(asked.sum())
        assert own.agreement == pytest.approx(float((needed == far).double().mean()))
        assert own.precision == pytest.approx(float((needed & far).sum() / far.sum().clamp(min=1)))
        assert own.recall == pytest.approx(float((needed & far).sum() / needed.sum().clamp(min=1)))
    assert any(0 < each.decided.agreement < 1 for each in found.heads if each.decided)
    plain = Looker(EngineConfig(str(checkpoint("llama")), **options)).look(some_tokens(40))
    assert all(each.decided is None for each in plain.heads)


def test_the_table_of_look(
    checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(checkpoint("llama", tokenizer=True))
    argv = ["look", model, "--prompt", "def add(a, b):\n    return a + b\n" * 6]
    more = ["--out", str(tmp_path / "a.png"), "--page-size", "16", "--kv-cache-memory", "1MiB"]
    spec = "0:dense; *:adaptive(20, 3, 0.4, blocks, 16)"
    assert cli.main([*argv, *more, "--attention", spec, "--layers", "0,1", "--heads", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "as the oracle" in lines[1] and "recall" in lines[1]
    assert lines[2].split()[-1] == "-" and lines[3].split()[-1] == "%"
    assert cli.main([*argv, *more]) == 0
    assert "oracle" not in capsys.readouterr().out
