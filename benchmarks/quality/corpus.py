"""The text of the demo checkpoint: the standard library's sources, and a tokenizer made from them.

The sources are read from the running Python (PSF licence). A file is held out by a hash of its
relative path, so the split is the same on every machine with the same Python version.
"""

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
VOCAB_SIZE = 3072
HELD_OUT_ONE_IN = 25
MAX_FILE_BYTES = 400_000
_SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__", "encodings"})
_SKIPPED_NAMES = ("cjk", "bad", "badsyntax", "latin", "unicode_")


def source_files(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield (relative path, text) of the library's UTF-8 Python sources, in order of path.

    Tables of character sets, generated data and files above 400 kB are left out.
    """
    base = root or Path(sysconfig.get_path("stdlib"))
    for path in sorted(base.rglob("*.py")):
        relative = path.relative_to(base)
        if _SKIPPED_FOLDERS & set(relative.parts) or path.stat().st_size > MAX_FILE_BYTES:
            continue
        if any(part in path.name for part in _SKIPPED_NAMES):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield relative.as_posix(), text


def is_held_out(relative: str) -> bool:
    """Tell whether a file is kept from training: one in 25, by the hash of its path."""
    digest = hashlib.sha256(relative.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def split(files: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Divide (path, text) pairs into training files and held-out files."""
    kept = [item for item in files if not is_held_out(item[0])]
    return kept, [item for item in files if is_held_out(item[0])]


def is_test(relative: str) -> bool:
    """Tell whether a file is a test of the library: read less often in training."""
    return "test" in relative.split("/")[0] or "/test" in relative


def train_tokenizer(texts: Sequence[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Make a byte-level BPE: lossless on any UTF-8, every digit a token, a BOS added in front."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return tokenizer
