"""/v1/embeddings: the request and the reply."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from ...engine.checks import INT32_MAX
from ...engine.params import POOLINGS
from .completions import PROMPT_SCHEMA, PromptField
from .errors import ApiError

FORMATS = ("float", "base64")
_DIMENSIONS = Meta(extra_json_schema={"minimum": 1, "maximum": INT32_MAX})


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """Texts of which vectors are wanted; null is the same as left out.

    dimensions: of each vector the first so many (of use for models that were trained for it).
    pooling: how a vector is made of a text's rows. normalize: to length 1, which is the default.
    """

    SCHEMAS: ClassVar[dict[str, Any]] = {"input": PROMPT_SCHEMA}

    model: str | None = None
    input: PromptField
    encoding_format: Annotated[str | None, Meta(extra_json_schema={"enum": [*FORMATS, None]})] = (
        None
    )
    dimensions: Annotated[int | None, _DIMENSIONS] = None
    pooling: Annotated[str | None, Meta(extra_json_schema={"enum": [*POOLINGS, None]})] = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int | None, Meta(extra_json_schema={"minimum": -1})] = None
    attention: str | None = None
    cache_salt: str | None = None
    priority: int | None = None
    user: str | None = None

    def check_fields(self, size: int) -> None:
        """Refuses what no other door checks; size: of the model's vectors. ApiError."""
        for name, allowed in (("encoding_format", FORMATS), ("pooling", POOLINGS)):
            if (value := getattr(self, name)) is not None and value not in allowed:
                message = f"{name} must be {' or '.join(allowed)}, got {value[:100]!r}"
                raise ApiError(400, message, name, "invalid_value")
        if self.dimensions is not None and not 1 <= self.dimensions <= size:
            message = f"dimensions must be from 1 to {size}, got {self.dimensions}"
            raise ApiError(400, message, "dimensions", "invalid_value")


class Embedding(msgspec.Struct, kw_only=True):
    """A vector: numbers, or in base64 their bytes as little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(msgspec.Struct):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, kw_only=True):
    """The reply."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
