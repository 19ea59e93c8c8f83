"""The one OpenVINO core of this process."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def openvino_core() -> Any:
    """The ``openvino.Core`` that everything in this process shares.

    The CPU plugin of a core puts the thread's signal stack aside and another one in its place. With several cores, one
    that ends after another puts back a stack that is gone, and the next signal that Python handles, Ctrl-C or the end
    of a child process, is a segmentation fault (seen with OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()
