"""Stop strings in a growing text: found across every border, and never shown half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StopStep:
    """text: what may be shown now; matched: the stop string that ended the text, if any did."""

    text: str
    matched: str | None = None


class StopChecker:
    """Watches a text that arrives in pieces for the first stop string to be completed.

    The first match is the one that ends first; of several that end together, the longest. So the
    result depends on the text only, not on how it was cut into pieces, and needs no look-ahead. The
    text ends before the match, or after it with `include`. A tail that may still become a stop
    string is held back; all texts given out, joined, are the final text.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._matchers = [_Matcher(stop) for stop in stops if stop]
        self._include = include
        self._held = ""
        self._matched: str | None = None

    def push(self, delta: str, honour: bool = True) -> StopStep:
        """Takes the next piece of text. After a match nothing more comes out.

        honour=False (before min_tokens): a stop string that is completed here does not count; one
        that merely begins here still can be completed later.
        """
        if self._matched is not None:
            return StopStep("", self._matched)
        if not self._matchers:
            return StopStep(delta)
        text = self._held + delta
        for position, letter in enumerate(delta, start=len(self._held) + 1):
            complete = self._advance(letter)
            if complete and honour:
                return self._end(text, position, max(complete, key=len))
        keep = len(text) - max(matcher.length for matcher in self._matchers)
        self._held = text[keep:]
        return StopStep(text[:keep])

    def flush(self) -> str:
        """The held-back tail, at the end of a text that ended for another reason."""
        held, self._held = self._held, ""
        return held

    def _advance(self, letter: str) -> list[str]:
        return [matcher.stop for matcher in self._matchers if matcher.advance(letter)]

    def _end(self, text: str, position: int, stop: str) -> StopStep:
        self._held, self._matched = "", stop
        return StopStep(text[: position if self._include else position - len(stop)], stop)


class _Matcher:
    """Knuth-Morris-Pratt for one string: O(1) amortised per character."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0  # of the longest proper prefix of `stop` that the text so far ends with
        self._borders = _borders(stop)

    def advance(self, letter: str) -> bool:
        """Takes one character; True when the text now ends with the stop string."""
        while self.length and self.stop[self.length] != letter:
            self.length = self._borders[self.length - 1]
        if self.stop[self.length] == letter:
            self.length += 1
        if self.length < len(self.stop):
            return False
        self.length = self._borders[-1]
        return True


def _borders(pattern: str) -> list[int]:
    """For each prefix of `pattern`: how long its longest proper prefix is that is a suffix too."""
    borders = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = borders[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        borders[index] = length
    return borders
