"""Small files that several processes of a device share, and the lines that a device writes for its client."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Login scripts may write to standard output too; only lines that begin so are meant for the client.
MARK = "energykd "


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent, also after a power failure."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is not there or does not hold one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def tell(values: Mapping[str, Any]) -> None:
    """Write one line for the client, at once.

    Raises:
        BrokenPipeError: the client has gone.
    """
    sys.stdout.write(f"{MARK}{json.dumps(values)}\n")
    sys.stdout.flush()


def told(line: str) -> dict[str, Any] | None:
    """What ``tell`` wrote, ready for a terminal; None for any other line."""
    if not line.startswith(MARK):
        return None
    try:
        values = printable(json.loads(line.removeprefix(MARK)))
    except (RecursionError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def printable(value: Any) -> Any:
    """A value of JSON with every control character in it escaped: another machine wrote it, and we show it.

    Raises:
        RecursionError: it is nested without end.
    """
    if isinstance(value, str):
        return value if value.isprintable() else "".join(s if s.isprintable() else repr(s)[1:-1] for s in value)
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, list) else value
