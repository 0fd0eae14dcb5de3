"""Loaded by Python itself into the engine process of test_injection.py: makes its functions raise.

A prompt that begins with three times the token FIRST + k is poison to hook k, and to no other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

FIRST = 100
SCHEDULER, RUNNER = "saccade.engine.scheduler:Scheduler", "saccade.engine.runner:ModelRunner"
GENERATION, LIVE = "saccade.engine.generation:Generation", "saccade.server.deltas:LiveRequest"


def _runs(runs: Any) -> Any:
    return [run.request.prompt for run, _ in runs]


# name -> (class, method, what of the call's arguments are prompts)
HOOKS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "add": (SCHEDULER, "add", lambda self, request: [request.prompt]),
    "run": (RUNNER, "run", lambda self, chunks, copies: [c.request.prompt for c in chunks]),
    "attend": ("saccade.engine.forward:Forward", "attend",
               lambda self, *_: _runs(self._batch.runs)),
    "logits": ("saccade.engine.runner:StepResult", "last_logits",
               lambda self, chunks: _runs(self._batch.runs)),
    "not_finite": ("saccade.engine.runner:StepResult", "not_finite",
                   lambda self: _runs(self._batch.runs)),
    "note_step": (GENERATION, "note_step", lambda self: [self.prompt_ids]),
    "take": (GENERATION, "take", lambda self, *_: [self.prompt_ids]),
    "close": (GENERATION, "close", lambda self, branch: [self.prompt_ids]),
    "ending": (GENERATION, "ending", lambda self: [self.prompt_ids]),
    "delta": (LIVE, "delta", lambda self: [self._generation.prompt_ids]),
    "reads": ("saccade.engine.steps:Steps", "_note_reads",
              lambda self, result: _runs(result._batch.runs)),
}  # fmt: skip
TOGETHER: dict[str, tuple[str, str, Callable[..., Any]]] = {  # nobody's fault: everybody's end
    "schedule": (SCHEDULER, "schedule", lambda self: [r.prompt for r in self.requests.values()]),
}


def poison(number: int) -> list[int]:
    """The prompt that hook `number` cannot bear."""
    return [FIRST + number] * 3


def install() -> None:
    """Wraps every hook."""
    for number, (where, name, prompts) in enumerate({**HOOKS, **TOGETHER}.values()):
        module, _, class_name = where.partition(":")
        owner = getattr(import_module(module), class_name)
        setattr(owner, name, _wrapped(getattr(owner, name), prompts, poison(number)))


def _wrapped(inner: Callable[..., Any], prompts: Callable[..., Any], bad: list[int]) -> Any:
    def call(*args: Any, **keywords: Any) -> Any:
        if any(list(prompt[:3]) == bad for prompt in prompts(*args)):
            raise RuntimeError(f"injected: secret of {inner.__qualname__}")
        return inner(*args, **keywords)

    return call


if "saccade.server.worker" in sys.orig_argv:
    install()
