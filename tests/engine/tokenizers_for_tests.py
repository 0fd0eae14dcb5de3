"""Small tokenizers of the kinds that checkpoints bring, built on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from saccade.engine.detokenizer import byte_level_alphabet
from saccade.engine.tokenizer import Tokenizer
from saccade.engine.tokenizer_files import TokenizerFiles

SPECIAL = ["<s>", "</s>", "<pad>"]


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2 style: bytes as letters, a few merges, BOS added by the post-processor."""
    vocab = byte_level_alphabet()
    merges = [("h", "e"), ("l", "l"), ("Ġ", "w"), ("ä", "\u00b8"), ("ĠĠ", "ĠĠ")]
    vocab |= {"ĠĠ": 256}
    merges.insert(0, ("Ġ", "Ġ"))
    vocab |= {left + right: 256 + number for number, (left, right) in enumerate(merges)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _with_bos(backend)


def sentencepiece_bpe() -> tokenizers.Tokenizer:
    """Llama 2 style: spaces as U+2581, bytes as a fallback, one leading space stripped."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    pieces = ["▁", "▁▁", "a", "b", "c", "▁a", "ab", "▁hello", "é", "中", "x"]
    vocab |= {piece: 256 + number for number, piece in enumerate(pieces)}
    merges = [("▁", "▁"), ("▁", "a"), ("a", "b")]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _with_bos(backend)


def unigram() -> tokenizers.Tokenizer:
    """T5 style: Unigram with a Metaspace decoder."""
    pieces = ["<unk>", "▁", "a", "b", "▁a", "▁ab", "中", "▁▁", "é"]
    scores = [(piece, -float(rank)) for rank, piece in enumerate(pieces)]
    backend = tokenizers.Tokenizer(models.Unigram(scores, 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _with_bos(backend)


def wordpiece() -> tokenizers.Tokenizer:
    """BERT style."""
    pieces = ["[UNK]", "a", "b", "##b", "##c", ".", "n't", "'", "s", "do", "##a"]
    backend = tokenizers.Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _with_bos(backend)


def word_ends() -> tokenizers.Tokenizer:
    """CLIP style: the last piece of a text decodes differently, so nothing is certain early."""
    pieces = ["a", "b", "a</w>", "b</w>", "ab</w>"]
    backend = tokenizers.Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, []))
    backend.decoder = decoders.BPEDecoder("</w>")
    return _with_bos(backend)


KINDS = {
    "byte_level": byte_level,
    "sentencepiece_bpe": sentencepiece_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "word_ends": word_ends,
}


def _with_bos(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens(["<é>", "<tool中>"])
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bos)])
    return backend


def tokenizer(kind: str) -> Tokenizer:
    """A Tokenizer of one of KINDS."""
    return Tokenizer(TokenizerFiles(KINDS[kind](), {"bos_token": "<s>", "eos_token": "</s>"}))


def save(folder: Path, backend: tokenizers.Tokenizer, config: dict[str, Any] | None) -> Path:
    """Writes a checkpoint's tokenizer files; no tokenizer_config.json for None."""
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
