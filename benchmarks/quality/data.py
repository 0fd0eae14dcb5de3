"""Training samples: windows of source code, and three kinds of synthetic long-range retrieval.

A sample is text with the character spans of its answers; everything is a function of the given
`random.Random`. `encode` turns it into token ids and two masks (answers, ordinary text).
"""

import itertools
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

CHARS_PER_TOKEN = 2.9
_WORDS = (
    "amber anchor apple arrow autumn basket beacon birch bridge bronze candle canyon cedar cherry "
    "cloud cobalt copper coral crystal delta desert eagle ember falcon fern forest garden garnet "
    "glacier granite harbor hazel honey indigo island ivory jade jasmine juniper lagoon lantern "
    "laurel lemon lily lotus maple marble meadow mint moss nectar north oak ocean olive onyx opal "
    "orchid otter pearl pebble pepper pine plum poppy prairie quartz raven reef ridge river robin "
    "rose ruby saffron sage sierra silver sparrow spring summit thistle tiger timber topaz tulip "
    "valley velvet violet walnut willow winter wolf zephyr"
).split()
_PEOPLE = (
    "Alice Bob Carol David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nina Oscar".split()
)
_SECRETS = ("pass key", "passkey", "magic number", "secret code", "access code", "password")
_SENTENCES = (
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.",
    "There and back again.", "The river runs slowly to the sea.", "It rained for most of the day.",
    "A small boat crossed the lake.", "The road goes over the hill.", "Birds were singing early.",
    "The bread is still warm.", "Nobody was in a hurry.", "The train left on time.",
    "Snow fell during the night.", "The garden needs water.", "A dog slept near the door.",
)  # fmt: skip


@dataclass
class Sample:
    """Text, the spans [start, end) of its answers in characters, and whether to learn the rest."""

    text: str = ""
    answers: list[tuple[int, int]] = field(default_factory=list)
    natural: bool = True

    def add(self, text: str) -> None:
        """Append text."""
        self.text += text

    def answer(self, text: str) -> None:
        """Append text that must be found further up."""
        self.answers.append((len(self.text), len(self.text) + len(text)))
        self.text += text


def digits(rng: random.Random, least: int = 4, most: int = 7) -> str:
    """A number without a leading zero."""
    return str(rng.randrange(10 ** (least - 1), 10 ** rng.randint(least, most)))


def secret_value(rng: random.Random) -> str:
    """The value of a look-up: mostly digits, else letters, hexadecimal or words."""
    kind = rng.random()
    if kind < 0.5:
        return digits(rng)
    if kind < 0.6:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 8)))
    if kind < 0.7:
        return "".join(rng.choices("0123456789abcdef", k=rng.randint(6, 10)))
    return "-".join(rng.sample(_WORDS, 2))


def identifier(rng: random.Random) -> str:
    """A key of a look-up."""
    kind = rng.random()
    if kind < 0.4:
        return "_".join(rng.sample(_WORDS, 2))
    if kind < 0.7:
        return f"{rng.choice(_WORDS)}_{rng.randrange(100)}"
    return rng.choice(_WORDS)


def neutral_text(rng: random.Random, chars: int) -> str:
    """Plain sentences, sometimes the same few again and again, of about `chars` characters."""
    pool = list(_SENTENCES[:5]) if rng.random() < 0.5 else rng.sample(_SENTENCES, 10)
    parts: list[str] = []
    size = 0
    while size < chars:
        sentence = pool[len(parts) % 5] if len(pool) == 5 else rng.choice(pool)
        parts.append(sentence + ("\n" if rng.random() < 0.15 else " "))
        size += len(parts[-1])
    return "".join(parts).rstrip() + "\n"


def code_text(rng: random.Random, corpus: str, chars: int) -> str:
    """Whole lines of the corpus from a random place, about `chars` characters."""
    start = rng.randrange(max(1, len(corpus) - chars - 1))
    begin = corpus.find("\n", start) + 1
    end = corpus.find("\n", min(begin + chars, len(corpus) - 1))
    return corpus[begin : end + 1 if end >= 0 else len(corpus)]


def lookup(rng: random.Random, chars: int) -> Sample:
    """Assignments, then questions about them in another order: dense supervision for retrieval."""
    sample = Sample(natural=False)
    assign, ask = rng.choice(
        [
            ("{} = ", "# {} = "), ("{}: ", "{}: "), ("config['{}'] = ", "# config['{}'] = "),
            ("The value of {} is ", "The value of {} is "), ("    '{}': ", ">>> table['{}'] -> "),
        ]
    )  # fmt: skip
    count = max(2, int(chars / 45 * rng.uniform(0.3, 0.6)))
    table = {identifier(rng): secret_value(rng) for _ in range(count)}
    for key, value in table.items():
        sample.add(assign.format(key) + value + "\n")
    sample.add("\n")
    keys = list(table)
    while len(sample.text) < chars:
        key = rng.choice(keys)
        sample.add(ask.format(key).rstrip())
        sample.answer(" " + table[key])
        sample.add("\n")
    return sample


def needle(name: str, owner: str, value: str, prefix: str, rng: random.Random) -> str:
    """The line that hides a secret."""
    what = f"{name} for {owner}" if owner else name
    tail = rng.choice(["", " Remember it.", f" Remember it. {value} is the {what}."])
    return f"{prefix}The {what} is {value}.{tail}\n"


def question(name: str, owner: str, prefix: str, rng: random.Random) -> str:
    """The line that asks for a secret; the answer follows, with a space in front."""
    what = f"{name} for {owner}" if owner else name
    lead = rng.choice([f"What is the {what}? ", f"What is the {what}? ", ""])
    return f"{prefix}{lead}The {what} is"


def passkey(rng: random.Random, corpus: str, chars: int, secrets: int) -> Sample:
    """Secrets hidden in code or plain sentences, asked for in the last part of the text.

    The text goes on after the last answer, to about `chars` characters.
    """
    sample = Sample()
    prefix = rng.choice(["# ", "# ", ""])
    plain = rng.random() < 0.3
    name = rng.choice(_SECRETS[:2]) if rng.random() < 0.7 else rng.choice(_SECRETS)
    owners = ["", *rng.sample(_PEOPLE + _WORDS, secrets - 1)]
    rng.shuffle(owners)
    values = [digits(rng, 5, 5) if rng.random() < 0.6 else digits(rng, 4, 8) for _ in owners]
    places = sorted(rng.random() * 0.75 for _ in owners)
    asked = sorted(0.78 + rng.random() * 0.15 for _ in owners)
    order = rng.sample(range(secrets), secrets)

    def fill(until: float) -> None:
        size = int(until * chars) - len(sample.text)
        if size > 20:
            sample.add(neutral_text(rng, size) if plain else code_text(rng, corpus, size))

    for place, owner, value in zip(places, owners, values, strict=True):
        fill(place)
        sample.add(needle(name, owner, value, prefix, rng))
    for place, index in zip(asked, order, strict=True):
        fill(place)
        sample.add(question(name, owners[index], prefix, rng))
        sample.answer(" " + values[index])
        sample.add(".\n")
    fill(1.0)
    return sample


def encode(
    sample: Sample, tokenizer: Tokenizer, length: int
) -> tuple[list[int], list[bool], list[bool]]:
    """Token ids, answer mask and text mask of a sample, at most `length` long."""
    encoded = tokenizer.encode(sample.text)
    ids = encoded.ids[:length]
    answers = [False] * len(ids)
    spans = iter(sample.answers)
    span = next(spans, None)
    for index, (start, end) in enumerate(encoded.offsets[:length]):
        while span and start >= span[1]:
            span = next(spans, None)
        answers[index] = bool(span and end > start and start >= span[0] and end <= span[1])
    return ids, answers, [sample.natural and not answer for answer in answers]


def repeats(
    rng: random.Random, vocab: int, first: int, length: int
) -> tuple[list[int], list[bool], list[bool]]:
    """A random string of tokens, said again and again: the exercise that makes induction heads."""
    period = rng.randint(8, max(9, length // 3))
    base = [rng.randrange(first, vocab) for _ in range(period)]
    ids: list[int] = []
    answers: list[bool] = []
    while len(ids) < length:
        start = rng.randrange(period - 4) if ids else 0
        piece = base[start:] if ids else base
        answers += [bool(ids) and index > 0 for index in range(len(piece))]
        ids += piece
    return ids[:length], answers[:length], [False] * length


def skipped_positions(rng: random.Random, length: int, limit: int) -> list[int]:
    """Ascending positions below `limit` with a few random gaps: short samples see far distances."""
    cuts = sorted(rng.sample(range(1, length), min(rng.randint(1, 4), length - 1)))
    room = limit - length
    gaps = sorted(rng.random() ** 2 * room for _ in cuts)
    positions: list[int] = []
    bounds: Sequence[int] = [0, *cuts, length]
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        shift = int(gaps[index - 1]) if index else 0
        positions += range(start + shift, end + shift)
    return positions
