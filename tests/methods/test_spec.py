"""Attention specs: what they mean, and what is said about a bad one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from saccade.engine.attention.chunked import Chunked
from saccade.engine.attention.dense import Dense
from saccade.engine.attention.parse import parse_layers, parse_method
from saccade.engine.attention.policy import parse_policy
from saccade.engine.attention.spec import describe_methods, method_class
from saccade.engine.attention.window import Window


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("dense", Dense()),
        (" dense ( ) ", Dense()),
        ("window", Window(4096, 4)),
        ("window()", Window(4096, 4)),
        ("window(128)", Window(128, 4)),
        ("window(128, 0)", Window(128, 0)),
        ("window(128, sinks=1)", Window(128, 1)),
        ("window( sinks = 9 ,size=5)", Window(5, 9)),
        ("chunked(k_chunk=64)", Chunked(1024, 64)),
        ("chunked(8, 16)", Chunked(8, 16)),
    ],
)
def test_one_method(text: str, method: object) -> None:
    assert parse_method(text) == method


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sparse", r"'sparse' is unknown.*dense, window, chunked"),
        ("", r"'' is unknown.*dense, window, chunked"),
        ("dense(4)", r"dense has no option for '4'; its options are: none"),
        ("window(length=4)", r"window has no option for 'length=4'.*size, sinks"),
        ("window(1, 2, 3)", r"window has no option for '3'.*size, sinks"),
        ("chunked(size=4)", r"chunked has no option for 'size=4'.*q_chunk, k_chunk"),
        ("window(size=4, size=5)", "window is given size twice"),
        ("window(4, size=5)", "window is given size twice"),
        ("window(size=-1)", r"window\(size=\.\.\.\) must be a whole number, not '-1'"),
        ("window(size=1.5)", "whole number, not '1.5'"),
        ("window(size=)", "whole number, not ''"),
        ("window(size=1k)", "whole number, not '1k'"),
        ("window(size=9999999999)", "whole number of at most 9 digits, not '9999999999'"),
        ("window(size=0)", "size must be at least 1 and sinks at least 0, got 0, 4"),
        ("chunked(0, 5)", "q_chunk and k_chunk must be at least 1, got 0, 5"),
        ("window(size=5", "unknown"),
        ("window size=5", "unknown"),
        ("window(size=(5))", "unknown"),
        ("__import__('os')", "unknown"),
    ],
)
def test_a_bad_method_is_named_with_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_method(text)


def test_layers() -> None:
    dense, window = Dense(), Window(64)
    assert parse_layers("dense", 3) == (dense,) * 3
    assert parse_layers("0-1:dense; *:window(64)", 4) == (dense, dense, window, window)
    assert parse_layers("3: window(64) ;*: dense;", 4) == (dense, dense, dense, window)
    assert parse_layers("*:dense; 0:window(64)", 2) == (dense, dense)  # the first entry counts
    assert parse_layers("0-2:dense", 3) == (dense,) * 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0:dense", r"names no method for layer 1; end it with '\*:dense'"),
        (";", "names no method for layer 0"),
        ("3:dense; *:dense", r"layers '3' must be .* < 3"),
        ("1-5:dense; *:dense", r"layers '1-5'"),
        ("2-1:dense; *:dense", r"layers '2-1'"),
        ("-1:dense; *:dense", r"layers '-1'"),
        ("all:dense", r"layers 'all'"),
        (":dense", r"layers ''"),
        ("0:; *:dense", r"'' is unknown"),
        ("0:window(q=1); *:dense", r"window has no option for 'q=1'"),
    ],
)
def test_bad_layers(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_layers(text, 3)


def test_phases() -> None:
    default = parse_policy(None, None, None, 2)
    assert default.prefill == default.decode == (Dense(), Dense())
    assert not default.differs and default.align == 1
    policy = parse_policy("window(9)", None, "dense", 2)
    assert (policy.prefill, policy.decode) == ((Window(9),) * 2, (Dense(),) * 2)
    assert policy.differs
    assert not parse_policy("dense", "window(9)", "window(size=9, sinks=4)", 2).differs
    with pytest.raises(ValueError, match="'nope' is unknown"):
        parse_policy("dense", None, "nope", 2)


def test_the_name_is_what_the_spec_means() -> None:
    def name(*specs: str | None) -> str:
        return parse_policy(*(*specs, None, None)[:3], 2).name

    assert name("window") == name("window(4096)") == name("*: window( sinks=4 )")
    assert name("dense") == name(None) == name("0:dense; 1:dense") == name("dense", "dense")
    different = [("dense",), ("window",), ("window(9)",), ("window(9, 0)",), ("chunked",),
                 ("0:window; *:dense",), ("1:window; *:dense",), ("dense", "window"),
                 ("dense", None, "window")]  # fmt: skip
    assert len({name(*specs) for specs in different}) == len(different)


def test_the_table_of_methods_is_that_of_the_classes() -> None:
    table = describe_methods()
    classes = {info.name: method_class(info) for info in table}
    assert {"dense": Dense, "window": Window, "chunked": Chunked}.items() <= classes.items()
    for info in table:
        every = dataclasses.fields(classes[info.name])
        fields = [field for field in every if field.metadata.get("option", True)]
        assert info.parameters == tuple(f"{field.name}={field.default}" for field in fields)
        assert type(parse_method(info.name)) is classes[info.name]
        assert info.source and info.backends and set(info.phases) <= {"prefill", "decode"}


def test_methods_are_values() -> None:
    for text in ("dense", "window(5)", "chunked(5)"):
        method = parse_method(text)
        assert method == parse_method(text) and hash(method) == hash(parse_method(text))
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
            method.size = 3  # type: ignore[attr-defined]
    assert Dense() != Window() and Window(5) != Window(6)


def test_the_table_is_there_without_torch() -> None:
    code = (
        "import sys; from saccade.engine.attention.spec import describe_methods; "
        "assert describe_methods() and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
