"""Grammars in GBNF, as llama.cpp and vLLM's documentation write them, to llguidance's Lark.

A rule is `name ::= ...`, the first one to be followed is `root`. llguidance has a converter of its
own, whose time grows with the square of the rules, and which misreads escapes of characters.

For llguidance a text is made of words, each of them the longest that fits. What does not refer to
itself becomes one word as far as it reaches: a whole grammar, a rule, or a part of a rule.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from .errors import RequestError

_HEAD = re.compile(r"^[ \t]*[A-Za-z_][\w-]*[ \t]*::=", re.MULTILINE)
_LARK = re.compile(r"^[ \t]*start[ \t]*:(?!:)", re.MULTILINE)
_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<head>[A-Za-z_][\w-]*)\s*::=
    |(?P<name>[A-Za-z_][\w-]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<set>\[(?:[^\]\\\n]|\\.)*\])
    |(?P<any>\.)
    |(?P<times>[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})
    |(?P<open>\()|(?P<close>\))|(?P<bar>\|)""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.S)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}
_SHOWN = 20
_MAX_DEPTH = 64


@dataclass
class _Rule:
    """parts: of its right side in Lark; a reference is a tuple of its name, and of its line."""

    name: str
    line: int
    parts: list[str | tuple[str, int]] = field(default_factory=list)
    depth: int = 0
    last: str = "bar"

    @property
    def wants(self) -> bool:
        """Whether an alternative has only begun."""
        return self.last in ("bar", "open")

    @property
    def uses(self) -> set[str]:
        """The rules that it refers to."""
        return {part[0] for part in self.parts if isinstance(part, tuple)}


def as_lark(text: str) -> str:
    """A grammar in Lark: itself, unless it has rules with `::=` and no Lark rule `start`.

    RequestError, with the line, where such a grammar cannot be read.
    """
    if _HEAD.search(text) is None or _LARK.search(text) is not None:
        return text
    rules = _read(text)
    if "root" not in rules:
        raise _wrong(1, "a grammar with `::=` begins at a rule `root`, and there is none")
    words = _words(rules)
    names = _names(rules, words)
    lines = [f"start: {names['root']}"]
    for rule in rules.values():
        name = names[rule.name]
        side = _Side(name)
        for part in rule.parts:
            if isinstance(part, str):
                side.add(part)
            else:
                side.add(names[part[0]], part[0] in words)
        lines += [f"{name}: {side.end()}", *side.words]
    return "\n".join(lines)


class _Side:
    """The right side of a rule; neighbours that do not refer to it become words."""

    def __init__(self, name: str) -> None:
        self.words: list[str] = []
        self._name = name.upper()
        # Of each open parenthesis: alternatives, each with (is a word, its text) in a row.
        self._open: list[list[list[tuple[bool, str]]]] = [[[]]]

    def add(self, part: str, is_word: bool = True) -> None:
        """The next part from the left."""
        row = self._open[-1][-1]
        if part == "(":
            self._open.append([[]])
        elif part == "|":
            self._open[-1].append([])
        elif part == ")":
            whole, inside = self._joined(self._open.pop())
            self._open[-1][-1].append((whole, f"({inside})"))
        elif part[0] in "*+?{":
            row[-1] = (row[-1][0], row[-1][1] + part)
        else:
            row.append((is_word, part))

    def end(self) -> str:
        """The whole side in Lark."""
        return self._joined(self._open[-1])[1]

    def _joined(self, rows: list[list[tuple[bool, str]]]) -> tuple[bool, str]:
        """Whether these alternatives are a word in all, and their text."""
        whole = all(is_word for row in rows for is_word, _ in row)
        parts = ((text for _, text in row) if whole else self._merged(row) for row in rows)
        return whole, " | ".join(" ".join(row) for row in parts)

    def _merged(self, row: list[tuple[bool, str]]) -> Iterator[str]:
        for is_word, group in groupby(row, key=lambda part: part[0]):
            texts = [text for _, text in group]
            if is_word and (len(texts) > 1 or not texts[0].isidentifier()):
                word = f"{self._name}__{len(self.words)}"
                self.words.append(f"{word}: {' '.join(texts)}")
                texts = [word]
            yield from texts


def _read(text: str) -> dict[str, _Rule]:
    rules: dict[str, _Rule] = {}
    rule: _Rule | None = None
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or (rule is None and found.lastgroup not in ("head", "space")):
            what = "a rule `name ::= ...`" if rule is None else "a part of a rule"
            raise _wrong(line, f"{what} is expected at {text[at : at + _SHOWN]!r}")
        kind = str(found.lastgroup)
        if kind == "head":
            if rule is not None:
                _end(rule, line)
            rule = _Rule(found["head"], line)
            if rules.setdefault(rule.name, rule) is not rule:
                raise _wrong(line, f"there are two rules {rule.name!r}")
        elif rule is not None and kind != "space":
            _add(rule, kind, found[0], line)
        line += text.count("\n", at, found.end())
        at = found.end()
    if rule is not None:
        _end(rule, line)
    for each in rules.values():
        for part in each.parts:
            if isinstance(part, tuple) and part[0] not in rules:
                raise _wrong(part[1], f"there is no rule {part[0]!r}")
    return rules


def _add(rule: _Rule, kind: str, token: str, line: int) -> None:
    """Appends a token of the right side."""
    if kind == "times" and (rule.wants or rule.last == "times"):
        raise _wrong(line, f"there is nothing for {token!r} to repeat")
    if kind in ("bar", "close") and rule.wants:
        rule.parts.append('""')
    rule.depth += (kind == "open") - (kind == "close")
    if not 0 <= rule.depth <= _MAX_DEPTH:
        what = "')' closes nothing" if rule.depth < 0 else "parentheses nest too deeply"
        raise _wrong(line, what)
    rule.last = kind
    if kind == "name":
        rule.parts.append((token, line))
    elif kind == "text":
        text = "".join(char for char, _ in _pieces(token[1:-1], line))
        rule.parts.append(json.dumps(text, ensure_ascii=False))
    elif kind == "set":
        rule.parts.append(_set(token[1:-1], line))
    elif kind == "times":
        rule.parts.append(re.sub(r"\s", "", token))
    else:
        rule.parts.append("/(?s:.)/" if kind == "any" else token)


def _end(rule: _Rule, line: int) -> None:
    if rule.depth:
        raise _wrong(line, f"a '(' of the rule {rule.name!r} is not closed")
    if rule.wants:
        rule.parts.append('""')


def _set(body: str, line: int) -> str:
    """A set of characters as a regular expression."""
    negated, body = body.startswith("^"), body.removeprefix("^")
    if not body:
        raise _wrong(line, "a set of characters is empty")
    found, pieces = "", _pieces(body, line)
    for index, (char, plain) in enumerate(pieces):
        between = plain and char == "-" and 0 < index < len(pieces) - 1
        found += "-" if between and not found.endswith("-") else f"\\x{{{ord(char):X}}}"
    return f"/[{'^' if negated else ''}{found}]/"


def _pieces(body: str, line: int) -> list[tuple[str, bool]]:
    """Characters behind their escapes, and whether each stands there plainly."""
    found = []
    for match in _ESCAPE.finditer(body):
        code = match[1] or match[2] or match[3]
        if code is not None:
            number = int(code, 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                raise _wrong(line, f"{match[0]} is no character")
            found.append((chr(number), False))
        elif match[4] is not None:
            if match[4].isalnum() and match[4] not in _LETTERS:
                raise _wrong(line, f"{match[0]} is no escape that is known")
            found.append((_LETTERS.get(match[4], match[4]), False))
        else:
            found.append((match[5], True))
    return found


def _words(rules: dict[str, _Rule]) -> set[str]:
    """Rules that do not refer to themselves, not even through others."""
    users: dict[str, list[str]] = {name: [] for name in rules}
    missing = Counter({name: len(rule.uses) for name, rule in rules.items()})
    for name, rule in rules.items():
        for used in rule.uses:
            users[used].append(name)
    ready = [name for name in rules if not missing[name]]
    found: set[str] = set()
    while ready:
        found.add(name := ready.pop())
        for user in users[name]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    return found


def _names(rules: dict[str, _Rule], words: set[str]) -> dict[str, str]:
    """Names as Lark has them: of words in capitals, of others in small letters, all different."""
    taken, names = {"start"}, {}
    for number, name in enumerate(rules):
        plain = re.sub(r"\W", "_", name.replace("-", "_"), flags=re.ASCII).strip("_") or "rule"
        plain = plain.upper() if name in words else plain.lower()
        if plain in taken or not plain[0].isalpha():
            plain = f"{'R' if name in words else 'r'}{number}_{plain}"
        while plain in taken:
            plain += "_"
        taken.add(plain)
        names[name] = plain
    return names


def _wrong(line: int, what: str) -> RequestError:
    message = f"structure: the grammar cannot be used: line {line}: {what}"
    return RequestError(message, "structure")
