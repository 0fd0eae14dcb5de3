"""Refusals: one exception, one shape, one function that writes it."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import msgspec

from ...engine.params import RULE_OF
from ..inbox import RefusedError, UnavailableError
from ..wire import Piece

if TYPE_CHECKING:
    from ...engine.errors import RequestError

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "internal_server_error",
    503: "service_unavailable",
}
_LONGEST = 2000  # characters of a message: what it quotes of a request may be a megabyte
_PAIR = len("\\ud83d\\ude00")
_PATH = re.compile(r"^(.*?)(?: - at (?:`key` in )?`\$\.?(.*)`)?$", re.DOTALL)


# Of `structured_outputs`, whose unknown fields are refused.
KNOWN_FORMS = "json, regex, choice, grammar, json_object"


class ErrorInfo(msgspec.Struct):
    """What went wrong; param: the field at fault; code: a word for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(msgspec.Struct):
    """Every reply with a status of 400 or more."""

    error: ErrorInfo


class ApiError(Exception):
    """A reply that is not what the client hoped for."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        super().__init__(message)
        self.status = status
        self.info = ErrorInfo(message, _TYPES.get(status, "invalid_request_error"), param, code)
        self.headers = headers or {}

    def body(self) -> bytes:
        """The reply as JSON."""
        return msgspec.json.encode(ErrorReply(self.info))


def unavailable(message: str, retry_s: float, code: str = "engine_unavailable") -> ApiError:
    """503, and when to come again."""
    return ApiError(
        503, message, code=code, headers={"Retry-After": str(max(1, math.ceil(retry_s)))}
    )


def from_request_error(error: RequestError, names: dict[str, str] | None = None) -> ApiError:
    """400 in the engine's words; names: the engine's field -> what the client calls it."""
    message, param = renamed(str(error), error.param, names)
    return ApiError(400, message, param, "invalid_value")


def renamed(
    message: str, param: str | None, names: dict[str, str] | None
) -> tuple[str, str | None]:
    """A refusal with the client's name of the field at fault."""
    if param is None or not names or param not in names:
        return message, param
    own = names[param]
    return re.sub(rf"^{re.escape(param)}\b", own, message), own


def in_words_of(error: ApiError, names: dict[str, str]) -> ApiError:
    """An error with a route's own names of the fields: as above."""
    message, param = renamed(error.info.message, error.info.param, names)
    return ApiError(error.status, message, param, error.info.code, error.headers)


def from_engine(
    error: UnavailableError | RefusedError, names: dict[str, str] | None = None
) -> ApiError:
    """What the engine process, or the lack of it, means for the client; names: as above."""
    if isinstance(error, UnavailableError):
        return unavailable(str(error), error.retry_s, error.code)
    report = error.report
    if report.fault:
        return ApiError(500, report.message, code="engine_error")
    if report.busy:
        return unavailable(report.message, 2.0, "overloaded")
    message, param = renamed(report.message, report.param, names)
    return ApiError(400, message, param, "invalid_value")


def from_failure(piece: Piece, names: dict[str, str] | None = None) -> ApiError:
    """What a completion that failed means for the client: 400 where its own request is to blame."""
    message = piece.error or "The engine failed."
    if piece.param is None:
        return ApiError(500, message, code="engine_error")
    message, param = renamed(message, piece.param, names)
    return ApiError(400, message, param, "invalid_value")


def from_msgspec(error: Exception, content: bytes) -> ApiError:
    """400 for a body that cannot be read, naming the field where there is one."""
    if isinstance(error, msgspec.ValidationError):
        found = _PATH.match(str(error))
        text, path = (found[1], found[2]) if found else (str(error), None)
        if not path:
            missing = re.search(r"missing required field `(.*)`", text)
            path = missing[1] if missing else None
        if text.endswith("out of range") and (rule := RULE_OF.get(path or "")):
            return ApiError(400, f"{path} must be {rule.allowed}", path, "invalid_value")
        if path == "structured_outputs" and "unknown field" in text:
            text = f"{text}; the forms of this server are {KNOWN_FORMS}"
        where = f"{path}: " if path else ""
        return ApiError(400, f"{where}{text[:1].lower()}{text[1:]}", path or None, "invalid_type")
    if isinstance(error, RecursionError):
        return ApiError(400, "The body is nested too deeply.", code="invalid_json")
    why = f"{error!s:.200}"
    if isinstance(error, UnicodeDecodeError):  # its position is one within a string
        why = f"a string is not UTF-8 ({error.reason} 0x{error.object[error.start]:02x})"
    elif "truncated" in why and _ends_in_surrogate(content):
        why = "a string holds half of a utf-16 surrogate pair"
    return ApiError(400, f"The body is not valid JSON: {why}", code="invalid_json")


def _ends_in_surrogate(content: bytes) -> bool:
    """Whether msgspec takes half of a surrogate pair for the end of the body: it does where less is
    left than the other half would need.
    """
    if b"\\u" not in content[-_PAIR:]:
        return False
    try:
        msgspec.json.decode(content + b" " * _PAIR)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return "surrogate" in str(error)
    return False
