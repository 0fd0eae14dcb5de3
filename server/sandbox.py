"""Jinja templates that a checkpoint brings, run within bounds of time and size.

jinja2's immutable sandbox keeps a template away from Python. It bounds neither time nor memory, so
the syntax tree is changed before it is compiled: every loop and macro looks at the clock, and every
operation that can grow a text or a list looks at the size of its result first.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .messages import Verbatim


class TemplateFailed(Exception):
    """A template did not render; the message may be shown to a client."""


class _OutOfBounds(Exception):
    """Raised inside of a template, which has no means to catch it."""


@dataclass(frozen=True)
class RenderLimits:
    """What one rendering may take.

    characters: of the result and of every text on the way, in code points. seconds: by the clock.
    """

    characters: int = 8_000_000
    seconds: float = 2.0


class _Raised(jinja2.TemplateError):
    """What a template says by `raise_exception`."""


class Generation(Extension):
    """`{% generation %}`: marks an assistant's tokens for training; here its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body, with a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Bounding(NodeTransformer):
    """Lets loops and macros look at the clock, and `~` at the size of what it makes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _method_call("join_texts", node.nodes, node.lineno)

    def _ticking(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        tick = nodes.ExprStmt(_method_call("tick", [], node.lineno))
        node.body.insert(0, tick.set_lineno(node.lineno))
        return node  # type: ignore[no-any-return]


def _method_call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    """The syntax of a call of the environment's method `name`."""
    method = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(method, arguments, [], None, None, lineno=line)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates: transformers' names in it, and budgets around it."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, limits: RenderLimits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
        )
        self.limits = limits
        self._render = threading.local()  # .deadline: of the rendering that this thread does
        self.filters["tojson"] = _to_json
        for name in ("center", "indent", "wordwrap", "truncate", "batch", "slice"):
            self.filters[name] = self._bounded(self.filters[name])
        self.filters["format"] = self._format
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def run(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """The rendered text. Raises TemplateFailed, in the template's own words where it has any;
        what went wrong inside is its `__cause__`."""
        self._render.deadline = time.monotonic() + self.limits.seconds
        pieces, size = [], 0
        try:
            for piece in template.generate(variables):
                size += len(piece)
                self.check_size(size)
                self.tick()
                pieces.append(piece)
        except (_OutOfBounds, _Raised) as error:
            raise TemplateFailed(f"{error!s:.500}") from error
        except Exception as error:  # a template's mistakes are Python's, of any kind
            raise TemplateFailed("the template does not fit this input") from error
        return "".join(pieces)

    # ---- what compiled templates call ----

    def tick(self) -> None:
        """Ends the rendering when its time is up."""
        if time.monotonic() > self._render.deadline:
            raise _OutOfBounds(f"it took longer than {self.limits.seconds:g} seconds")

    def check_size(self, size: int) -> None:
        """Ends the rendering when a text or list of this size is about to be made."""
        if size > self.limits.characters:
            raise _OutOfBounds(f"it made more than {self.limits.characters} characters")

    def join_texts(self, *parts: Any) -> str:
        """The `~` operator."""
        texts = [str(part) for part in parts]
        self.check_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators whose result may be much larger than their operands."""
        if operator == "%" and isinstance(left, str):
            self._check_format(left)
        self.check_size(_size_of_result(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call that a template makes, methods of texts among them."""
        self.tick()
        bound = getattr(function, "__wrapped__", function)  # jinja2 wraps `format`
        owner = getattr(bound, "__self__", None)
        if isinstance(owner, str):
            self._check_method(owner, function.__name__, args, kwargs)
        found = super().call(context, function, *args, **kwargs)
        if isinstance(found, str):
            self.check_size(len(found))
        return found

    def _check_method(self, text: str, name: str, args: Any, kwargs: Any) -> None:
        self._check_numbers((*args, *kwargs.values()))
        if name in ("format", "format_map"):
            self._check_format(text)
        elif name == "replace" and len(args) > 1:
            self.check_size((len(text) + 1) * len(str(args[1])))

    def _check_numbers(self, values: Any) -> None:
        """Widths and counts lie within the limit for texts, so that what they make does too."""
        self.check_size(max((value for value in values if isinstance(value, int)), default=0))

    def _format(self, text: Any, /, *args: Any, **kwargs: Any) -> str:
        self._check_format(str(text))
        return str(text) % (kwargs or args)

    def _check_format(self, text: str) -> None:
        if re.search(r"\d{5}|\*", text):  # a width or precision, written out or taken from a value
            raise _OutOfBounds("it formats with a width that is too large")

    def _bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._check_numbers((*args, *kwargs.values()))
            return function(*args, **kwargs)

        return bounded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        bounded: nodes.Template = _Bounding().visit(tree)
        return bounded


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    """Elements or digits that an operator is about to make; 0 where it cannot grow much."""
    if operator == "+":
        return len(left) + len(right) if hasattr(left, "__len__") else 0
    if operator == "**":
        both = isinstance(left, int) and isinstance(right, int)
        return left.bit_length() * max(right, 0) if both else 0
    if operator == "%":
        return 0
    for many, count in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(count, int):
            return len(many) * count
    return 0


def _raise(message: Any) -> None:
    raise _Raised(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a prompt: jinja2's own filter would escape HTML."""
    if isinstance(indent, int):
        indent = min(indent, 64)
    mark, found = secrets.token_hex(16), list[str]()  # that no text can hold

    def place_of(value: Any) -> str:
        if not isinstance(value, Verbatim):
            raise TypeError(f"{type(value).__name__} is nothing that JSON has")
        found.append(str(value))
        return f"{mark}-{len(found) - 1}"

    written = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=place_of,
    )
    for number, text in enumerate(found):
        written = written.replace(f'"{mark}-{number}"', text)
    return written


class _Dict:
    """`dict` in templates: makes dicts, and gives no access to the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` in templates; its names may not begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a key
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r} is not a name for a namespace")
