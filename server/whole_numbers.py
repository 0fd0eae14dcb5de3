"""Integer fields of a body that say `2.0`: a whole number in JSON, as clients without integers
write it, and what other servers take.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from typing import get_type_hints

import msgspec

# A number of JSON with a fraction or an exponent; any other is not ours, or an integer already.
_FLOAT = re.compile(r"-?\d{1,20}(?:\.\d{1,20}(?:[eE][+-]?\d{1,3})?|[eE][+-]?\d{1,3})")


def with_whole_numbers(content: bytes, shape: type) -> bytes | None:
    """The body with such fields of `shape` as integers, all else as it is; None: there is none.

    Only a body's own fields, not what lies within them. msgspec's errors for a body that is none.
    """
    fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    found = False
    for name in _integers(shape) & fields.keys():
        text = bytes(fields[name]).decode().strip()
        if _FLOAT.fullmatch(text) and (number := Decimal(text)) == int(number):
            fields[name] = msgspec.Raw(b"%d" % int(number))
            found = True
    return msgspec.json.encode(fields) if found else None


@cache
def _integers(shape: type) -> frozenset[str]:
    """Fields that take an integer, or null, and no other number."""
    return frozenset(
        name for name, hint in get_type_hints(shape).items() if hint in (int, int | None)
    )
