"""`saccade look`: a picture of what a model's heads read, beside dense attention's weights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..attention_plot import draw, require
from ..errors import EXIT_OK, UsageError
from ..options import ENGINE, add_group, given, parse_size
from ..tables import print_table
from .generate import read_prompt

if TYPE_CHECKING:
    from ...engine.look import AttentionMap
    from ...engine.look_maps import HeadMap

LAYERS, HEADS = 4, 3  # of a picture, unless others are asked for
FORMATS = (".png", ".pdf", ".svg")
_NAMES = ("attention", "prefill-attention", "decode-attention", "dtype", "page-size")
_ENGINE = {f"--{name}": ENGINE[f"--{name}"] for name in (*_NAMES, "kv-cache-memory")}
# Of heads that decide whether to read their far keys: how many decisions an oracle would share; of
# those that read them, how many needed them; of those that needed them, how many read them.
DECIDED = ("as the oracle", "precision", "recall")
Choose = Callable[[int], Sequence[int]]  # from how many there are


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "look",
        help="draw which keys each head reads",
        description="Draw, per layer and head, which keys the tokens of a text read, beside the "
        "weights that dense attention over the same queries and keys has.",
    )
    parser.add_argument("model", help="a checkpoint folder, or `demo` for the shipped one")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the text itself")
    prompt.add_argument("-f", "--prompt-file", metavar="PATH", help="a UTF-8 file that holds it")
    parser.add_argument("-o", "--out", required=True, metavar="PATH", help="a .png, .pdf or .svg")
    parser.add_argument("--layers", metavar="LIST", help=f"0,3-5 or all (default {LAYERS} of them)")
    parser.add_argument("--heads", metavar="LIST", help=f"0,3-5 or all (default {HEADS} of them)")
    parser.add_argument(
        "--generated",
        type=int,
        metavar="N",
        help="read the last N tokens by the decode method, as if the model had written them "
        "(default: half of the text if that is another method, else none)",
    )
    parser.add_argument("--cell", type=int, metavar="N", help="tokens of a cell of the picture")
    add_group(parser, "engine", _ENGINE)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything cheap first, then run the model, draw and print a table."""
    require()
    path = Path(args.out)
    if path.suffix not in FORMATS:
        raise UsageError(f"--out must end in {', '.join(FORMATS)}, not {args.out!r}")
    layers, heads = chooser("layers", args.layers, LAYERS), chooser("heads", args.heads, HEADS)
    text = read_prompt(args)
    try:
        found, policy = look_at(args, text, layers, heads)
    except ValueError as error:
        raise UsageError(str(error)) from error
    draw(found, f"{args.model}, {policy}", path)
    columns = ("layer", "head", "keys", "weight", *DECIDED * decides(found))
    print_table(f"{found.tokens} tokens, {policy}", columns, rows(found))
    return EXIT_OK


def look_at(
    args: argparse.Namespace, text: str, layers: Choose, heads: Choose
) -> tuple[AttentionMap, str]:
    """The maps, and the policy in words."""
    options = given(args, _ENGINE)
    if "kv_cache_memory" in options:
        options["kv_cache_memory"] = parse_size(options["kv_cache_memory"])
    from ...engine.config import EngineConfig
    from ...engine.look import Looker

    looker = Looker(EngineConfig(args.model, **options))
    found = looker.look(
        text,
        generated=args.generated,
        layers=layers(looker.num_layers),
        heads=heads(looker.num_heads),
        cell=args.cell,
    )
    return found, looker.policy.text


def rows(found: AttentionMap) -> list[list[str]]:
    """A line per head: what it read of the keys, and of dense attention's weight."""
    return [
        [
            str(each.layer),
            str(each.head),
            f"{100 * each.keys_share:.3g} % read",
            "-" if each.mass_share is None else f"{100 * each.mass_share:.3g} % read",
            *decisions(each) * decides(found),
        ]
        for each in found.heads
    ]


def decides(found: AttentionMap) -> bool:
    """Whether any head decides by itself what it reads."""
    return any(each.decided for each in found.heads)


def decisions(head: HeadMap) -> tuple[str, ...]:
    """A head's decisions beside those of an oracle that knows every key's weight."""
    own = head.decided
    if own is None or not own.queries:
        return ("-",) * len(DECIDED)
    shares = (own.agreement, own.precision, own.recall)
    return tuple(f"{100 * share:.3g} %" for share in shares)


def chooser(option: str, text: str | None, default: int) -> Choose:
    """Layers or heads by a list, all of them, or `default` of them from the first to the last."""
    if text is None:
        return lambda count: spread(count, default)
    if text == "all":
        return range
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if match is None:
            raise UsageError(f"--{option} must be like 0,3-5 or all, not {text!r}")
        chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    return lambda count: chosen


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` indices at equal distances, both ends among them; all of a few."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]
