"""What is measured, by name, and which of it is compared with what."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.bare import BareForward, BareStep
from bench.measure import Comparison
from bench.ours import Ours, Scoring
from bench.reference import Reference
from bench.setting import Setting

Arm = Callable[[], float]
FRACTIONS = (0.2, 0.3, 0.4, 0.5, 1.0)


def _heda(fraction: float) -> str:
    return f"ours, HE-DA f = {fraction:g}"


# each is built once and then called once a round for its images/s; in this order, what is compared stands close
ARMS: dict[str, Callable[[Setting], Arm]] = {
    "reference": Reference,
    "ours": Ours,
    "ours, compiled": partial(Ours, compiled=True),
    "bare step": BareStep,
    "ours, memo half known": partial(Ours, half_known=True),
    "ours, compiled, memo half known": partial(Ours, compiled=True, half_known=True),
    "ours, files": partial(Ours, storage="files"),
    **{_heda(fraction): partial(Ours, fraction=fraction) for fraction in FRACTIONS},
    "scoring": Scoring,
    "bare forward": BareForward,
}

COMPARISONS = (
    Comparison("(b)/(a) ours / plain reference mode", "ours", "reference", at_least=3.0),
    Comparison("(b)/(a) ours, compiled / plain reference mode", "ours, compiled", "reference"),
    Comparison("(b)/(a) ours, teacher_memo half known / plain", "ours, memo half known", "reference", at_least=3.0),
    Comparison("(b)/(a) the same, compiled / plain", "ours, compiled, memo half known", "reference", at_least=3.0),
    Comparison("(b)/(c) ours / bare step on resident data", "ours", "bare step", at_least=0.95),
    Comparison("(d) scoring / bare teacher forward", "scoring", "bare forward", at_least=0.95),
    *(
        # speed without over speed with it is the cost of a step with it, in steps without
        Comparison(f"(b') cost of HE-DA, f = {f:g} / f = 0", "ours", _heda(f), at_most=1.45 if f == 0.4 else None)
        for f in FRACTIONS
    ),
    Comparison("(e) packed store / files decoded in workers", "ours", "ours, files"),
)

MEMORY_ARMS = ("reference", "ours", "scoring")
