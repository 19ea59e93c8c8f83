"""Numbers as the field writes them: accuracy in %, latency in ms with three significant digits, sizes in kB and MB.

A number that was not measured (None) is an en dash, never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"

RUNTIMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}


def accuracy_decimals(images: int) -> int:
    """Decimals of an accuracy in % that ``images`` test images carry: one image is 0.1 % at 1,000 of them."""
    return 1 if images < 2000 else 2


def percent(value: float | None, decimals: int = 1) -> str:
    """A share in [0, 1] in per cent, without the sign: ``97.5``."""
    return NOT_MEASURED if value is None else _signed(f"{100 * value:.{decimals}f}")


def points(value: float | None, decimals: int = 1) -> str:
    """A difference of two shares in percentage points with its sign: ``+0.3``; zero has none."""
    if value is None:
        return NOT_MEASURED
    text = f"{100 * value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else _signed(text)


def interval(low: float | None, high: float | None, decimals: int = 1) -> str:
    """An interval of percentage points: ``−0.8 to +0.3``."""
    return NOT_MEASURED if low is None or high is None else f"{points(low, decimals)} to {points(high, decimals)}"


def significant(value: float, digits: int = 3) -> str:
    """``value`` > 0 with ``digits`` significant digits and no exponent."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return _signed(f"{rounded:,.{max(decimals, 0)}f}")


def milliseconds(value: float | None) -> str:
    """Milliseconds with three significant digits, without the unit."""
    return NOT_MEASURED if value is None else significant(value)


def size(value: float | None) -> str:
    """Bytes as kB (10^3) or MB (10^6)."""
    if value is None:
        return NOT_MEASURED
    return f"{significant(value / 1e6)} MB" if value >= 999_500 else f"{significant(value / 1e3)} kB"


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def throughput(value: float | None) -> str:
    """Images per second with at least three significant digits."""
    return count(value) if value is None or value >= 100 else significant(value)


def ratio(value: float) -> str:
    """How many times: ``3.6×``, ``12×``."""
    return f"{value:,.0f}{TIMES}" if value >= 9.95 else f"{value:.1f}{TIMES}"


def logit_error(value: float | None) -> str:
    """An absolute difference of logits; small ones in scientific notation."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.1e}".replace("-", MINUS) if 0 < value < 1e-3 else significant(value, 2)


def runtime(name: str) -> str:
    """The runtime's own spelling."""
    return RUNTIMES.get(name, name)


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, text) pairs, in order; lists are joined, None is an en dash."""
    pairs: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            pairs += flatten(item, f"{name}.")
        else:
            pairs.append((name, plain(item)))
    return pairs


def plain(value: Any) -> str:
    """One setting as text."""
    match value:
        case None | "":
            text = NOT_MEASURED
        case bool():
            text = "yes" if value else "no"
        case int():
            text = _signed(f"{value:,}" if abs(value) >= 10_000 else str(value))
        case float():
            text = _signed(f"{value:.6g}")
        case Mapping():
            text = ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or NOT_MEASURED
        case str():
            text = value
        case Sequence():
            text = ", ".join(plain(item) for item in value) or NOT_MEASURED
        case _:
            text = str(value)
    return text


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
