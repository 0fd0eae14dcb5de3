"""What attention layers, and the residual stream around them, may have beyond the Llama shape.

Any of these may be combined; each family's config.json says which it has (`family_features.py`,
`moba_config.py`, `nsa_config.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """A sigmoid gate on the output of every head, computed from the layer's own input.

    per_channel: as many gates as a head has channels, else one. packing: where their rows lie.
    "head": in q_proj, after each head's query rows; "group": in q_proj, after the query rows of all
    the heads of a KV head; "low_rank": apart, in g_proj, a product of two by way of head_dim;
    "branch": the second of three that g_proj has for every head.
    """

    per_channel: bool
    packing: str


@dataclass(frozen=True)
class SwiGLU:
    """gate * sigmoid(alpha * gate) * (1 + up), the gate at most `limit` and up within +-limit."""

    alpha: float = 1.702
    limit: float = 7.0


@dataclass(frozen=True)
class Experts:
    """Feed-forward layers of routed experts and a shared one.

    router="sigmoid": by sigmoid scores; a learned correction takes part in the choice alone, and
    the shares of the chosen ones add up to `scale`. "softmax": by probabilities, which are the
    shares, divided by their sum if `normalised`; the shared expert's output has a gate of its own.
    """

    layers: frozenset[int]
    count: int
    per_token: int
    inner: int  # width of each
    shared_inner: int
    scale: float = 1.0
    router: str = "sigmoid"
    normalised: bool = True


@dataclass(frozen=True)
class HyperConnections:
    """Several residual streams: every layer reads a gated mean of them and adds to each its share.

    rank: inner width of what computes the gates.
    """

    streams: int
    rank: int


@dataclass(frozen=True)
class DeltaNet:
    """Layers of Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464) in place of attention.

    packed: one projection gives queries, keys, values and output gates, those of a key head side by
    side, and another the two gates of the state; else each has its own. gate: "silu" or "sigmoid".
    """

    layers: frozenset[int]
    key_heads: int
    heads: int
    key_dim: int
    value_dim: int
    taps: int
    gate: str = "silu"
    packed: bool = False

    @property
    def width(self) -> int:
        """Channels of queries, keys and values together: they are convolved."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim


@dataclass(frozen=True)
class NgramEmbedding:
    """Layers that first add to the residual streams what a table says of the last tokens.

    sizes: per n-gram (of 2 tokens, 3, ... up to `tokens`) and head, a prime number of rows; rows:
    of the whole table, as it is padded; parts: in how many pieces a checkpoint has it. dim:
    channels of all heads. taps: of the convolution over inputs that lie `tokens` tokens apart.
    end: the token that no n-gram reaches across.
    """

    layers: tuple[int, ...]
    tokens: int
    heads: int
    sizes: tuple[tuple[int, ...], ...]  # of each of the layers
    rows: tuple[int, ...]
    multipliers: tuple[tuple[int, ...], ...]  # of the token, the one before it, ...
    dim: int
    taps: int
    end: int
    parts: int


@dataclass(frozen=True)
class Features:
    """What the layers have besides projections, rotary embedding and query-key norms."""

    gate: Gate | None = None
    sinks: bool = False  # a learned logit per head that only enlarges the softmax's denominator
    unrotated: frozenset[int] = frozenset()  # layers without rotary embedding
    key_taps: int = 0  # width of the convolution of keys; 0: none
    convolved: frozenset[int] = frozenset()  # layers that have it
    output_norm_eps: float | None = None  # of a norm of every head's output; None: no such norm
    qk_norm: bool | None = None  # None: as in every checkpoint of the family
    qk_norm_eps: float | None = None  # None: as all other norms
    bias: bool | None = None  # of all four projections; None: as the family says
    scale: float | None = None  # of attention scores; None: 1 / sqrt(head_dim)
    rope_theta: float | None = None  # None: as the rotary settings say
    norm_offset: float = 0.0  # what is added to the stored weights of the norms
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what each layer adds to the residual stream
    logits_divisor: float = 1.0
    swiglu: SwiGLU | None = None  # of feed-forward layers with one gate_up_proj; None: SiLU
    dense_inner: int | None = None  # width of feed-forward layers; None: intermediate_size
    experts: Experts | None = None
    deltanet: DeltaNet | None = None
    ngrams: NgramEmbedding | None = None
    hyper: HyperConnections | None = None  # None: one residual stream, normed before each layer
