"""Looking into attention: which keys the rows of a text read, beside where dense attention over the
same queries and keys would put its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .assembly import Parts, assemble
from .checks import shown
from .config import EngineConfig
from .errors import RequestError
from .inputs import Prompt, encode
from .look_maker import MapMaker
from .look_maps import Choice, HeadMap
from .params import SamplingParams, validate_prompt_ids
from .request import Request

MOST_TOKENS = 16384  # time and memory grow with the square of the text
_CELLS = 128  # at most in a row of a map, unless the caller says otherwise


@dataclass(frozen=True)
class AttentionMap:
    """A text of `tokens` tokens, of which those from `prompt` on were read as generated ones."""

    tokens: int
    prompt: int
    cell: int  # tokens of a cell
    heads: list[HeadMap]  # by layer, then head


class Looker:
    """A model to be looked into; `config` as for an engine of its own.

    Raises as Engine does.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._parts = assemble(replace(config, max_num_seqs=1, enable_prefix_caching=False))
        self._shapes = self._parts.runner.shapes
        self.policy = self._parts.policies.own
        self.num_layers = len(self._shapes)
        attending = [shape for shape in self._shapes if shape.recurrent is None]
        self.num_heads = max(
            (
                shape.num_heads + (shape.experts.heads if shape.experts else 0)
                for shape in attending
            ),
            default=0,
        )

    def look(
        self,
        text: Prompt,
        *,
        generated: int | None = None,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        cell: int | None = None,
    ) -> AttentionMap:
        """Runs a text (or token ids) and keeps what these layers and heads read.

        generated: how many of the last tokens are read as if the model had written them, by the
        decode method; None: half of them where it is another than that of prompts, else none.
        layers, heads: None: all that attend. cell: tokens of a cell; None: a power of two from 16
        on. Raises RequestError for a text that is too long or an option that does not fit.
        """
        ids = _ids(self._parts, text)
        size = cell if cell is not None else _cell(len(ids))
        _check_range("cell", size, 1, MOST_TOKENS)
        if generated is None:
            generated = len(ids) // 2 if self.policy.differs else 0
        _check_range("generated", generated, 0, len(ids) - 1)
        chosen_layers = _chosen("layer", layers, self.num_layers)
        for layer in chosen_layers if layers is not None else ():
            if self._shapes[layer].recurrent is not None:
                raise RequestError(f"layer {layer} keeps a state, not keys: no map", "layer")
        chosen_heads = _chosen("head", heads, self.num_heads)
        maker = MapMaker(Choice(chosen_layers, chosen_heads, len(ids), size))
        _run(self._parts, ids, len(ids) - generated, maker)
        return AttentionMap(len(ids), len(ids) - generated, size, maker.result())


def _ids(parts: Parts, text: Prompt) -> list[int]:
    ids = list(encode(text, parts.tokenizer))
    validate_prompt_ids(ids, parts.model_config.vocab_size)
    most = min(MOST_TOKENS, parts.memory.max_model_len - 1)
    if len(ids) > most:
        raise RequestError(
            f"the text has {len(ids)} tokens; a map shows at most {most} of them with this model: "
            "give a shorter text",
            "prompt",
        )
    return ids


def _cell(tokens: int) -> int:
    size = 16
    while size * _CELLS < tokens:
        size *= 2
    return size


def _chosen(what: str, wanted: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if wanted is None:
        return tuple(range(count))
    for each in wanted:
        _check_range(what, each, 0, count - 1)
    return tuple(dict.fromkeys(wanted))


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{name} must be in {low} .. {high}, not {shown(value)}", name)


def _run(parts: Parts, ids: list[int], prompt: int, maker: MapMaker) -> None:
    """As if a request of this prompt had written the rest before it was preempted."""
    request = Request("look", ids[:prompt], SamplingParams(max_tokens=None), parts.policies.own)
    request.output = ids[prompt:]
    parts.scheduler.add(request)
    done = False
    while not done:
        plan = parts.scheduler.schedule()
        parts.runner.run(plan.live, plan.copies, maker)
        done = any(chunk.sample for chunk in plan.live)  # the last: nothing is to be sampled
        if not done:
            parts.scheduler.commit(plan, {})
    parts.scheduler.abort(request.id)
