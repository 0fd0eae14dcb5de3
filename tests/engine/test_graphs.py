"""Graphs of decode steps, with an emulator that records and replays in host memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine import graphs, tapes
from saccade.engine.devices import Place
from saccade.kernels import native
from saccade.kernels.attend import Keys

from ..methods.every_method import NAMES, small
from . import graph_emulator
from .conftest import Checkpoints, Engines
from .engine_probe import greedy, some_tokens, tokens_of
from .graph_emulator import Emulator

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value", "ignore:divide by zero", "ignore:Conversion of an array"
)
OPTIONS: dict[str, Any] = {"max_model_len": 256, "page_size": 16, "max_num_seqs": 4}


def found(engine: Engine, before: int = 0) -> list[list[list[int]]]:
    """Two requests together, one of which ends first."""
    prompts = [some_tokens(before + 18, seed=1), some_tokens(3, seed=2)]
    together = engine.generate(prompts, [greedy(4), greedy(7)])
    assert all(each.error is None for each in together)
    return [tokens_of(each) for each in together]


QUICK = ("dense", "moba")
MARKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", MARKED)
def test_replayed_steps_give_the_same_tokens(
    checkpoint: Checkpoints,
    make_engine: Engines,
    emulated: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Those of the processor; steps of one shape are captured once and then replayed."""
    method = small(name)
    folder, options = checkpoint(method.family), OPTIONS | {"attention": method.spec}
    processor = make_engine(folder, device="cpu", **options)
    expected = found(processor, method.before)
    monkeypatch.setattr(native, "kernels", lambda: None)
    engine = make_engine(folder, device="cuda", **options)
    assert found(engine, method.before) == expected
    made = engine._runner.graphs
    assert made is not None
    assert not made.refusals
    assert made.replays >= 2
    for phase, counts in processor.reads.as_dict().items():
        assert engine.reads.as_dict()[phase] == pytest.approx(counts, rel=1e-6)


@pytest.mark.parametrize(
    "numbers", [lambda x: torch.tensor([1, 2]), lambda x: x[[1, 0]], lambda x: x.new_tensor([3])]
)
def test_numbers_of_the_host_are_not_captured(
    interpreted: None, numbers: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Their copy to a GPU is waited for; a single one is an argument of what is launched."""
    x = torch.zeros(2)
    with pytest.raises(graph_emulator.Waits, match="numbers of the host"):
        Emulator().capture(lambda: x + numbers(x))
    made = Emulator().capture(lambda: torch.where(x > 0, 5, x + 1))
    x.fill_(2)
    assert made.replay is not None
    made.replay()
    assert made.result.tolist() == [5, 5]


def test_signatures() -> None:
    """What tensors hold does not matter; shapes, numbers, and which are the same tensor do."""
    a, b = torch.zeros(3), torch.ones(3)
    assert graphs.signature([a, {"n": 2}]) == graphs.signature([b, {"n": 2}])
    assert graphs.signature([a, {"n": 2}]) != graphs.signature([a, {"n": 3}])
    assert graphs.signature([a, a]) != graphs.signature([a, b])
    assert graphs.signature(a) != graphs.signature(a.int())
    assert graphs.signature(slice(0, 3)) != graphs.signature(slice(0, 4))
    rows = (torch.zeros(2, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1))
    assert graphs.signature(Keys(*rows, spans=((7, 8),))) == graphs.signature(Keys(*rows))


def test_widths() -> None:
    """Few, and never a quarter too wide but where tables are small."""
    found = [graphs.width(pages) for pages in range(1, 5000)]
    assert all(size >= pages for pages, size in enumerate(found, 1))
    assert all(size <= pages * 1.25 + 7 for pages, size in enumerate(found, 1))
    assert found == sorted(found) and len(set(found)) < 50


def test_a_step_that_cannot_be_captured_is_computed(
    checkpoint: Checkpoints,
    make_engine: Engines,
    emulated: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It says why, once, and gives its tokens all the same; SACCADE_CUDA_GRAPHS=0 asks for that."""
    monkeypatch.setattr(native, "kernels", lambda: None)
    folder = checkpoint("llama")
    expected = make_engine(folder, device="cuda", **OPTIONS).generate([5, 6], greedy(5))
    monkeypatch.setattr(tapes, "LOOKING", {"embedding", "index_select"})
    engine = make_engine(folder, device="cuda", **OPTIONS)
    assert tokens_of(engine.generate([5, 6], greedy(5))[0]) == tokens_of(expected[0])
    made = engine._runner.graphs
    assert made is not None and not made.replays
    assert made.refusals == ["Waits: index_select waits for the device"]
    assert capsys.readouterr().err.count("without CUDA graphs") == 1
    monkeypatch.undo()
    monkeypatch.setenv(graphs.SETTING, "0")
    assert graphs.recorder(Place(torch.device("cuda"), gpu=True)) is None


def test_layers_with_equal_methods_share_a_part(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    """Whatever the phases' specs: a step is planned, laid out and compared once for all of them."""
    specs = {"prefill_attention": "moba(16, 2)", "decode_attention": "quest(48, 16)"}
    engine = make_engine(checkpoint("llama"), **specs, page_size=16)
    policy = engine.policy
    assert len(policy.prefill) > 1
    assert len({id(method) for method in policy.prefill}) == 1
    assert len({id(method) for method in policy.decode}) == 1


def test_the_oldest_graphs_make_room(
    checkpoint: Checkpoints, make_engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their buffers, which hold page tables, take no more than the memory plan says."""
    engine = make_engine(checkpoint("llama"), enable_prefix_caching=False)
    made = engine._runner.graphs
    if made is None:
        pytest.skip("no compiled kernels, so no tapes")
    for rows in (1, 2, 3):
        engine.generate([[5, 6, 7]] * rows, greedy(6))
    held = [graph.buffer.nbytes for graph in made._graphs.values()]
    assert len(held) == 3
    monkeypatch.setattr(graphs, "MOST_BUFFERS", sum(held))
    engine.generate([[5, 6, 7]] * 4, greedy(6))
    now = [graph.buffer.nbytes for graph in made._graphs.values()]
    assert sum(now) <= sum(held) and now[-1] > held[-1]
    monkeypatch.setattr(graphs, "MOST_BUFFERS", 1)
    engine.generate([[5, 6, 7]] * 5, greedy(6))
    assert len(made._graphs) == 1  # the last one, however large
