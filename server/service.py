"""Service: what all routes share. One object, made at start, handed down by the gate."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request

from .. import __version__
from ..engine.checkpoint.config_json import read_config
from ..engine.checkpoint.files import find_checkpoint
from ..engine.tokenizer import Tokenizer
from ..engine.tokenizer_files import MODEL_FILE
from .call import Call
from .chat import ChatTemplate
from .client import EngineClient, State
from .config import ServerConfig
from .defaults import read_defaults, read_pooling
from .formats import Formats
from .inbox import UnavailableError
from .limits import Admission, Bodies
from .metrics import Metrics
from .prompts import PromptReader
from .protocol.errors import ApiError, from_engine, unavailable
from .tokens import TokenTexts
from .wire import EngineInfo


class Service:
    """The engine, the tokenizer, the budgets, and the calls in flight."""

    def __init__(self, config: ServerConfig, client: EngineClient) -> None:
        """Reads what the HTTP side needs of the checkpoint. CheckpointError when it is unusable.

        client: whoever gives it closes it.
        """
        folder = find_checkpoint(config.model)
        read_config(folder)
        self.config = config
        self.created = int(time.time())
        self.draining = False
        self.names = config.names or (default_name(config.model, folder),)
        self.client = client
        self.admission = Admission(config.limits)
        self.bodies = Bodies(config.limits.bodies_bytes)
        tokenizer = Tokenizer.from_folder(folder) if (folder / MODEL_FILE).exists() else None
        template = ChatTemplate.from_folder(folder, config.chat_template) if tokenizer else None
        self.has_chat_template = template is not None and template.exists
        self.prompts = PromptReader(tokenizer, template)
        self.texts = TokenTexts(tokenizer)
        self.formats = Formats.of(template, tokenizer, config.tool_parser, config.reasoning_parser)
        self.defaults: dict[str, Any] = read_defaults(folder) if config.model_defaults else {}
        self.pooling = config.pooling or read_pooling(folder)
        self.metrics = Metrics(self)
        self._calls: dict[str, set[Call]] = {}  # by the exchange's id

    def close(self) -> None:
        """Waits for nothing."""
        self.prompts.close()

    @property
    def ready(self) -> bool:
        """Whether a request that comes now is taken."""
        return self.client.state is State.READY and not self.draining

    @property
    def in_flight(self) -> int:
        """Calls that have not ended."""
        return sum(map(len, self._calls.values()))

    def engine_info(self) -> EngineInfo:
        """What is known of the engine. ApiError 503 while it serves nobody."""
        if self.draining:
            raise self.shutting_down()
        try:
            return self.client.check_ready()
        except UnavailableError as error:
            raise from_engine(error) from None

    def shutting_down(self) -> ApiError:
        """What a request is told that the server does not answer before it ends."""
        message = "The server is shutting down."
        return unavailable(message, self.config.drain_s, "shutting_down")

    def aborted(self) -> ApiError:
        """What the client of an aborted request is told that has no half an answer.

        400: clients try a 409 or a 5xx again, which is what an /abort is not for.
        """
        if self.draining:
            return self.shutting_down()
        return ApiError(400, "The request was aborted.", code="aborted")

    def check_room(self) -> None:
        """Refuses a request before its body is looked at, where not even one sequence has room: so
        that it takes no time to say no. ApiError 503.
        """
        self.admission.check(self.engine_info(), 1)

    def model_name(self, asked: str | None) -> str:
        """The name to answer with. ApiError 404 for a model that is not here."""
        if asked is None:
            return self.names[0]
        if asked not in self.names:
            known = ", ".join(self.names)
            message = f"There is no model {asked[:200]!r} here; there is: {known}."
            raise ApiError(404, message, "model", "model_not_found")
        return asked

    @property
    def fingerprint(self) -> str:
        """Changes when the same seed may give other tokens: with version, policy or type."""
        info = self.client.info
        parts = (__version__, info.attention if info else "", info.dtype if info else "")
        return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    # ---- calls ----

    def enter(self, call: Call) -> None:
        """A call begins."""
        self._calls.setdefault(call.exchange.id, set()).add(call)

    def leave(self, call: Call) -> None:
        """A call has ended: it is counted, and its figures go to the log."""
        calls = self._calls.get(call.exchange.id, set())
        calls.discard(call)
        if not calls:
            self._calls.pop(call.exchange.id, None)
        call.exchange.fields |= call.figures()
        self.metrics.note_call(call)

    def abort(self, id: str, owner: int) -> int:
        """Ends the calls of a request id that this API key has made; how many there were."""
        mine = [call for call in self._calls.get(id, ()) if call.exchange.owner == owner]
        for call in mine:
            call.abort()
        return len(mine)

    def abort_all(self) -> None:
        """Ends every call."""
        for calls in self._calls.values():
            for call in calls:
                call.abort()


def service_of(request: Request) -> Service:
    """The service that the gate has put there."""
    found: Service = request.scope["saccade.service"]
    return found


def default_name(model: str, folder: Path) -> str:
    """What a model calls itself unless told otherwise: its folder's name."""
    return model if model == "demo" else folder.resolve().name or model
