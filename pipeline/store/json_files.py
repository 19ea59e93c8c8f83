"""JSON on disk, stricter than Python's own."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from pipeline.errors import DataError
from pipeline.portable.files import atomic_file
from pipeline.portable.text import brief

_DIGITS = 20  # of 64 bits and a sign


def write_json(path: Path, value: Any, *, one_line_each: bool = False) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused (ValueError), because JSON has neither.

    Args:
        one_line_each: for a mapping with many rows: indent only its first two levels, and put each row on one line.
    """
    text = _by_line(value) if one_line_each else _dumps(value, indent=2)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _dumps(value: Any, **options: Any) -> str:
    return json.dumps(value, allow_nan=False, **options)


def _by_line(value: Mapping[str, Any]) -> str:
    entries = []
    for name, inner in value.items():
        text = _dumps(inner)
        if isinstance(inner, list) and any(isinstance(item, (dict, list)) for item in inner):
            text = "[\n" + ",\n".join(f"    {_dumps(item)}" for item in inner) + "\n  ]"
        elif isinstance(inner, dict) and any(isinstance(item, (dict, list)) for item in inner.values()):
            text = "{\n" + ",\n".join(f"    {_dumps(key)}: {_dumps(item)}" for key, item in inner.items()) + "\n  }"
        entries.append(f"  {_dumps(name)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}"


def read_json(path: Path, remedy: str = "run `dvc repro`") -> Any:
    """Read a JSON artifact.

    Args:
        remedy: what to do about a file that cannot be read.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; {remedy}") from None
    except ValueError as error:
        raise DataError(f"{path} is not readable as JSON ({brief(error)}); {remedy}") from None


def parse_json(content: bytes) -> Any:
    """Parse JSON in UTF-8, stricter than Python: values that would fail later, far from the file, are refused.

    Raises:
        ValueError: it is no JSON, or holds a number that is not finite or needs more than 64 bits, text that UTF-8
            cannot hold, or lists within lists without end.
    """
    from_json(content, allow_inf_nan=False)  # refuses everything except too large numbers
    return json.loads(content, parse_float=_finite, parse_int=_of_64_bits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{brief(text, 20)} is too large")
    return value


def _of_64_bits(text: str) -> int:
    if len(text) > _DIGITS or abs(int(text)) >= 2**64:
        raise ValueError("a number needs more than 64 bits")
    return int(text)
