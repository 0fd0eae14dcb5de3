"""`saccade serve`: the HTTP server."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EXIT_FAILED, EXIT_OK, UsageError
from ..formats import REASONING_PARSERS, TOOL_PARSERS
from ..options import ENGINE, add_group, given, parse_size

if TYPE_CHECKING:
    from ..config import ServerConfig
    from ..limits import Limits

KEY_VARIABLE = "SACCADE_API_KEY"
_ORIGIN = r"[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+"
# No client makes attention slow for everybody; who comes waits for the step that runs.
OWN = {"least_chunk": 128, "alone_step_seconds": 0.2, "max_num_batched_tokens": 2048}

NETWORK: dict[str, dict[str, Any]] = {
    "--host": {"help": "address to listen on (default 127.0.0.1: this machine only)"},
    "--port": {"type": int, "metavar": "N", "help": "default 8000; 0: any free one"},
    "--ssl-certfile": {"metavar": "PATH", "help": "TLS certificate chain"},
    "--ssl-keyfile": {"metavar": "PATH", "help": "its private key"},
    "--ssl-ca-certs": {"metavar": "PATH", "help": "ask clients for certificates of these"},
    "--cors-origin": {"action": "append", "metavar": "URL", "help": "let pages of this origin ask"},
    "--api-key": {
        "action": "append",
        "metavar": "KEY",
        "help": f"ask for a key (repeatable; also in ${KEY_VARIABLE}, split at spaces)",
    },
    "--api-key-file": {"metavar": "PATH", "help": "keys, one a line"},
}
SERVICE: dict[str, dict[str, Any]] = {
    "--served-model-name": {"nargs": "+", "metavar": "NAME", "help": "names that clients may use"},
    "--chat-template": {"metavar": "PATH", "help": "jinja file instead of the checkpoint's own"},
    "--tool-call-parser": {
        "choices": TOOL_PARSERS,
        "help": "the format of the model's calls (default auto: as its template shows)",
    },
    "--reasoning-parser": {
        "choices": REASONING_PARSERS,
        "help": "whether the model's reasoning is split off (default auto: as its template shows)",
    },
    "--pooling": {
        "choices": ("mean", "last"),
        "help": "for embeddings (default: as the checkpoint says, else last)",
    },
    "--generation-config": {
        "choices": ("auto", "none"),
        "help": "sampling defaults of the checkpoint (default auto)",
    },
    "--drain-timeout": {"type": float, "metavar": "S", "help": "after SIGTERM (default 30)"},
    "--engine-timeout": {
        "type": float,
        "metavar": "S",
        "help": "restart an engine that stands still for so long (default 8)",
    },
    "--stream-interval": {
        "type": float,
        "metavar": "S",
        "help": "tokens of a stream that come faster are sent together (default 0.01; 0: never)",
    },
    "--metrics-compat": {"choices": ("vllm",), "action": "append", "help": "metrics' other names"},
    "--log-level": {"choices": ("debug", "info", "warning", "error"), "help": "default info"},
    "--log-prompts": {"action": "store_true", "help": "write prompts into the log"},
}
ALLOWED: dict[str, dict[str, Any]] = {
    "--allowed-attention": {
        "metavar": "NAMES",
        "help": "methods that a request may ask for, e.g. dense,window; or own (default: any)",
    },
    "--least-chunk": {
        "type": int,
        "metavar": "N",
        "help": f"smallest chunks of chunked(...) in a request (default {OWN['least_chunk']})",
    },
    "--alone-step-seconds": {
        "type": float,
        "metavar": "S",
        "help": f"of long prompts' steps while alone (default {OWN['alone_step_seconds']})",
    },
}
LIMITS: dict[str, dict[str, Any]] = {
    "--max-body-size": {"metavar": "SIZE", "help": "of a request (default 16MiB)"},
    "--max-bodies-size": {
        "metavar": "SIZE",
        "help": "of all large requests at once (default 256MiB)",
    },
    "--body-timeout": {"type": float, "metavar": "S", "help": "to send a request (default 60)"},
    "--send-timeout": {"type": float, "metavar": "S", "help": "for a reply unread (default 60)"},
    "--max-prompts": {"type": int, "metavar": "N", "help": "of one request (default 256)"},
    "--max-sequences": {"type": int, "metavar": "N", "help": "prompts x n (default 256)"},
    "--max-output-tokens": {
        "type": int,
        "metavar": "N",
        "help": "prompts x n x max_tokens (default 1000000)",
    },
    "--max-queued-requests": {"type": int, "metavar": "N", "help": "waiting (default 256)"},
    "--max-queued-tokens": {
        "type": int,
        "metavar": "N",
        "help": "of waiting prompts (default: four times the pages)",
    },
}


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "serve",
        help="an OpenAI-compatible HTTP server",
        description="Serve a model over HTTP, for clients of OpenAI or vLLM.",
    )
    parser.add_argument("model", help="a checkpoint folder, or `demo` for the shipped one")
    add_group(parser, "network", NETWORK)
    add_group(parser, "service", SERVICE)
    add_group(parser, "limits", LIMITS | ALLOWED)
    add_group(parser, "engine", ENGINE)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything cheap, take the address, then load and serve until a signal comes."""
    from .. import signals
    from ..leaving import leave_threads
    from ..logs import secure_streams

    signals.raise_early()
    try:
        secure_streams()
        status = serve(args)
    except signals.Terminated:
        status = EXIT_OK
    signals.ignore()
    leave_threads(status)
    return status


def serve(args: argparse.Namespace) -> int:
    """As `run`; Terminated for a signal that comes before it serves."""
    import asyncio

    config = server_config(args)
    from ..listen import Listen
    from ..listener import raise_limit
    from ..logs import configure_logs
    from ..start import start

    configure_logs(getattr(args, "log_level", "info"))
    listen = Listen(**listen_options(args))
    try:
        _ = listen.tls
    except ValueError as error:
        raise UsageError(str(error)) from error
    raise_limit()
    try:
        sock = listen.open()
    except OSError as error:
        message = f"cannot listen on {listen.host}:{listen.port}: {error.strerror or error}"
        raise UsageError(message) from error
    failure = asyncio.run(start(config, listen, sock))
    if failure is not None:
        print(f"saccade: {failure.message}", file=sys.stderr)
    return EXIT_OK if failure is None else EXIT_FAILED


def server_config(args: argparse.Namespace) -> ServerConfig:
    """The options as settings. UsageError for one that cannot be."""
    from ..config import ServerConfig

    found = given(args, SERVICE)
    names = tuple(found.get("served_model_name", ()))
    if not all(names):
        raise UsageError("--served-model-name must not be empty")
    settings: dict[str, Any] = {
        "engine": engine_options(args),
        "names": names,
        "api_keys": tuple(api_keys(args)),
        "cors_origins": cors_origins(args),
        "limits": limits(args),
        "model_defaults": found.get("generation_config", "auto") == "auto",
        "metrics_compat": tuple(found.get("metrics_compat", ())),
        "log_prompts": found.get("log_prompts", False),
    }
    for option in ("tool_call_parser", "reasoning_parser"):
        if option in found:
            settings[option.replace("_call", "")] = found[option]
    settings["pooling"] = found.get("pooling")
    if "stream_interval" in found:
        settings["pace_s"] = positive(found["stream_interval"], "stream_interval", zero=True)
    if "chat_template" in found:
        settings["chat_template"] = read_text(found["chat_template"], "--chat-template")
    for option, name in (("drain_timeout", "drain_s"), ("engine_timeout", "silence_s")):
        if option in found:
            settings[name] = positive(found[option], option)
    return ServerConfig(args.model, **settings)


def cors_origins(args: argparse.Namespace) -> tuple[str, ...]:
    """Origins as browsers write them. UsageError for one that no page can have."""
    origins = tuple(getattr(args, "cors_origin", ()))
    for origin in origins:
        if origin not in ("*", "null") and not re.fullmatch(_ORIGIN, origin):
            forms = (
                "like https://app.example or http://localhost:3000 (small letters, no path), or *"
            )
            raise UsageError(f"--cors-origin must be {forms}, not {origin!r}")
    return origins


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of Engine, checked as far as that is possible without the model."""
    from ...engine.config import EngineConfig

    options: dict[str, Any] = OWN | given(args, ENGINE | ALLOWED)
    try:
        if "kv_cache_memory" in options:
            options["kv_cache_memory"] = parse_size(options["kv_cache_memory"])
        EngineConfig(args.model, **options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return options


def limits(args: argparse.Namespace) -> Limits:
    """The limits that were given, in place of the defaults."""
    from ..limits import Limits

    found = given(args, LIMITS)
    fields: dict[str, Any] = {}
    for option, name in (("max_body_size", "body_bytes"), ("max_bodies_size", "bodies_bytes")):
        if option in found:
            try:
                fields[name] = positive(parse_size(found.pop(option)), option)
            except ValueError as error:
                raise UsageError(f"--{option.replace('_', '-')}: {error}") from error
    for option, name in (("body_timeout", "body_s"), ("send_timeout", "send_s")):
        if option in found:
            fields[name] = positive(found.pop(option), option)
    fields |= {name.removeprefix("max_"): positive(n, name) for name, n in found.items()}
    return Limits(**fields)


def api_keys(args: argparse.Namespace) -> list[str]:
    """Keys from the options, the file and the environment. UsageError for an empty one."""
    keys = [*getattr(args, "api_key", ()), *os.environ.get(KEY_VARIABLE, "").split()]
    if (path := getattr(args, "api_key_file", None)) is not None:
        lines = [line.strip() for line in read_text(path, "--api-key-file").splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise UsageError(f"--api-key-file {path} holds no key")
        keys += found
    if not all(key.strip() for key in keys):
        raise UsageError("--api-key must not be empty")
    if any(re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", key.strip()) for key in keys):
        raise UsageError("an API key must be UTF-8 without control characters")
    return [key.strip() for key in keys]


def listen_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of Listen. UsageError for files that are missing or half given."""
    names = {"ssl_certfile": "certificate", "ssl_keyfile": "key", "ssl_ca_certs": "client_ca"}
    found = {"host": "host", "port": "port", **names}
    options = {new: getattr(args, old) for old, new in found.items() if hasattr(args, old)}
    for old, new in names.items():
        if new in options and not Path(options[new]).is_file():
            raise UsageError(f"--{old.replace('_', '-')}: no such file: {options[new]}")
    if "certificate" not in options and ("key" in options or "client_ca" in options):
        raise UsageError("--ssl-keyfile and --ssl-ca-certs need --ssl-certfile")
    if not options.get("host", "any").strip():  # a variable that is not set; to the OS: everywhere
        raise UsageError("--host must not be empty; write 0.0.0.0 to listen on all addresses")
    if not 0 <= options.get("port", 0) < 1 << 16:
        raise UsageError("--port must be from 0 to 65535")
    return options


def read_text(path: str, option: str) -> str:
    """A small text file, without the mark that some editors put in front. UsageError naming the
    option when it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option}: {error}") from error


def positive(value: float, name: str, zero: bool = False) -> Any:
    """The value. UsageError unless it is above zero (or zero, where that means something) and
    finite.
    """
    if not (0 < value < float("inf") or (zero and value == 0)):
        least = "at least" if zero else "above"
        raise UsageError(f"--{name.replace('_', '-')} must be {least} 0, not {value}")
    return value
