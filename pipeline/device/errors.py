"""What can go wrong with a benchmark. Each message is one sentence; callers map the classes to errors of their own."""

from __future__ import annotations


def brief(text: object, longest: int = 200) -> str:
    """As pipeline.errors.brief, which does not travel: other people's text as a short part of one printable line."""
    words = " ".join(str(text).split())
    shown = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in words[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[:longest]}..."


class DeviceError(Exception):
    """Base of the errors of this package."""


class PlanError(DeviceError):
    """A benchmark plan is contradictory or names what does not exist."""


class BenchmarkError(DeviceError):
    """Nothing could be measured."""
