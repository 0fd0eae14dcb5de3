"""Saccade: a compiled long-context sparse-attention inference engine.

The public names are loaded at first use: `import saccade` costs a few milliseconds and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.engine import Engine
    from .engine.outputs import RequestOutput
    from .engine.params import SamplingParams
    from .engine.structure import Structure

__version__ = "0.1.0"
__all__ = ["Engine", "RequestOutput", "SamplingParams", "Structure", "__version__"]

_HOME = {
    "Engine": ".engine.engine",
    "RequestOutput": ".engine.outputs",
    "SamplingParams": ".engine.params",
    "Structure": ".engine.structure",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module at first use, and keep it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
