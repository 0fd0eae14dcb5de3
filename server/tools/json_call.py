"""A call as a JSON object, `{"name": ..., "arguments": {...}}`, read character by character.

The scanner needs no complete object: it knows the name as soon as its string ends, and passes the
arguments on as they come.
"""

from __future__ import annotations

import json
from collections.abc import Collection

_SPACES = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_OTHERS = ("id", "type", "function")  # keys without meaning here that models write
KEYS = ("name", *_ARGUMENTS, *_OTHERS)
_PUNCTUATION = "{}[],:"
_SCALARS = set("0123456789+-.eEtrufalsn")  # of numbers, true, false and null


class ValueScanner:
    """Finds the end of one JSON value; it tracks strings and brackets, and checks nothing else."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = self._begun = False
        self.done = False
        self.failed = False  # a character came that JSON has outside of strings in no place

    def takes(self, char: str) -> bool:
        """Whether `char` belongs to the value; False with `done` set: it is what follows."""
        if self._in_string:
            return self._string(char)
        if char in _SPACES:
            self.done = self._begun and self._depth == 0
            return not self.done
        if self._depth == 0 and char in "}],:":
            self.done, self.failed = True, not self._begun
            return False
        if char not in _PUNCTUATION and char != '"' and char not in _SCALARS:
            self.done = self.failed = True
            return False
        self._begun = True
        self._in_string = char == '"'
        self._depth += (char in "{[") - (char in "}]")
        self.done = char in "}]" and self._depth == 0
        return True

    def _string(self, char: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            self.done = self._depth == 0
        return True


class CallScanner:
    """Reads one object; `name` is None until it is known.

    strict: a key that no call has makes it fail, so that other JSON is not taken for a call; so
    does a name that is not among `names`, if there are any.
    """

    def __init__(self, strict: bool = False, names: Collection[str] = ()) -> None:
        self.name: str | None = None
        self.done = False
        self.failed = False
        self._strict = strict
        self._names = names
        self._state = "start"  # start, key, in key, colon, value, next
        self._key = ""
        self._text = ""  # of the key or value that is being read
        self._value = ValueScanner()
        self._arguments = ""  # not fetched yet
        self._has_arguments = False
        self._decoder: StringDecoder | None = None

    def feed(self, text: str) -> int:
        """Reads on; how many characters were read: all, unless it is now `done` or `failed`."""
        for at, char in enumerate(text):
            self._take(char)
            if self.done or self.failed:
                return at + self.done
        return len(text)

    def _take(self, char: str) -> None:
        if self._state == "in key":
            self._take_key(char)
        elif self._state == "value" and self._take_value(char):
            return
        elif not self.failed and char not in _SPACES:
            self._take_structure(char)

    def fetch(self) -> str:
        """Arguments that are new since the last time; nothing before the name is known."""
        if self.name is None:
            return ""
        if self.done and not self._has_arguments:
            self._has_arguments = True
            return "{}"
        text, self._arguments = self._arguments, ""
        return text

    def _take_structure(self, char: str) -> None:
        state = self._state
        if state == "start" and char == "{":
            self._state = "key"
        elif state == "key" and char == '"':
            self._state, self._text = "in key", '"'
        elif state == "colon" and char == ":":
            self._state, self._text, self._value = "value", "", ValueScanner()
            self._decoder = None
        elif state == "next" and char == ",":
            self._state = "key"
        elif state in ("key", "next") and char == "}":
            self.done, self.failed = self.name is not None, self.name is None
        else:
            self.failed = True

    def _take_key(self, char: str) -> None:
        self._text += char
        if char != '"' or self._text.endswith('\\"'):
            return
        self._key, self._state = self._text[1:-1], "colon"
        unnamed = self._strict and self.name is None
        strange = unnamed and self._key not in KEYS
        again = self._key == "name" and self.name is not None
        again = again or (self._key in _ARGUMENTS and self._has_arguments)
        self.failed = strange or again

    def _take_value(self, char: str) -> bool:
        """Whether the character was part of the value or of the spaces before it."""
        begun = bool(self._text)
        if not begun and char in _SPACES:
            return True
        taken = self._value.takes(char)
        if taken:
            self._text += char
            if self._key in _ARGUMENTS:
                self._take_argument(char, first=not begun)
        if self._value.done:
            self._end_value()
        return taken

    def _take_argument(self, char: str, first: bool) -> None:
        if first:
            self._has_arguments = True
            self._decoder = StringDecoder() if char == '"' else None
            if char in _SCALARS:  # null: none
                self._has_arguments = False
        if self._decoder is not None:
            self._arguments += self._decoder.take(char)
        elif self._has_arguments:
            self._arguments += char

    def _end_value(self) -> None:
        self.failed = self._value.failed
        self._state = "next"
        if self._key == "name":
            try:
                found = json.loads(self._text)
            except ValueError:
                found = None
            allowed = not self._strict or not self._names or found in self._names
            self.name = found if isinstance(found, str) and found and allowed else None
            self.failed = self.failed or self.name is None


class StringDecoder:
    """A JSON string, decoded as it comes: some models write arguments as JSON within JSON."""

    def __init__(self) -> None:
        self._pending = ""

    def take(self, char: str) -> str:
        """The decoded text of the characters that this one completes."""
        if not self._pending and char == '"':
            return ""  # it opens or closes the string
        self._pending += char
        if self._pending[0] != "\\":
            text, self._pending = self._pending, ""
            return text
        try:
            text = json.loads(f'"{self._pending}"')
        except ValueError:
            if len(self._pending) >= 12:  # no escape is that long
                self._pending = ""
            return ""
        if "\ud800" <= text <= "\udbff" and len(self._pending) < 12:
            return ""  # the first half of a pair
        self._pending = ""
        return str(text)
