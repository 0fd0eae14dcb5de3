"""What `saccade methods` says is true: options, state, phases, compiled kernels; and what is said
about bad options, for every method.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from saccade.engine.attention.parse import parse_method
from saccade.engine.attention.policy import parse_policy
from saccade.engine.attention.spec import describe_methods, find_method
from saccade.kernels import native
from saccade.kernels.ops import Op

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import greedy, some_tokens
from .every_method import NAMES, small

pytestmark = pytest.mark.usefixtures("one_thread")


def parameters(name: str) -> dict[str, str]:
    info = find_method(name)
    assert info is not None
    return info.defaults


@pytest.mark.skipif(native.chosen_isa() is None, reason="no compiled module on this machine")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_kernels_serve_every_call(
    checkpoint: Checkpoints,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: str,
) -> None:
    """Every op that the method calls, in a prompt and for generated tokens, by `refusals`."""
    info = find_method(name)
    assert info is not None
    folder = checkpoint(small(name).family)
    refused: dict[str, set[str | None]] = {}
    call = Op.__call__

    def note(self: Op, *args: Any) -> Any:
        found = self.refusals(*args)
        refused.setdefault(self.name, set()).add(found.get("cpu", "it has no compiled kernel"))
        return call(self, *args)

    monkeypatch.setattr(Op, "__call__", note)
    engine = make_engine(folder, attention=small(name).spec, dtype=dtype)
    engine.generate(some_tokens(200), greedy(20))
    assert "attend" in refused
    reference, compiled = info.backends  # what the ops can choose
    assert reference == "torch reference"
    left, _, without = compiled.partition(" but ")
    assert left == "compiled CPU"
    found = {op for op, reasons in refused.items() if reasons != {None}}
    named = set(filter(None, without.split(", ")))  # those of other modes among them
    assert found <= named and bool(found) == bool(named), refused


@pytest.mark.parametrize("name", NAMES)
def test_state_is_what_the_pages_hold(
    checkpoint: Checkpoints, make_engine: Engines, name: str
) -> None:
    info = find_method(name)
    assert info is not None
    layers, colon, _ = small(name).spec.rpartition("*:")  # some layers may not serve it
    bare = small(name).bare or name
    engine = make_engine(checkpoint(small(name).family), attention=f"{layers}{colon}{bare}")
    kept = any(cache.fields for cache in engine._runner._cache.layers)
    assert (info.state.split(";")[0] == "none") == (not kept)


@pytest.mark.parametrize("name", NAMES)
def test_phases(name: str) -> None:
    info = find_method(name)
    assert info is not None
    for phase in ("prefill", "decode"):
        specs = [name if phase == each else None for each in ("prefill", "decode")]
        if phase in info.phases:
            assert getattr(parse_policy(None, *specs, 2), phase) == (parse_method(name),) * 2
        else:
            with pytest.raises(ValueError, match=f"{phase}_attention: {name} does not serve"):
                parse_policy(None, *specs, 2)
    assert re.search(r"\d{4}|arXiv|Kamradt|transformers", info.source), info.source


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_option_is_named_with_the_right_ones(name: str) -> None:
    info, options = find_method(name), list(parameters(name))
    presets = ["preset"] if info is not None and info.presets else []
    listed = re.escape(", ".join([*presets, *options]) or "none")
    for bad in (f"{name}(nonsense=1)", f"{name}({'1, ' * len(options)}1)"):
        with pytest.raises(ValueError, match=f"{name} has no option for .*: {listed}$"):
            parse_method(bad)
    for option, default in parameters(name).items():
        with pytest.raises(ValueError, match=f"{name} is given {option} twice"):
            parse_method(f"{name}({option}={default}, {option}={default})")
        with pytest.raises(ValueError, match=rf"{name}\({option}=...\) must be .*, not '!'"):
            parse_method(f"{name}({option}=!)")
        assert parse_method(f"{name}({option}={default})") == parse_method(name)


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in NAMES for option in parameters(name)]
)
def test_a_value_out_of_range_is_refused_by_option(name: str, option: str) -> None:
    """0, a huge number and a word that means nothing: taken, or refused in words that help."""
    for value in ("0", "999999999", "nonsense"):
        try:
            parse_method(f"{name}({option}={value})")
        except ValueError as error:
            assert name in str(error) and option in str(error), error


def test_every_method_is_shown() -> None:
    assert [info.name for info in describe_methods()] == NAMES
