"""Every registered method with options so small that a tiny text crosses all of its borders.

A method that is not in the table fails the tests that run over all of them: give it a line.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from saccade.engine.attention.spec import describe_methods


@dataclass(frozen=True)
class Small:
    """family: a tiny checkpoint (engine/tiny.py) that the method serves. spec: with blocks and
    windows of 16 tokens or fewer where it has any; all of a text of 80 tokens is then not read.
    before: tokens that prompts must have more to cross a border of the method. bare: the spec with
    no more than what has no default that serves every checkpoint; empty: the name alone.
    """

    spec: str
    family: str = "llama"
    before: int = 0
    bare: str = ""


SMALL: dict[str, Small] = {
    "dense": Small("dense"),
    "window": Small("window(size=9, sinks=3)"),
    "chunked": Small("chunked(q_chunk=5, k_chunk=7)"),
    "moba": Small("moba(block=16, topk=2)"),
    # The last 128 tokens of a prompt are exact.
    "delta": Small("delta(window=9, sinks=2, gamma=4, anchor_guard=0.25)", before=150),
    "quest": Small("quest(budget=48, block=16)"),
    "lessismore": Small("lessismore(budget=48, start=0, correction=2)"),
    "tidal": Small("tidal(budget=48, start=0, correction=2)"),
    "streaming": Small("streaming(sinks=3, window=9, mode=evict)"),
    "adaptive": Small("adaptive(window=16, sinks=3, tau=0.4, block=16)"),
    "infllm": Small("infllm(16, 16, 16, 2, 0, 16, 0)"),
    "mosa": Small("mosa(tau=0.6)", "mosa"),
    "nsa": Small("nsa(8, 4, topk=4, block=16, window=9)", "nsa_paper"),
    "msa": Small("0:dense; *:msa(16, 2, 1)", "minimax_m3"),
    "qsa": Small("qsa(4, 6)", "qwen4_qsa"),
    "zerotuning": Small("zerotuning(1.6, 0_2, moba, block=16, topk=2)", bare="zerotuning(1.6)"),
    "asa": Small("asa(16, 3, 1, 1, reuse=4)", "asa"),
}
NAMES = [info.name for info in describe_methods()]


def small(name: str) -> Small:
    """The method's line of the table."""
    if name not in SMALL:
        pytest.fail(f"give {name} a line in SMALL of {__name__.replace('.', '/')}.py")
    return SMALL[name]
