"""`Structure`: the form that a completion's text must have, as data; engine/grammar.py compiles it.

Immutable, hashable, texts alone: it crosses processes as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from .checks import shown
from .errors import RequestError

Kind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]

MAX_CHARS = 128 * 1024
MAX_DEPTH = 64
MAX_CHOICES = 1024


@dataclass(frozen=True)
class Structure:
    """What a completion must be, from its first character to its last.

    kind and text: "json_object" (no text), "json_schema" (a JSON schema), "regex" (without look-
    around), "choice" (a JSON list of texts), "grammar" (as `grammar` reads it). markers: of a
    grammar: texts that may be single special tokens of the vocabulary; rule `mark_0` stands for the
    first of them, as token or as text, and so on; `upto_0` for any text that ends with it, and
    `rest` for any text without those that the grammar looks for in this way. otherwise: another
    form that will do as well. after: a marker behind which the form begins; before it the text is
    free, such as reasoning. opening: a marker with which that free part begins, if there is one at
    all; "": there is one, and it is open already.

    Use the constructors below. Raises RequestError for what is malformed or beyond the bounds
    (MAX_CHARS, MAX_DEPTH of a schema, MAX_CHOICES); whether it compiles is found out at the
    engine's door.
    """

    kind: Kind
    text: str = ""
    markers: tuple[str, ...] = ()
    after: str = ""
    opening: str = ""
    otherwise: Structure | None = None

    def __post_init__(self) -> None:
        self.check()

    @classmethod
    def json_object(cls) -> Structure:
        """Any JSON object."""
        return cls("json_object")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Structure:
        """JSON that a schema accepts; keys come in the order in which the schema lists them."""
        return cls("json_schema", schema if isinstance(schema, str) else _as_json(schema))

    @classmethod
    def regex(cls, pattern: str) -> Structure:
        """Text that a regular expression matches as a whole."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Structure:
        """One of several texts. RequestError for too many of them."""
        if isinstance(choices, list | tuple) and len(choices) > MAX_CHOICES:
            raise _bad_choices()  # before millions of them are written out
        return cls("choice", _as_json(list(choices) if isinstance(choices, tuple) else choices))

    @classmethod
    def grammar(cls, lark: str, markers: Sequence[str] = ()) -> Structure:
        """Text of a grammar in Lark, as llguidance reads it, which begins at its rule `start`; or
        in GBNF, whose rules are written `name ::= ...`, and which begins at `root`.
        """
        return cls("grammar", lark, tuple(markers))

    def behind(self, marker: str, opening: str = "") -> Structure:
        """This form behind free text that ends with `marker`; opening: as above."""
        return replace(self, after=marker, opening=opening)

    def check(self) -> None:
        """The validator; RequestError for the first fault."""
        if self.kind not in get_args(Kind):
            kinds = ", ".join(get_args(Kind))
            raise _refusal(f"kind must be one of {kinds}, got {shown(self.kind)}")
        for text in (self.text, *self.markers, self.after, self.opening):
            _check_text(self.kind, text)
        if self.kind != "json_object" and not self.text:
            raise _refusal(f"{self.kind} must not be empty")
        if self.kind == "json_schema":
            _check_schema(self.text)
        elif self.kind == "choice":
            self.choices  # noqa: B018 - it checks itself
        if self.otherwise is not None:
            self.otherwise.check()

    @property
    def choices(self) -> list[str]:
        """The texts to choose from."""
        found = _parsed(self.kind, self.text)
        texts = isinstance(found, list) and all(isinstance(each, str) and each for each in found)
        if not texts or not 0 < len(found) <= MAX_CHOICES:
            raise _bad_choices()
        return list(found)


def _refusal(message: str) -> RequestError:
    return RequestError(f"structure: {message}", "structure")


def _bad_choices() -> RequestError:
    return _refusal(f"choice must be a list of 1 to {MAX_CHOICES} texts, none of them empty")


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise _refusal(f"not a JSON value: {shown(value)}") from None


def _check_text(kind: str, text: Any) -> None:
    if not isinstance(text, str):
        raise _refusal(f"{kind} must be a text, got {shown(text)}")
    if len(text) > MAX_CHARS:
        raise _refusal(f"{kind} must hold at most {MAX_CHARS} characters, got {len(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"{kind} is not valid Unicode: lone surrogate at character {error.start}"
        raise _refusal(message) from None


def _parsed(kind: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"{kind} is not JSON: {error!s:.100}") from None


def _check_schema(text: str) -> None:
    schema = _parsed("json_schema", text)
    if not isinstance(schema, dict):
        raise _refusal(f"json_schema must be an object, got {shown(schema)}")
    layer: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        layer = [inner for value in layer for inner in _inside(value)]
        if not layer:
            return
    raise _refusal(f"json_schema must nest at most {MAX_DEPTH} levels deep")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
