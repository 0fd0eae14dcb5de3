"""What a server is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .limits import Limits


@dataclass(frozen=True)
class ServerConfig:
    """Settings of one server; engine options are keywords of Engine.

    names: what clients may call the model, the first is the one it calls itself. api_keys: none:
    everybody may ask. cors_origins: none: no browser on another page may. chat_template: jinja
    source instead of the checkpoint's own. tool_parser, reasoning_parser: as in server/formats.py;
    "auto": as the template shows. pooling: of embeddings; None: as the checkpoint says, else the
    last token. model_defaults: sampling defaults of the checkpoint's
    generation_config.json. silence_s: how long the engine may be silent or stand still before it is
    restarted. drain_s: how long requests may go on after SIGTERM. pace_s: tokens of a stream that
    come faster than this are sent together.
    """

    model: str
    engine: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    chat_template: str | None = None
    tool_parser: str = "auto"
    reasoning_parser: str = "auto"
    pooling: str | None = None
    model_defaults: bool = True
    limits: Limits = field(default_factory=Limits)
    metrics_compat: tuple[str, ...] = ()
    log_prompts: bool = False
    silence_s: float = 8.0
    drain_s: float = 30.0
    pace_s: float = 0.01
