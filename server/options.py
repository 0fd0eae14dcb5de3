"""The options of `saccade generate` that describe an engine and a way of sampling.

Each group is a table from the option to the keyword of `Engine` or `SamplingParams`; an option that
was not given is not passed on, so that the defaults live in one place.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}

ENGINE: dict[str, dict[str, Any]] = {
    "--device": {"help": "auto, cpu or cuda"},
    "--dtype": {"help": "auto (as the checkpoint says), bfloat16, float16 or float32"},
    "--attention": {"metavar": "SPEC", "help": "e.g. 'window(4096)' or '0-1:dense; *:chunked'"},
    "--prefill-attention": {"metavar": "SPEC", "help": "another method for prompts"},
    "--decode-attention": {"metavar": "SPEC", "help": "another method for new tokens"},
    "--max-model-len": {"type": int, "metavar": "N", "help": "tokens of prompt and answer"},
    "--max-num-seqs": {"type": int, "metavar": "N", "help": "sequences that run at once"},
    "--max-num-batched-tokens": {"type": int, "metavar": "N", "help": "tokens of one step"},
    "--long-prefill-share": {"type": float, "metavar": "X", "help": "of a step, for long prompts"},
    "--page-size": {"type": int, "metavar": "N", "help": "tokens of a page (default 64)"},
    "--check-finite": {"action": "store_true", "help": "refuse weights with NaN or infinity"},
    "--calibration": {"metavar": "FILE", "help": "figures that `saccade calibrate` measured"},
    "--kv-cache-memory": {"metavar": "SIZE", "help": "memory for keys and values, e.g. 4GiB"},
}

SAMPLING: dict[str, dict[str, Any]] = {
    "--max-tokens": {"type": int, "metavar": "N", "help": "new tokens at most (default 256)"},
    "--min-tokens": {"type": int, "metavar": "N", "help": "new tokens at least"},
    "--temperature": {"type": float, "metavar": "X", "help": "0: always the likeliest token"},
    "--top-k": {"type": int, "metavar": "N", "help": "keep the N likeliest tokens"},
    "--top-p": {"type": float, "metavar": "X", "help": "keep this probability mass"},
    "--min-p": {"type": float, "metavar": "X", "help": "drop below X times the best"},
    "--repetition-penalty": {"type": float, "metavar": "X", "help": "above 1 discourages"},
    "--presence-penalty": {"type": float, "metavar": "X", "help": "-2 to 2"},
    "--frequency-penalty": {"type": float, "metavar": "X", "help": "-2 to 2"},
    "--seed": {"type": int, "metavar": "N", "help": "same seed, same tokens"},
    "--stop": {"action": "append", "metavar": "TEXT", "help": "stop at this text (repeatable)"},
    "--stop-token-ids": {"action": "append", "type": int, "metavar": "ID", "help": "repeatable"},
    "--ignore-eos": {"action": "store_true", "help": "go on after the end-of-sequence token"},
    "--n": {"type": int, "metavar": "N", "help": "completions of the prompt"},
    "--logprobs": {"type": int, "metavar": "N", "help": "with --json: N alternatives per token"},
    "--prompt-logprobs": {"type": int, "metavar": "N", "help": "the same for the prompt"},
}


def add_group(parser: argparse.ArgumentParser, title: str, table: dict[str, Any]) -> None:
    """Add the options of `table`; one that is not given leaves no trace in the namespace."""
    group = parser.add_argument_group(title)
    for option, settings in table.items():
        group.add_argument(option, default=argparse.SUPPRESS, **settings)


def given(args: argparse.Namespace, table: dict[str, Any]) -> dict[str, Any]:
    """The keywords of the options of `table` that were given."""
    names = [option.removeprefix("--").replace("-", "_") for option in table]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def parse_size(text: str) -> int:
    """Bytes in '4GiB', '512MiB', '2GB' or '1000000'; ValueError names the units."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?i?B)?\s*", text, re.IGNORECASE)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    unit = (match[2] or "").lower() if match else "?"
    if match is None or unit not in units:
        raise ValueError(f"{text!r} is not a size; write bytes, or a number with KiB, MiB or GiB")
    return int(float(match[1]) * units[unit])
