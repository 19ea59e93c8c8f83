"""Processes that a test can kill."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A program of Python code that can import the project."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
