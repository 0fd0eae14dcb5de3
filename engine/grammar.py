"""Structures compiled for a vocabulary by llguidance: which tokens may come next.

Compiling happens on a thread of its own with a deadline, and without the interpreter's lock. What
a grammar may cost is bounded there and again at every token (llguidance's limits).
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .bounded_work import BoundedWork
from .checks import shown
from .errors import RequestError
from .gbnf import as_lark
from .grammar_state import GrammarState
from .json_schema import fitted
from .structure import Structure
from .token_bytes import token_bytes
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance  # at run time with the first structure: an engine does without it until then

# Between JSON's tokens: one space, or a new line with its indentation. Some models like to write
# whitespace for ever; others write \u00e9 where they could write the letter.
_JSON: Any = {
    "whitespace_pattern": r"\x20|\x0A[\x20\x09]{0,32}",
    "json_allow_general_unicode_escapes": True,
}
_CACHED = 64
_AT_ONCE = 2
# llguidance follows names from rule to rule on the stack: the usual 8 MB overflow, and end the
# process, behind 3000 of them in a row. Of this, memory is only what is used.
_STACK = 256 << 20


class GrammarCompiler:
    """Compiles structures for one vocabulary; keeps the latest. Safe to use from several threads.

    The first use reads the vocabulary, which takes a second for a large one: see `warm_up`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        eos_ids: Sequence[int],
        seconds: float = 2.0,
    ) -> None:
        """vocab_size: the logits' width. seconds: the deadline of one compilation."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = list(eos_ids)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._cache: OrderedDict[Structure, GrammarState] = OrderedDict()
        self._work: BoundedWork[llguidance.LLMatcher]
        self._work = BoundedWork("compile-grammar", _AT_ONCE, _STACK)

    def warm_up(self) -> None:
        """Reads the vocabulary now. RequestError where structures cannot work with it."""
        with self._lock:
            self._known()

    def compile(self, structure: Structure) -> GrammarState:
        """The state at the beginning; make a `copy` of it for each completion.

        Blocks for at most the deadline. Raises RequestError with the reason when it does not
        compile, takes too long, or no text satisfies it.
        """
        self.warm_up()
        with self._lock:
            if (found := self._cache.get(structure)) is not None:
                self._cache.move_to_end(structure)
                return found
        state = GrammarState(self._within_deadline(structure))
        with self._lock:
            self._cache[structure] = state
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return state

    def _within_deadline(self, structure: Structure) -> llguidance.LLMatcher:
        try:
            return self._work.run(partial(self._build, structure), self._seconds)
        except TimeoutError:
            reason = f"it takes longer than {self._seconds:g} seconds"
            raise _refusal(structure, reason) from None

    def _build(self, structure: Structure) -> llguidance.LLMatcher:
        from llguidance import LLMatcher

        if structure.after:  # the free text in front would hide that nothing satisfies the form
            self._build(replace(structure, after="", opening=""))
        source = self._source(structure)
        matcher = LLMatcher(self._known(), source, log_level=0, limits=_limits())
        # The first mask is the dearest, and the first to show a grammar without any text.
        mask = b"" if matcher.is_error() else matcher.compute_bitmask()
        error = _reason(matcher.get_error())
        if matcher.is_error() and not error.startswith("NoExtension"):
            raise _refusal(structure, error)
        first = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        first[self._eos_ids] = 0
        if not first.any():
            raise _refusal(structure, "no text satisfies it, or the empty one alone")
        return matcher

    def _source(self, structure: Structure) -> str:
        """One grammar, or several that call each other by `@name`, as llguidance's JSON."""
        if not structure.after and structure.otherwise is None:
            return self._form(structure)
        forms = [structure] if structure.otherwise is None else [structure, structure.otherwise]
        named = [
            _named(f"form_{number}", each.kind, self._form(each))
            for number, each in enumerate(forms)
        ]
        start = "(" + " | ".join(f"@{each['name']}" for each in named) + ")"
        rules = []
        if structure.after:
            start = f"front{'?' if structure.opening else ''} {start}"
            opening = f"{self._marker(structure.opening)} " if structure.opening else ""
            rules = [f"front: {opening}free", *self._free(structure.after)]
        top = {"lark_grammar": "\n".join([f"start: {start}", *rules])}
        return json.dumps({"grammars": [top, *named]})

    def _free(self, marker: str) -> list[str]:
        """Any text up to and with a marker, and white space behind it."""
        rules = [r"space: /[ \n]{0,4}/"]
        if self._special_id(marker) is None:
            return [*rules, "free: text space", f"text[suffix={_quoted(marker)}]: /(?s:.*)/"]
        return [*rules, f"free: TEXT {self._marker(marker)} space", "TEXT: /(?s:.*)/"]

    def _form(self, structure: Structure) -> str:
        from llguidance import LLMatcher as make

        if structure.kind == "json_object":
            return make.grammar_from_json_schema({"type": "object"}, _JSON)
        if structure.kind == "json_schema":
            schema = json.dumps(fitted(json.loads(structure.text)))
            return make.grammar_from_json_schema(schema, _JSON)
        if structure.kind == "regex":
            return make.grammar_from_regex(structure.text)
        if structure.kind == "choice":
            return make.grammar_from_regex("|".join(map(_literal, structure.choices)))
        marks = [
            f"mark_{number}: {self._marker(text)}" for number, text in enumerate(structure.markers)
        ]
        rules = [as_lark(structure.text), *marks, *self._around(structure)]
        return make.grammar_from_lark("\n".join(rules))

    def _around(self, structure: Structure) -> list[str]:
        """The free text around markers, as far as a grammar names it: Structure.grammar."""
        used = [n for n in range(len(structure.markers)) if f"upto_{n}" in structure.text]
        rules, marks = [], []
        for number in used:
            marker = structure.markers[number]
            mark = f"(?s:.*){_literal(marker)}(?s:.*)"
            marks.append(mark)
            if self._special_id(marker) is None:
                rules.append(f"upto_{number}[suffix={_quoted(marker)}]: /(?s:.*)/")
            else:  # spelt out in letters it would be read as the marker all the same
                rules.append(f"upto_{number}: FREE_{number}? mark_{number}")
                rules.append(f"FREE_{number}: /(?s:.+)/ & ~/{mark}/")
        return [*rules, f"rest: REST\nREST: /(?s:.+)/ & ~/{'|'.join(marks)}/"] if used else []

    def _marker(self, text: str) -> str:
        """A text in a rule, or its token where it is a special one."""
        token = self._special_id(text)
        return _quoted(text) if token is None else f"<[{token}]>"

    def _special_id(self, text: str) -> int | None:
        token = None if self._tokenizer is None else self._tokenizer.id_of(text)
        special = self._tokenizer is not None and token in self._tokenizer.special_ids
        return token if special else None

    def _known(self) -> llguidance.LLTokenizer:
        """The vocabulary, which is read at the first use."""
        if self._vocabulary is None:
            self._vocabulary = _vocabulary(self._tokenizer, self._vocab_size, self._eos_ids)
        return self._vocabulary


class _Vocabulary:
    """What llguidance asks of a tokenizer: its TokenizerWrapper."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], eos_id: int) -> None:
        self.is_tokenizer_wrapper = True
        self.bos_token_id = None
        self.tokens = tokens
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.eos_token_id = eos_id
        self._tokenizer = tokenizer
        self._greedy: llguidance.LLTokenizer | None = None

    def use_greedy(self, tokenizer: llguidance.LLTokenizer) -> None:
        """What splits a text where the tokenizer's own way does not give back its bytes."""
        self._greedy = tokenizer

    def __call__(self, text: str) -> list[int]:
        """Tokens whose bytes are exactly the text's: how the model would write it."""
        ids = self._tokenizer.encode_plain(text)
        if b"".join(self.tokens[token] for token in ids) == text.encode("utf-8"):
            return ids
        return [] if self._greedy is None else self._greedy.greedy_tokenize(text)


def _vocabulary(
    tokenizer: Tokenizer | None, vocab_size: int, eos_ids: list[int]
) -> llguidance.LLTokenizer:
    tokens = None if tokenizer is None else token_bytes(tokenizer)
    if tokenizer is None or tokens is None:
        what = "a tokenizer.json" if tokenizer is None else "a vocabulary of texts"
        raise RequestError(f"structure needs {what}, which this model does not have", "structure")
    if not eos_ids:
        raise RequestError("structure needs an end-of-sequence token", "structure")
    try:
        from llguidance import LLTokenizer
    except ImportError:
        message = "structure needs llguidance, which is not installed"
        raise RequestError(message, "structure") from None
    wrapper: Any = _Vocabulary(tokenizer, tokens, eos_ids[0])
    size = max(vocab_size, len(tokens))
    made = LLTokenizer(wrapper, n_vocab=size, eos_token=eos_ids)
    wrapper.use_greedy(made)
    return made


def _named(name: str, kind: str, form: str) -> dict[str, Any]:
    """A form's grammar under a name for `@name`."""
    if kind == "grammar":
        return {"name": name, "lark_grammar": form}
    found: dict[str, Any] = json.loads(form)["grammars"][0]
    return {**found, "name": name}


def _limits() -> llguidance.LLParserLimits:
    """What a grammar may cost. Fuel counts nodes of expressions, of which about 50 (initial) or 14
    (step) are made in a microsecond."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=500_000,
        verbose_errors=False,
    )


def _refusal(structure: Structure, reason: str) -> RequestError:
    message = f"structure: the {structure.kind} cannot be used: {reason}"
    return RequestError(message, "structure")


def _reason(text: str) -> str:
    """An error of llguidance in one line of at most 300 characters.

    Below its first line comes the source; a regular expression's stands in front of the cause.
    """
    before, found, after = text.partition("regex parse error:\n")
    if found:
        pattern, _, cause = after.partition("\nerror: ")
        quoted = (
            "" if "invalid regex" in before else f" in {shown(pattern.splitlines()[0].strip())}"
        )
        text = f"{before}regex parse error{quoted}: {cause}"
    line = " ".join((text.splitlines() or ["no reason given"])[0].split())
    return line if len(line) <= 300 else f"{line[:145]} ... {line[-150:]}"


def _literal(text: str) -> str:
    """A regular expression for a text alone."""
    plain = (char.isascii() and char.isalnum() for char in text)
    return "".join(c if p else f"\\x{{{ord(c):X}}}" for c, p in zip(text, plain, strict=True))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
