"""Format numbers: accuracy in %, latency in ms with three significant digits, sizes in kB and MB.

A missing number (None) is an en dash, never a zero.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"

_RUNTIMES = {
    **{"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"},
    **{"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"},
}


def accuracy_decimals(images: int) -> int:
    """Number of significant decimals of an accuracy in %: one of 1,000 test images is 0.1 %."""
    return 1 if images < 2000 else 2


def percent(value: float | None, decimals: int = 1) -> str:
    """A share in [0, 1] as a percentage, without "%": ``97.5``."""
    return NOT_MEASURED if value is None else _signed(f"{100 * value:.{decimals}f}")


def points(value: float | None, decimals: int = 1) -> str:
    """A difference of two shares in percentage points, with sign: ``+0.3``; zero has no sign."""
    if value is None:
        return NOT_MEASURED
    text = f"{100 * value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else _signed(text)


def interval(low: float | None, high: float | None, decimals: int = 1) -> str:
    """An interval of percentage points: ``−0.8 to +0.3``."""
    return NOT_MEASURED if low is None or high is None else f"{points(low, decimals)} to {points(high, decimals)}"


def significant(value: float, digits: int = 3) -> str:
    """``value`` >= 0 with ``digits`` significant digits and no exponent."""
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


def number(value: float | None) -> str:
    """A whole number with thousands separated."""
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def count(value: float) -> str:
    """A large number in thousands, millions or billions, with three significant digits: ``12.5 M``."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{significant(value / unit)} {name}"
    return number(value)


def throughput(value: float | None) -> str:
    """Images per second with at least three significant digits."""
    return number(value) if value is None or value >= 100 else significant(value)


def ratio(value: float) -> str:
    """A ratio: ``3.6×``, ``12×``."""
    return f"{value:,.0f}{TIMES}" if value >= 9.95 else f"{value:.1f}{TIMES}"


def logit_error(value: float | None) -> str:
    """An absolute difference of logits; small ones in scientific notation."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.1e}".replace("-", MINUS) if 0 < value < 1e-3 else significant(value, 2)


def runtime(name: str) -> str:
    """Display name of a runtime."""
    return _RUNTIMES.get(name, name)


def executed(precision: str | None) -> str:
    """``mixed:int8=20,fp32=1`` as ``int8 20, fp32 1``: number of layers per precision."""
    if precision is None:
        return NOT_MEASURED
    return precision.removeprefix("mixed:").replace("=", " ").replace(",", ", ")


def verdict(name: str | None) -> str:
    """``too_few_samples`` as ``too few samples``."""
    return NOT_MEASURED if name is None else name.replace("_", " ")


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, text) pairs, in order; lists are joined, None is an en dash."""
    pairs: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        pairs += flatten(item, f"{name}.") if isinstance(item, Mapping) else [(name, plain(item))]
    return pairs


def known(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """As :func:`flatten`, without None values, because many properties of a machine are unknown."""
    return [pair for pair in flatten(value) if pair[1] != NOT_MEASURED]


def plain(value: Any) -> str:
    """One setting as text."""
    match value:
        case bool():
            text = "yes" if value else "no"
        case int():
            text = _signed(f"{value:,}" if abs(value) >= 10_000 else str(value))
        case float():
            text = _signed(f"{value:.6g}")
        case Mapping():
            text = ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
        case str():
            text = value
        case Sequence():
            text = ", ".join(plain(item) for item in value)
        case _:
            text = "" if value is None else str(value)
    return text or NOT_MEASURED


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
