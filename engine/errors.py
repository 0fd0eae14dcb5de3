"""The engine's exceptions: each one belongs to somebody who can act on it."""

from __future__ import annotations


class SaccadeError(Exception):
    """Base of every error that Saccade raises on purpose."""


class RequestError(SaccadeError, ValueError):
    """A request asks for something impossible; `param` names the offending field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class CheckpointError(SaccadeError):
    """A checkpoint cannot be loaded; the message names the file and, where known, the tensor."""


class CapacityError(SaccadeError):
    """Memory does not suffice; the message carries the numbers."""
