"""Checkpoints with native sparse attention: flash-linear-attention's, zen-E's, and an entry `nsa`
that says everything.

flash-linear-attention ("nsa") and zen-E ("llama-nsa") write block_size, block_counts and
window_size; entries are means of blocks. Which blocks are always read the former's config does not
say: its first version (2025-03) forced the row's own block, later ones also the first and the
previous one. The key nsa_preset, "fla_2025_03" or "fla_main", has to be added. (Layers of its first
version have heads of 64 channels, whatever head_dim says: then that has to be corrected.)

In the entry `nsa` of a NativeSparseForCausalLM nothing has a default. v_dim: channels of a value.
length, stride: tokens of a window, and between two. phi: "mean", "weighted", "linear" or "mlp";
phi_hidden: its hidden channels, null for the others. phi_rope: "post" or "block", see
`engine/branches.py`. block, topk, init_blocks, local_blocks, forced, score_map, window,
window_plus: options of the method nsa. kv: "shared" or "separate": then k_proj and v_proj hold the
rows of compression, selection and window, one behind the other. gate: "sigmoid", three per head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .features import Features, Gate
from .json_object import Fields
from .rope_config import read_rope
from .variant import OrdinaryHeads

_KEYS = (
    "v_dim length stride phi phi_hidden phi_rope block topk init_blocks local_blocks forced "
    "score_map window window_plus kv gate"
).split()
_PRESETS = {"fla_2025_03": "init=0, local=1", "fla_main": "init=1, local=2"}


@dataclass(frozen=True)
class NsaConfig(OrdinaryHeads):
    """Layers that gate three branches. All sizes in elements, lengths in tokens."""

    v_dim: int | None  # None: as a key
    length: int
    stride: int
    phi: str
    phi_hidden: int
    phi_rope: str
    kv: str
    method: str | None  # the nsa spec; None: the config leaves it open

    @property
    def windows(self) -> None:
        """Every layer sees everything."""
        return None

    @property
    def sets(self) -> int:
        """Sets of K and V."""
        return 3 if self.kv == "separate" else 1

    @property
    def specs(self) -> Mapping[str, str] | None:
        """How the checkpoint was trained to attend, in both phases."""
        return {"attention": self.method} if self.method else None


def read_fla_nsa(config: Fields, num_layers: int) -> NsaConfig:
    """flash-linear-attention's keys."""
    preset = config.choice("nsa_preset", _PRESETS) if config.has("nsa_preset") else None
    return _of_blocks(config, _PRESETS[preset] if preset else None)


def read_llama_nsa(config: Fields, num_layers: int) -> NsaConfig | None:
    """zen-E's NSA-1B, as the first version of flash-linear-attention; None for its siblings without
    a window, which gate nothing but their output.
    """
    window = config.integer("window_size", least=0)
    return _of_blocks(config, _PRESETS["fla_2025_03"]) if window else None


def read_llama_nsa_features(config: Fields, num_layers: int) -> Features:
    """The siblings' gate: of the three per head that g_proj holds, that of the selected blocks."""
    return Features() if config.integer("window_size", least=0) else Features(Gate(False, "branch"))


def read_llama_nsa_specs(config: Fields) -> Mapping[str, str] | None:
    """What inference_mode says of SSA-1B; None where it is missing."""
    if config.integer("window_size", least=0) or not config.has("inference_mode"):
        return None
    sparse = config.choice("inference_mode", ["sparse", "full"]) == "sparse"
    return {"attention": f"nsa({selection_of(config)})" if sparse else "dense"}


def undecided_fla_nsa(config: Fields) -> str | None:
    """What the config leaves open."""
    if config.has("nsa_preset"):
        return None
    choices = " or ".join(f"nsa({_blocks(config)}, {rule})" for rule in _PRESETS.values())
    return (
        "nsa_preset: missing; the config does not say whether the row's own block alone is always "
        "read (fla_2025_03) or the first and the previous one too (fla_main): add the key, or pass "
        f"attention={choices}"
    )


def undecided_llama_nsa(config: Fields) -> str | None:
    """What the config of a checkpoint without a window leaves open."""
    if config.integer("window_size", least=0) or config.has("inference_mode"):
        return None
    return (
        "window_size: 0 does not tell selected blocks (MoBA-1B, SSA-1B) from dense attention "
        "(FullAttn-1B): add inference_mode, sparse or full, or pass attention="
        f"nsa({selection_of(config)}) or dense"
    )


def read_native(config: Fields, num_layers: int) -> NsaConfig:
    """The entry `nsa`. CheckpointError for a key that is missing, unknown, or does not fit."""
    nsa = config.fields("nsa")
    for key in _KEYS:
        if key not in nsa.values:
            raise nsa.error(key, f"missing; every one of {', '.join(_KEYS)} must be given")
    for key in nsa.values:
        if key not in _KEYS:
            raise nsa.error(key, f"unknown; the keys are {', '.join(_KEYS)}")
    # Spelled out although there is one choice: another one must not be read as this one.
    nsa.choice("gate", ["sigmoid"])
    phi = nsa.choice("phi", ["mean", "weighted", "linear", "mlp"])
    if nsa.has("phi_hidden") != (phi == "mlp"):
        raise nsa.error("phi_hidden", f"a number for phi mlp, else null; phi is {phi}")
    rope, v_dim = nsa.choice("phi_rope", ["post", "block"]), nsa.integer("v_dim", most=1 << 16)
    turned = read_rope(config, config.integer("max_position_embeddings"))
    if rope == "block" and turned.attention_scaling != 1.0:
        raise nsa.error("phi_rope", "block needs rotary embedding that does not scale keys")
    if v_dim % 2:
        raise nsa.error("v_dim", f"expected an even number, found {v_dim}")
    return NsaConfig(
        v_dim=v_dim,
        length=nsa.integer("length", most=1 << 16),
        stride=nsa.integer("stride", most=1 << 16),
        phi=phi,
        phi_hidden=nsa.integer("phi_hidden", 0, least=phi == "mlp", most=1 << 16),
        phi_rope=rope,
        kv=nsa.choice("kv", ["shared", "separate"]),
        method=_method(nsa),
    )


def _method(nsa: Fields) -> str:
    numbers = {
        "length": nsa.integer("length"),
        "stride": nsa.integer("stride"),
        "block": nsa.integer("block"),
        "topk": nsa.integer("topk"),
        "init": nsa.integer("init_blocks", least=0),
        "local": nsa.integer("local_blocks"),
        "window": nsa.integer("window", least=0),
        "window_plus": nsa.integer("window_plus", least=0, most=1),
    }
    words = {
        "phi": nsa.choice("phi", ["mean", "weighted", "linear", "mlp"]),
        "rope": nsa.choice("phi_rope", ["post", "block"]),
        "forced": nsa.choice("forced", ["counted", "extra"]),
        "map": nsa.choice("score_map", ["overlap", "identity", "maxpool"]),
        "kv": nsa.choice("kv", ["shared", "separate"]),
    }
    return f"nsa({', '.join(f'{name}={value}' for name, value in (numbers | words).items())})"


def _of_blocks(config: Fields, rule: str | None) -> NsaConfig:
    """Entries that are means of blocks, K and V of all branches the same."""
    method = f"nsa({_blocks(config)}, {rule})" if rule else None
    block = config.integer("block_size")
    return NsaConfig(None, block, block, "mean", 0, "post", "shared", method)


def _blocks(config: Fields) -> str:
    window = config.integer("window_size", 0, least=0)
    return f"{_entries(config)}, window={window}"


def _entries(config: Fields) -> str:
    block, topk = config.integer("block_size"), config.integer("block_counts")
    sizes = f"length={block}, stride={block}, block={block}, topk={topk}"
    return f"{sizes}, map=identity, phi=mean, kv=shared"


def selection_of(config: Fields) -> str:
    """Options of nsa for selected blocks alone."""
    return f"{_entries(config)}, {_PRESETS['fla_2025_03']}, window=0, branches=selected"
