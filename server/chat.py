"""Chat messages to one prompt, by the checkpoint's own template.

The result is the text that transformers' `apply_chat_template(tokenize=False)` gives. It carries
its special tokens, BOS too: encode it with `add_special_tokens=False`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..engine.errors import CheckpointError, RequestError
from ..engine.tokenizer_files import TEMPLATE_BYTES, read_chat_files
from .messages import Message, Traits, fit_messages, read_messages
from .sandbox import BoundedEnvironment, RenderLimits, TemplateFailed

# What `render` itself hands to a template; `kwargs` may not speak for it.
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
_NO_TEMPLATE = (
    "The model has no chat template: use /v1/completions, or start the server with --chat-template."
)


class ChatTemplate:
    """A checkpoint's templates, compiled; immutable, and safe to use from several threads.

    `render` may take as long as its limits allow: call it away from the event loop. `tool_source`
    is the template for chats with tools, from which `tools.guess_format` reads their format.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        tokens: Mapping[str, str] | None = None,
        limits: RenderLimits = RenderLimits(),  # noqa: B008 - frozen
    ) -> None:
        """templates: jinja sources by name ("default", "tool_use" ...), or none at all.

        tokens: special tokens by role, such as "bos_token". CheckpointError for a template that
        does not compile.
        """
        self._environment = BoundedEnvironment(limits)
        self._tokens = dict(tokens or {})
        self.tool_source = templates.get("tool_use", templates.get("default", ""))
        self._compiled = {name: self._compile(name, text) for name, text in templates.items()}
        self._traits = {
            name: Traits.of(self._probe(name), templates[name]) for name in self._compiled
        }

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        override: str | None = None,
        limits: RenderLimits = RenderLimits(),  # noqa: B008 - frozen
    ) -> ChatTemplate:
        """Of a checkpoint folder; `override` is a template that takes the place of its own.

        A checkpoint without a template is no error until somebody chats with it.
        """
        tokens, templates = read_chat_files(Path(folder))
        if override is not None:
            if len(override) > TEMPLATE_BYTES:
                raise CheckpointError(f"the chat template is longer than {TEMPLATE_BYTES} bytes")
            templates = {"default": override}
        return cls(templates, tokens, limits)

    @property
    def exists(self) -> bool:
        """Whether there is any template; without one `render` refuses."""
        return bool(self._compiled)

    @property
    def takes_several_calls(self) -> bool:
        """Whether one message of an assistant may hold several calls."""
        name = "tool_use" if "tool_use" in self._traits else "default"
        return name not in self._traits or self._traits[name].several

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. All arguments are plain JSON values, as the client sent them.

        continue_final_message: end inside of the last message, for the model to go on with it.
        kwargs: further variables of the template, such as enable_thinking. Raises RequestError:
        messages the template refuses (in its own words) or that hold more than text, a checkpoint
        without a template, time or size beyond the limits.
        """
        name = self._name(tools)
        if tools and not self._traits[name].tools:
            raise RequestError("The model's chat template has no place for tools.", "tools")
        chat = fit_messages(read_messages(messages), self._traits[name])
        variables = self._variables(kwargs)
        if continue_final_message and add_generation_prompt:
            message = "continue_final_message and add_generation_prompt exclude each other"
            raise RequestError(message, "continue_final_message")
        mark = Mark(chat) if continue_final_message else None
        text = self._run(
            name,
            variables
            | {
                "messages": chat,
                "tools": list(tools) if tools else None,
                "documents": list(documents) if documents else None,
                "add_generation_prompt": add_generation_prompt,
            },
        )
        return mark.cut(text) if mark is not None else text

    # ---- parts ----

    def _name(self, tools: Sequence[Any] | None) -> str:
        if not self._compiled:
            raise RequestError(_NO_TEMPLATE, "messages")
        if tools and "tool_use" in self._compiled:
            return "tool_use"
        if "default" in self._compiled:
            return "default"
        names = ", ".join(sorted(self._compiled))
        raise RequestError(f"The model has chat templates ({names}), none of them 'default'.")

    def _variables(self, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        for key in kwargs or ():
            if key in RESERVED or key in self._tokens:
                message = f"chat_template_kwargs must not hold {key!r}"
                raise RequestError(message, "chat_template_kwargs")
        return self._tokens | dict(kwargs or {})

    def _run(self, name: str, variables: Mapping[str, Any]) -> str:
        try:
            return self._environment.run(self._compiled[name], variables)
        except TemplateFailed as error:
            message = f"The chat template cannot render these messages: {error}."
            raise RequestError(message, "messages") from error

    def _compile(self, name: str, source: str) -> jinja2.Template:
        try:
            return self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise CheckpointError(f"chat template {name!r}: {error!s:.200}") from None

    def _probe(self, name: str) -> Any:
        def probe(messages: list[Message], tools: list[Message] | None = None) -> str | None:
            given = {"messages": messages, "tools": tools, "documents": None}
            try:
                return self._environment.run(
                    self._compiled[name], self._tokens | given | {"add_generation_prompt": False}
                )
            except TemplateFailed:
                return None

        return probe


class Mark:
    """A mark at the end of the last message's text, where the rendered prompt is to be cut."""

    def __init__(self, chat: list[Message]) -> None:
        """Appends the mark in place. RequestError when the last message has no text."""
        # Nobody can know it, so that no message can hold it. The space after it shows whether the
        # template trims what it renders.
        self._mark = f"\ue000{secrets.token_hex(16)}\ue000"
        last = chat[-1]
        content = last.get("content")
        if isinstance(content, list):
            part = next((part for part in reversed(content) if "text" in part), None)
            if part is not None:
                part["text"] += self._mark + " "
                return
        elif isinstance(content, str):
            last["content"] = content + self._mark + " "
            return
        message = "continue_final_message needs a last message with text to go on with"
        raise RequestError(message, "continue_final_message")

    def cut(self, text: str) -> str:
        """The prompt up to the mark."""
        at = text.rfind(self._mark)
        if at < 0:
            message = "The chat template leaves out the last message: it cannot be continued."
            raise RequestError(message, "continue_final_message")
        kept = text[at + len(self._mark) :].startswith(" ")
        return text[:at] if kept else text[:at].rstrip()
