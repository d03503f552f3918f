"""Names and values as Perfetto's JSON importer takes them (v52). Imports nothing of ours.

Escapes in names are shown as they stand. In arguments they are read, but for the one of a NUL;
an argument that is NaN loses all of its span's arguments, an int of 2^63 becomes another one, and
an empty list is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

_UNSAFE = re.compile(r'[\x00-\x1f\x7f\\"]')


def safe(text: str) -> str:
    """A name as Perfetto shows it right: no escapes, no control characters."""
    return _UNSAFE.sub(lambda found: {'"': "'", "\\": "/"}.get(found.group(), "\u00b7"), text)


def shown(value: Any) -> Any:
    """An argument's value as JSON that Perfetto takes; what it cannot show becomes text."""
    if isinstance(value, str):
        return value.replace("\x00", "\u00b7")
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {safe(str(key)): shown(each) for key, each in value.items()} or "{}"
    if isinstance(value, (list, tuple)):
        return [shown(each) for each in value] or "[]"
    return str(value)


def dumps(value: Any) -> str:
    """JSON in one line, raw UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
