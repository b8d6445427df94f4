"""Any record of graphopt as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_json(record: Any) -> str:
    """The record as strictly valid JSON, in which NaN and infinities are the strings ``nan`` and ``inf``."""
    return json.dumps(plain(record), indent=1, allow_nan=False)


def plain(value: Any) -> Any:
    """The value in dicts, lists, strings, numbers and None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value) if isinstance(value, Path) else _of_numpy(value)


def _of_numpy(value: Any) -> Any:
    """Scalars and arrays of numpy, which know how to become Python's; anything else as its text."""
    convert = getattr(value, "tolist", None)
    return plain(convert()) if convert is not None else str(value)
