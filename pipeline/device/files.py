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
    except (OSError, ValueError):
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
    """What ``tell`` wrote; None for any other line."""
    if not line.startswith(MARK):
        return None
    try:
        values = json.loads(line.removeprefix(MARK))
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
