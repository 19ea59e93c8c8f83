"""Measure arms in interleaved rounds, and compare them in a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """Two arms, by name, whose speeds are divided; and what the quotient should be, if there is a target."""

    name: str
    numerator: str
    denominator: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, ratio: float) -> bool | None:
        """Whether ``ratio`` is on the right side of the target; None without one."""
        if self.at_least is not None:
            return ratio >= self.at_least
        return None if self.at_most is None else ratio <= self.at_most


def interleaved(
    arms: Mapping[str, Callable[[], float]], rounds: int, on_arm: Callable[[int], object] = lambda count: None
) -> dict[str, list[float]]:
    """One figure per arm and round, measured A B C A B C ..., so that a slow minute of the machine hits all arms."""
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            samples[name].append(arm())
            on_arm(1)
    return samples


def compare(comparison: Comparison, samples: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The quotient of the medians, with the lowest and highest quotient of a round; the quotient lies between them."""
    above, below = samples[comparison.numerator], samples[comparison.denominator]
    in_rounds = [a / b for a, b in zip(above, below, strict=True)]
    ratio = statistics.median(above) / statistics.median(below)
    return {
        "name": comparison.name,
        "numerator": comparison.numerator,
        "denominator": comparison.denominator,
        "numerator_median": statistics.median(above),
        "denominator_median": statistics.median(below),
        "ratio": ratio,
        "lowest": min(in_rounds),
        "highest": max(in_rounds),
        "at_least": comparison.at_least,
        "at_most": comparison.at_most,
        "met": comparison.met(ratio),
    }


def ratio_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows of :func:`compare` in Markdown."""
    return table(
        ("ratio", "images/s, median", "value", "min to max", "target", "met"),
        (
            (
                row["name"],
                f"{row['numerator_median']:,.1f} / {row['denominator_median']:,.1f}",
                f"{row['ratio']:.3f}",
                f"{row['lowest']:.3f} to {row['highest']:.3f}",
                _target(row),
                {None: "", True: "yes", False: "no"}[row["met"]],
            )
            for row in rows
        ),
    )


def rate_table(samples: Mapping[str, Sequence[float]]) -> str:
    """Images/s of each arm in Markdown: median, lowest and highest."""
    return table(
        ("arm", "images/s, median", "min to max"),
        (
            (name, f"{statistics.median(rates):,.1f}", f"{min(rates):,.1f} to {max(rates):,.1f}")
            for name, rates in samples.items()
        ),
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up on a terminal; all but the first column to the right."""
    cells = [list(head), *([*row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (cells[0], rule, *cells[1:])
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _target(row: Mapping[str, Any]) -> str:
    if row["at_least"] is not None:
        return f"≥ {row['at_least']:g}"
    return "" if row["at_most"] is None else f"≤ {row['at_most']:g}"
