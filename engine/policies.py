"""The attention policies that requests may ask for: those that the engine's pages can serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .attention.base import LayerShape, PageField
from .attention.parse import method_text
from .attention.policy import AttentionPolicy, parse_policy
from .cache import kept_rule, layer_fields, layer_group
from .checks import shown
from .errors import RequestError

# A spec for both phases, or one per phase by these names; a phase left open attends as the engine
# does without any wish.
AttentionSpec = str | Mapping[str, str]
SPECS = ("attention", "prefill_attention", "decode_attention")

_MAX_CHARS = 16384  # of one spec: 128 layers, each with a method of its own
_MAX_KNOWN = 64  # parsed wishes that are remembered


class Policies:
    """Turns what a request says into its policy; equal wishes get the same object.

    own: the engine's policy, whose page fields the cache has.
    """

    def __init__(self, own: AttentionPolicy, shapes: Sequence[LayerShape], page_size: int) -> None:
        self.own = own
        self._shapes = shapes
        self._page_size = page_size
        self._known: dict[tuple[str | None, ...], AttentionPolicy] = {}

    def of(self, wish: AttentionSpec | None) -> AttentionPolicy:
        """The policy of a request; None: the engine's own.

        Raises RequestError for a bad spec, and for a method whose page fields the pages lack, or
        that reads what the engine's own policy frees.
        """
        if wish is None:
            return self.own
        try:
            specs = read_specs(wish)
            if any(len(spec or "") > _MAX_CHARS for spec in specs):
                raise ValueError(f"attention: a spec may have at most {_MAX_CHARS} characters")
            if specs not in self._known:
                policy = self._parse(*specs)
                self._check_fields(policy)
                self._check_pages(policy)
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[specs] = policy
        except ValueError as error:
            raise RequestError(str(error), "attention") from None
        return self._known[specs]

    def _parse(self, both: str | None, prefill: str | None, decode: str | None) -> AttentionPolicy:
        policy, own = parse_policy(both, prefill, decode, len(self._shapes)), self.own
        if both is None:
            policy = AttentionPolicy(
                own.prefill if prefill is None else policy.prefill,
                own.decode if decode is None else policy.decode,
            )
        return policy.measured(self._shapes)

    def _check_fields(self, policy: AttentionPolicy) -> None:
        for layer in range(len(self._shapes)):
            kept = self._fields(self.own, layer)
            for name, field in self._fields(policy, layer).items():
                if kept.get(name) != field:
                    raise ValueError(
                        f"attention: {self._owner(policy, layer, name)} needs the page field "
                        f"{name!r}, which this engine does not keep in layer {layer}; start the "
                        f"engine with that method, or ask for one that needs "
                        f"{' or '.join(map(repr, kept)) or 'none'}"
                    )

    def _check_pages(self, policy: AttentionPolicy) -> None:
        for layer, shape in enumerate(self._shapes):
            kept = layer_group(layer, shape, self.own)
            if kept.compact and layer_group(layer, shape, policy) != kept:
                raise ValueError(
                    f"attention: in layer {layer} this engine frees the pages that "
                    f"{method_text(self.own.decode[layer])} leaves behind; a request cannot attend "
                    f"otherwise there"
                )
        rules = [kept_rule(self._shapes, each) for each in (self.own, policy)]
        if rules[0] != rules[1] or policy.needs_whole_text != self.own.needs_whole_text:
            raise ValueError(
                f"attention: the heads of this engine keep tokens by {self.own.text}; a request "
                f"cannot have them keep others"
            )

    def _fields(self, policy: AttentionPolicy, layer: int) -> dict[str, PageField]:
        return layer_fields(self._shapes[layer], policy, layer, self._page_size)

    def _owner(self, policy: AttentionPolicy, layer: int, field: str) -> str:
        """The method that needs a field, as a spec."""
        shape = self._shapes[layer]
        return next(
            method_text(method)
            for method in (policy.prefill[layer], policy.decode[layer])
            if field in method.fields(shape, self._page_size)
        )


def read_specs(wish: object) -> tuple[str | None, ...]:
    """The specs of SPECS that a string or an object names; ValueError for anything else."""
    specs = {"attention": wish} if isinstance(wish, str) else wish
    if not isinstance(specs, Mapping) or not all(
        name in SPECS and isinstance(spec, str) for name, spec in specs.items()
    ):
        raise ValueError(
            "attention must be a spec, or an object of specs named "
            f"{', '.join(SPECS)}; got {shown(wish)}"
        )
    return tuple(specs.get(name) for name in SPECS)
