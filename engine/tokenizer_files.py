"""Reading a checkpoint's tokenizer files: tokenizer.json, tokenizer_config.json, chat templates.

tokenizer.json's post-processor alone decides which special tokens `encode` adds: `add_bos_token`
and its like in tokenizer_config.json are history and have no effect, as in transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from .checkpoint.files import read_small
from .checkpoint.json_object import Fields, parse_object
from .errors import CheckpointError

MODEL_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"  # a folder of <name>.jinja
MODEL_BYTES = 256 << 20
CONFIG_BYTES = 16 << 20
TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files say: the tokenizer, named special tokens, raw chat templates by name."""

    backend: tokenizers.Tokenizer
    named_tokens: Mapping[str, str] = field(default_factory=dict)  # "bos_token" -> "<s>" ...
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # "default" -> jinja source


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads a checkpoint folder; CheckpointError naming the file that is missing or broken."""
    backend = _read_backend(folder / MODEL_FILE)
    config = _read_config(folder / CONFIG_FILE)
    _add_missing_tokens(backend, config)
    return TokenizerFiles(backend, _named_tokens(config), _chat_templates(folder, config))


def read_chat_files(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(named special tokens, chat templates by name) of a checkpoint, without its vocabulary.

    Both are empty where the checkpoint has none; CheckpointError for a broken file.
    """
    config = _read_config(folder / CONFIG_FILE)
    return _named_tokens(config), _chat_templates(folder, config)


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    content = read_small(path, MODEL_BYTES)
    try:
        backend = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # noqa: BLE001 - the library raises the bare class
        raise CheckpointError(f"{path}: not a tokenizer: {error!s:.200}") from None
    # A saved length limit or padding belongs to training; here it would silently change prompts.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_config(path: Path) -> Fields:
    if not path.exists():
        return Fields({}, str(path))
    return Fields(parse_object(read_small(path, CONFIG_BYTES), str(path)), str(path))


def _named_tokens(config: Fields) -> dict[str, str]:
    return {key: _content(config, key) for key in config.values if _names_token(config, key)}


def _names_token(config: Fields, key: str) -> bool:
    named = key.endswith("_token") and not key.startswith("add_")
    return named and isinstance(config.values[key], str | dict)


def _content(config: Fields, key: str) -> str:
    """A token written as a string or as an object with its "content"."""
    value = config.values[key]
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise config.error(key, f"expected a token, found {value!r:.80}")
    return content


def _add_missing_tokens(backend: tokenizers.Tokenizer, config: Fields) -> None:
    """Adds tokens that only tokenizer_config.json knows, in order of their ids."""
    listed = config.fields("added_tokens_decoder")
    try:
        wanted = sorted((int(key), listed.fields(key)) for key in listed.values)
    except ValueError as error:
        raise config.error("added_tokens_decoder", f"{error!s:.80} as a token id") from None
    except TypeError:
        raise config.error("added_tokens_decoder", "holds one token id twice") from None
    for token_id, entry in wanted:
        content = _content(entry, "content") if entry.has("content") else ""
        if not content or backend.token_to_id(content) is not None:
            continue
        backend.add_tokens([_added_token(content, entry)])
        if backend.token_to_id(content) != token_id:
            found = backend.token_to_id(content)
            message = f"{content!r:.80} is said to be {token_id}, but {MODEL_FILE} makes it {found}"
            raise config.error("added_tokens_decoder", message)


def _added_token(content: str, entry: Fields) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        content,
        single_word=entry.boolean("single_word", False),
        lstrip=entry.boolean("lstrip", False),
        rstrip=entry.boolean("rstrip", False),
        normalized=entry.boolean("normalized", True),
        special=entry.boolean("special", False),
    )


def _chat_templates(folder: Path, config: Fields) -> dict[str, str]:
    """Templates by name; a file of its own wins over tokenizer_config.json."""
    found: Any = config.values.get("chat_template")
    pairs: list[tuple[Any, Any]]
    if isinstance(found, list):
        entries = [each for each in found if isinstance(each, dict)]
        pairs = [(each.get("name"), each.get("template")) for each in entries]
    else:
        pairs = [("default", found)] if found is not None else []
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in pairs):
        raise config.error("chat_template", "expected a string or a list of named templates")
    pairs += [
        (path.stem, _text(path)) for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))
    ]
    path = folder / TEMPLATE_FILE
    if path.exists():
        pairs.append(("default", _text(path)))
    return dict(pairs)


def _text(path: Path) -> str:
    try:
        return read_small(path, TEMPLATE_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text") from None
