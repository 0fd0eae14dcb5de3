"""From the engine's pieces to the choices of a completion: text, log-probabilities, finish."""

from __future__ import annotations

from collections.abc import Sequence

from .offsets import Offsets
from .protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob
from .protocol.completions import TextLogprobs
from .protocol.replies import PromptLogprob, PromptLogprobs
from .tokens import TokenTexts, finite
from .wire import LogprobEntry

Position = list[LogprobEntry]  # the alternatives at one place, by rank, the chosen one among them


class TextLogprobBuilder:
    """OpenAI's parallel lists for one choice of /v1/completions, made piece by piece."""

    def __init__(
        self,
        texts: TokenTexts,
        count: int,
        prompt_ids: Sequence[int],
        skip_special_tokens: bool,
        as_ids: bool | None = False,
    ) -> None:
        """count: alternatives per token that were asked for; as_ids: tokens are called by their
        numbers; the rest as the choice was made.
        """
        self._texts = texts
        self._name = texts.names(as_ids)
        self._count = count
        self._skips = skip_special_tokens
        self._offsets = Offsets(texts, prompt_ids, skip_special_tokens)

    def echo(
        self,
        tokens: Sequence[int],
        positions: Sequence[Position | None],
        text: str,
        written: str | None,
    ) -> TextLogprobs:
        """The lists of the prompt, whose text comes before the completion's.

        written: the text that these tokens were made of, None if `text` was made of them.
        """
        self._offsets.begin_at(len(text))
        return self._build(Offsets(self._texts, (), self._skips, written), tokens, positions)

    def build(self, tokens: Sequence[int], positions: Sequence[Position | None]) -> TextLogprobs:
        """The lists for the completion's next tokens."""
        return self._build(self._offsets, tokens, positions)

    def _build(
        self, offsets: Offsets, tokens: Sequence[int], positions: Sequence[Position | None]
    ) -> TextLogprobs:
        """None where a token has no log-probability."""
        built = TextLogprobs([], [], [], [])
        for token, position in zip(tokens, positions, strict=True):
            own = next((entry[1] for entry in position or () if entry[0] == token), None)
            built.text_offset.append(offsets.take(token))
            built.tokens.append(self._name(token))
            built.token_logprobs.append(None if own is None else finite(own))
            built.top_logprobs.append(None if position is None else self._top(position))
        return built

    def _top(self, position: Position) -> dict[str, float]:
        top: dict[str, float] = {}
        for token, logprob, _ in position:  # by rank: of two with the same text the likelier stays
            top.setdefault(self._name(token), finite(logprob))
        return top


def extend(lists: TextLogprobs, more: TextLogprobs) -> None:
    """Appends what comes next."""
    for name in TextLogprobs.__struct_fields__:
        getattr(lists, name).extend(getattr(more, name))


def clamp(lists: TextLogprobs, length: int) -> None:
    """Moves tokens that a stop string has cut off to the end of a text of so many characters."""
    lists.text_offset = [min(offset, length) for offset in lists.text_offset]


def prompt_logprobs(texts: TokenTexts, positions: Sequence[Position | None]) -> PromptLogprobs:
    """A prompt's log-probabilities as vLLM writes them."""
    return [
        None
        if position is None
        else {
            str(token): PromptLogprob(finite(logprob), rank, texts.text_of(token))
            for token, logprob, rank in position
        }
        for position in positions
    ]


def chat_logprobs(
    texts: TokenTexts,
    tokens: Sequence[int],
    positions: Sequence[Position],
    count: int,
    as_ids: bool | None = False,
) -> ChatLogprobs:
    """Log-probabilities of these tokens, each with the `count` likeliest of its place.

    as_ids: tokens are called by their numbers; their bytes are those of their texts all the same.
    """
    name, content = texts.names(as_ids), []
    for token, position in zip(tokens, positions, strict=True):
        own = next(logprob for each, logprob, _ in position if each == token)
        top = [
            TopLogprob(name(each), finite(logprob), list(texts.bytes_of(each)))
            for each, logprob, rank in position
            if rank <= count
        ]
        content.append(TokenLogprob(name(token), finite(own), list(texts.bytes_of(token)), top))
    return ChatLogprobs(content)
