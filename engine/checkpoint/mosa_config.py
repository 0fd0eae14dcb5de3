"""The `mosa` entry of config.json: mixture of sparse attention, named as in the paper's code.

h_prim: channels of a head. num_mosa_heads: heads that choose their tokens. num_other_heads: dense
heads beside them. sparsity: a head keeps one token in so many. h: the hidden size, if given.
hybrid_type: "dense". include_first: 1 if every head always keeps the first token (default 0).
rotate_fraction: share of a head's channels that turn with the position, rounded down to an even
number (default 0.5). rope_base: as rope_theta. max_seq_len: the length of the training texts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .json_object import Fields
from .rope_config import read_rope

_KEYS = (
    "h h_prim num_mosa_heads num_other_heads max_seq_len sparsity hybrid_type include_first "
    "rotate_fraction rope_base"
).split()


@dataclass(frozen=True)
class MosaConfig:
    """Heads that choose their tokens, and dense heads beside them."""

    num_layers: int
    mosa_heads: int
    other_heads: int
    head_dim: int
    sparsity: int
    include_first: bool
    rope_dim: int  # channels of a head that turn with the position
    train_length: int
    thresholds: tuple[tuple[float, ...], ...] | None = None  # per layer and head, on its score

    @property
    def heads(self) -> tuple[int, int, int]:
        """Dense heads, as many for keys, and channels of each."""
        return self.other_heads, self.other_heads, self.head_dim

    @property
    def windows(self) -> None:
        """Every token can be kept."""
        return None

    @property
    def specs(self) -> dict[str, str]:
        """Causal, and the same however a text is cut; it needs thresholds."""
        return {"attention": "mosa(mode=threshold)"}

    @property
    def rules(self) -> tuple[str, ...]:
        """As in training, by thresholds, and by the best so far."""
        return "mosa(mode=whole)", "mosa(mode=threshold)", "mosa(mode=stream)"

    @property
    def always(self) -> int:
        """First tokens of a text that are kept whatever their score."""
        return int(self.include_first)

    def wanted(self, tokens: int) -> int:
        """How many others training keeps of a text of so many."""
        return min(tokens, max(tokens // self.sparsity, 2)) - self.always

    def calibrated(self, figures: Fields) -> MosaConfig:
        """With the thresholds of a calibration file. CheckpointError if they do not fit."""
        rows = figures.values.get("thresholds")
        if not isinstance(rows, list) or len(rows) != self.num_layers:
            raise figures.error("thresholds", f"expected {self.num_layers} lists, one per layer")
        for row in rows:
            if not isinstance(row, list) or len(row) != self.mosa_heads:
                message = f"expected {self.mosa_heads} numbers per layer, one per head"
                raise figures.error("thresholds", message)
            for value in row:
                if type(value) not in (int, float) or not 0 <= value <= 1:
                    message = f"expected scores from 0 to 1, found {value!r:.80}"
                    raise figures.error("thresholds", message)
        return replace(self, thresholds=tuple(tuple(map(float, row)) for row in rows))


def read_mosa(config: Fields, num_layers: int) -> MosaConfig:
    """CheckpointError for a key that is missing, unknown, or does not fit the others."""
    mosa = config.fields("mosa")
    for key in mosa.values:
        if key not in _KEYS:
            raise mosa.error(key, f"unknown; the keys are {', '.join(_KEYS)}")
    # The other heads of the paper's long texts, `local`, attend within pairs of buckets.
    mosa.choice("hybrid_type", ["dense"], "dense")
    hidden = config.integer("hidden_size")
    if mosa.integer("h", hidden) != hidden:
        raise mosa.error("h", f"contradicts hidden_size {hidden}")
    base = mosa.number("rope_base", 10000.0, above=1.0)
    theta = read_rope(config, config.integer("max_position_embeddings")).theta
    if base != theta:
        raise mosa.error("rope_base", f"{base:g} contradicts rope_theta, which is {theta:g}")
    head_dim = mosa.integer("h_prim", least=4, most=1024)
    fraction = mosa.number("rotate_fraction", 0.5, above=0.0)
    rope_dim = int(fraction * head_dim) // 2 * 2
    if not 2 <= rope_dim <= head_dim:
        message = f"{fraction:g} of {head_dim} channels are {rope_dim}; at least 2 must turn"
        raise mosa.error("rotate_fraction", message)
    return MosaConfig(
        num_layers=num_layers,
        mosa_heads=mosa.integer("num_mosa_heads", most=1 << 12),
        other_heads=mosa.integer("num_other_heads", least=0, most=1 << 12),
        head_dim=head_dim,
        sparsity=mosa.integer("sparsity"),
        include_first=_flag(mosa, "include_first"),
        rope_dim=rope_dim,
        train_length=mosa.integer("max_seq_len", config.integer("max_position_embeddings")),
    )


def _flag(mosa: Fields, key: str) -> bool:
    value = mosa.values.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    return bool(mosa.integer(key, least=0, most=1))
