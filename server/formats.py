"""How this model writes calls and reasoning: by its chat template, or as the operator says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import reasoning
from .reading import AnswerReader
from .reasoning import Begins
from .tools import PARSERS, guess_format

if TYPE_CHECKING:
    from ..engine.tokenizer import Tokenizer
    from .chat import ChatTemplate

TOOL_PARSERS = ("auto", "none", *PARSERS)
# "think" under the names that `vllm serve --reasoning-parser` knows for the same format.
REASONING_PARSERS = ("auto", "none", "think", "deepseek_r1", "qwen3")


@dataclass(frozen=True)
class Formats:
    """tools: a key of PARSERS, None where no format is known. many: an answer may hold several
    calls, for the template takes them back. thinks: reasoning in `<think>` comes first. special:
    markers of either that are special tokens of the vocabulary.
    """

    tools: str | None = None
    many: bool = True
    thinks: bool = False
    special: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        template: ChatTemplate | None,
        tokenizer: Tokenizer | None,
        tool_parser: str = "auto",
        reasoning_parser: str = "auto",
    ) -> Formats:
        """What the template shows, unless the parsers are named."""
        source = "" if template is None else template.tool_source
        tools = guess_format(source) if tool_parser == "auto" else tool_parser
        tools = None if tools == "none" else tools
        thinks = reasoning.END in source
        if reasoning_parser != "auto":
            thinks = reasoning_parser != "none"
        markers = [*(PARSERS[tools].markers if tools else ())]
        markers += [reasoning.START, reasoning.END] if thinks else []
        special = {
            marker
            for marker in markers
            if tokenizer is not None and tokenizer.id_of(marker) in tokenizer.special_ids
        }
        many = template is None or template.takes_several_calls
        return cls(tools, many, thinks, frozenset(special))

    def reader(
        self, begins: Begins, names: tuple[str, ...], many: bool, forced: bool = False
    ) -> AnswerReader:
        """Reads one answer. begins: where, as to reasoning; names: the tools that may be called,
        none: calls are not looked for; many: there may be several calls; forced: nothing but calls.
        """
        parser = PARSERS[self.tools](names) if names and self.tools is not None else None
        splitter = None
        if self.thinks and begins is not Begins.BEHIND:
            splitter = reasoning.ReasoningSplitter(begins is Begins.INSIDE)
        return AnswerReader(splitter, parser, many, forced)

    def keeps_special(self, calls: bool) -> bool:
        """Whether the engine must leave special tokens in the text, for the readers to see."""
        markers = self.special if calls else self.special & {reasoning.START, reasoning.END}
        return bool(markers)
