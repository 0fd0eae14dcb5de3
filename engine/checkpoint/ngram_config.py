"""Qwen4-Exp's n-gram embeddings in config.json, and the hashes that they imply.

ple_layer_ids: layers, counted from one. ngram_size: tokens of the longest n-gram. heads_per_ngram:
hashes of each. ngram_vocab_size_base: every hash has a prime number of rows of its own, this many
or more. make_ngram_vocab_size_divisible_by, split_ngram_parts: how the table is padded and split.
ple_embed_dim, ple_conv_kernel_size: channels of all hashes, taps. seed: of the hashes' multipliers.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

from .features import NgramEmbedding
from .json_object import Fields

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # the step of splitmix64 (Steele et al. 2014), and its two factors
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_LAYER_STEP = 10007  # between the seeds of two layers


def read_ngrams(config: Fields, recurrent: frozenset[int]) -> NgramEmbedding | None:
    """CheckpointError for layers that are not recurrent, or sizes that do not fit each other."""
    listed = config.values.get("ple_layer_ids") or []
    if not isinstance(listed, list) or any(type(each) is not int for each in listed):
        raise config.error("ple_layer_ids", f"expected a list of layers, found {listed!r:.80}")
    layers = tuple(sorted({each - 1 for each in listed}))
    if not layers:
        return None
    if not recurrent.issuperset(layers):
        message = "expected layers of linear_attention alone, counted from 1"
        raise config.error("ple_layer_ids", message)
    tokens = config.integer("ngram_size", 3, least=2, most=16)
    heads = config.integer("heads_per_ngram", 8, most=1 << 10)
    dim = config.integer("ple_embed_dim", config.integer("hidden_size"))
    hashes = heads * (tokens - 1)
    if dim % hashes:
        raise config.error("ple_embed_dim", f"expected a multiple of {hashes}, found {dim}")
    taps = config.integer("ple_conv_kernel_size", 4, most=16)
    primes = _primes(config.integer("ngram_vocab_size_base", 20_000_000))
    sizes = tuple(tuple(next(primes) for _ in range(hashes)) for _ in layers)
    unit = config.integer("make_ngram_vocab_size_divisible_by", 128)
    seed, vocabulary = config.integer("seed", 1234, least=0), config.integer("vocab_size")
    return NgramEmbedding(
        layers=layers,
        tokens=tokens,
        heads=heads,
        sizes=sizes,
        rows=tuple(-(-sum(each) // unit) * unit for each in sizes),
        multipliers=tuple(
            _multipliers(vocabulary, tokens, seed + _LAYER_STEP * i) for i in range(len(layers))
        ),
        dim=dim,
        taps=taps,
        end=_end(config, vocabulary),
        parts=config.integer("split_ngram_parts", 512),
    )


def _end(config: Fields, vocabulary: int) -> int:
    value = config.values.get("eos_token_id")
    first = value[0] if isinstance(value, list) and value else value
    if type(first) is not int or not 0 <= first < vocabulary:
        raise config.error("eos_token_id", "missing: no n-gram reaches across this token")
    return first


def _primes(least: int) -> Iterator[int]:
    """Primes from `least` on."""
    number = max(least, 2)
    while True:
        if number == 2 or (number % 2 and all(number % d for d in range(3, isqrt(number) + 1, 2))):
            yield number
        number += 1


def _multipliers(vocabulary: int, count: int, seed: int) -> tuple[int, ...]:
    """Odd numbers whose products with tokens stay within 63 bits, by splitmix64."""
    half = max(1, ((1 << 63) - 1) // max(vocabulary, 1) // 2)
    found = []
    for i in range(1, count + 1):
        x = (seed + _GOLDEN * (i + 1)) & _WORD
        x = ((x ^ (x >> 30)) * _FACTORS[0]) & _WORD
        x = ((x ^ (x >> 27)) * _FACTORS[1]) & _WORD
        found.append(2 * ((x ^ (x >> 31)) % half) + 1)
    return tuple(found)
