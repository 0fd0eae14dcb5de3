"""Tool calls in what a model writes: a parser per format, and grammars that force a call."""

from __future__ import annotations

from .base import Piece, ToolCall, ToolDelta, ToolParser, parse_whole
from .hermes import HermesParser
from .llama3 import Llama3Parser
from .mistral import MistralParser

__all__ = ["PARSERS", "Piece", "ToolCall", "ToolDelta", "ToolParser", "guess_format", "parse_whole"]

# Format -> parser; the names that `vllm serve --tool-call-parser` knows.
PARSERS: dict[str, type[ToolParser]] = {
    "hermes": HermesParser,
    "llama3_json": Llama3Parser,
    "mistral": MistralParser,
}


def guess_format(template: str) -> str | None:
    """The format in which a chat template writes calls; None when it shows none that is known."""
    if "<tool_call>" in template:
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if '"parameters": ' in template and "ipython" in template:
        return "llama3_json"
    return None
