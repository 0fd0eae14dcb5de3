"""Fixtures for tests of the whole engine: tiny checkpoints, engines that are checked at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine import graphs
from saccade.kernels import native

from .graph_emulator import Emulator
from .tiny import write_tiny

Checkpoints = Callable[..., Path]
Engines = Callable[..., Engine]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """`checkpoint(family, **options of write_tiny)` -> its folder, written once per session."""
    made: dict[str, Path] = {}

    def get(family: str = "llama", **options: Any) -> Path:
        options.setdefault("max_position_embeddings", 512)
        key = repr((family, sorted(options.items())))
        if key not in made:
            made[key] = write_tiny(tmp_path_factory.mktemp(family), family, **options)
        return made[key]

    return get


@pytest.fixture
def interpreted(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in all tests, without looking for overflow in every sum of integers: half of the time.
    The tests of the kernels look for it."""
    from triton.runtime.interpreter import interpreter_builder

    options = replace(interpreter_builder.options, sanitize_overflow=False)
    monkeypatch.setattr(interpreter_builder, "options", options)


@pytest.fixture
def emulated(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU path in host memory, with graphs."""
    monkeypatch.setattr(graphs, "recorder", lambda where: Emulator() if where.gpu else None)


@pytest.fixture
def make_engine() -> Iterator[Engines]:
    """`make_engine(folder, **options)` -> Engine; at the test's end its accounts must be right."""
    made: list[Engine] = []

    def make(folder: Path, **options: Any) -> Engine:
        made.append(Engine(folder, **{"page_size": 16, "kv_cache_memory": 1 << 20, **options}))
        return made[-1]

    yield make
    for engine in made:
        check_idle(engine)


def check_idle(engine: Engine) -> None:
    """After `close` nothing is left: no request, no entry, no page held."""
    engine.scheduler.check_integrity()
    engine.close()
    engine.scheduler.check_integrity()
    assert not engine.scheduler.has_work and not engine._live and not engine._branches
    assert set(engine.scheduler.stats().used_pages) == {0}


@pytest.fixture(scope="session")
def lone_kernels() -> Any:
    """The kernels with a single thread; None where the torch references serve."""
    isa = native.chosen_isa()
    compiled = native.module()
    return None if isa is None or compiled is None else compiled.Kernels(isa, 1)


@pytest.fixture
def one_thread(lone_kernels: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Matrices this small only lose time to a second thread, ours or torch's."""
    monkeypatch.setattr(native, "kernels", lambda: lone_kernels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
