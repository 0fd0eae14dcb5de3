"""The `asa` entry of config.json: nothing in it has a default, because no public checkpoint fixes
one.

layer_types: per layer "local" or "global". sliding_window: of local layers, in tokens. q_rank: of a
low-rank query, or null. nope_dim, rope_dim: channels of a head's query and key without and with
rotary embedding. v_dim: of its value. local_rank, global_rank: channels of a latent. latent_groups:
latents of a global layer. block, topk, init_blocks, local_blocks: of global layers, in tokens and
blocks; topk counts the first init_blocks and the latest local_blocks. list_reuse: consecutive rows
that share a list of blocks. compression: "mean". global_gate: "sigmoid", two per head (compression,
selection). local_gate: "none", or "sigmoid", one per head.
"""

from __future__ import annotations

from dataclasses import dataclass

from .json_object import Fields
from .rope_config import read_rope

_KEYS = (
    "layer_types sliding_window q_rank nope_dim rope_dim v_dim local_rank global_rank "
    "latent_groups block topk init_blocks local_blocks list_reuse compression global_gate "
    "local_gate"
).split()


@dataclass(frozen=True)
class LatentConfig:
    """Latent attention with local and global layers. All sizes in elements, lengths in tokens."""

    num_heads: int
    local_layers: tuple[bool, ...]
    window: int  # of local layers, the current token included
    q_rank: int | None  # None: queries come straight from the hidden state
    nope_dim: int
    rope_dim: int
    v_dim: int
    local_rank: int
    global_rank: int  # of each of the latents of a global layer
    groups: int  # latents of a global layer; a local one has one
    local_gate: bool
    method: str  # the asa spec, its form left open

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of every layer; None: global."""
        return tuple(self.window if local else None for local in self.local_layers)

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, latents of a global layer, channels of a head's query and key."""
        return self.num_heads, self.groups, self.nope_dim + self.rope_dim

    def rank(self, layer: int) -> int:
        """Channels of each latent of a layer."""
        return self.local_rank if self.local_layers[layer] else self.global_rank

    def num_groups(self, layer: int) -> int:
        """Latents of a layer."""
        return 1 if self.local_layers[layer] else self.groups

    def num_gates(self, layer: int) -> int:
        """Gates per head: of compression and selection, or of the window."""
        return int(self.local_gate) if self.local_layers[layer] else 2

    @property
    def specs(self) -> dict[str, str]:
        """How the checkpoint was trained to attend: prompts expanded, outputs absorbed."""
        return {
            "prefill_attention": self.method.format(form="expanded"),
            "decode_attention": self.method.format(form="absorbed"),
        }


def read_latent(config: Fields, num_layers: int) -> LatentConfig:
    """CheckpointError for a key that is missing, unknown, or does not fit the others."""
    asa = config.fields("asa")
    if read_rope(config, config.integer("max_position_embeddings")).kind in (
        "yarn",
        "longrope",
    ):
        message = "yarn and longrope are not supported with latent attention"
        raise config.error("rope_parameters", message)
    for key in _KEYS:
        if key not in asa.values:
            raise asa.error(key, f"missing; every one of {', '.join(_KEYS)} must be given")
    for key in asa.values:
        if key not in _KEYS:
            raise asa.error(key, f"unknown; the keys are {', '.join(_KEYS)}")
    # Spelled out although there is one choice: another one must not be read as this one.
    asa.choice("compression", ["mean"])
    asa.choice("global_gate", ["sigmoid"])
    gate = asa.choice("local_gate", ["none", "sigmoid"])
    heads = config.integer("num_attention_heads", most=1 << 16)
    groups = asa.integer("latent_groups")
    if heads % groups:
        raise asa.error("latent_groups", f"{groups} does not divide num_attention_heads {heads}")
    return LatentConfig(
        num_heads=heads,
        local_layers=_local_layers(asa, num_layers),
        window=asa.integer("sliding_window"),
        q_rank=asa.integer("q_rank") if asa.has("q_rank") else None,
        nope_dim=_even(asa, "nope_dim"),
        rope_dim=_even(asa, "rope_dim"),
        v_dim=_even(asa, "v_dim"),
        local_rank=_even(asa, "local_rank"),
        global_rank=_even(asa, "global_rank"),
        groups=groups,
        local_gate=gate == "sigmoid",
        method=_method(asa),
    )


def _local_layers(asa: Fields, num_layers: int) -> tuple[bool, ...]:
    kinds = asa.values["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise asa.error("layer_types", f"expected a list of {num_layers} entries, one per layer")
    for kind in kinds:
        if kind not in ("local", "global"):
            raise asa.error("layer_types", f"{kind!r:.80} is not supported; write local or global")
    return tuple(kind == "local" for kind in kinds)


def _even(asa: Fields, key: str) -> int:
    value = asa.integer(key, most=1 << 16)
    if value % 2:
        raise asa.error(key, f"expected an even number, found {value}")
    return value


def _method(asa: Fields) -> str:
    block, topk, reuse = (asa.integer(key) for key in ("block", "topk", "list_reuse"))
    init, local = asa.integer("init_blocks", least=0), asa.integer("local_blocks")
    blocks = f"block={block}, topk={topk}, init={init}, local={local}"
    return f"asa({blocks}, reuse={reuse}, form={{form}})"
