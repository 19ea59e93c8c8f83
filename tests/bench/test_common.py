"""Interleaving, quotients, tables, and what is kept of a run."""

from __future__ import annotations

import pytest

from bench.common import Comparison, interleaved, table


def test_arms_take_turns() -> None:
    order: list[str] = []

    def arm(name: str, figure: float) -> float:
        order.append(name)
        return figure

    samples = interleaved({"a": lambda: arm("a", 1.0), "b": lambda: arm("b", 2.0)}, 3)
    assert order == ["a", "b"] * 3
    assert samples == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_ratio_is_that_of_the_medians_and_its_range_that_of_the_rounds() -> None:
    row = Comparison("a / b", "a", "b").of({"a": [6.0, 8.0, 100.0], "b": [2.0, 1.0, 4.0]})
    assert row["ratio"] == 8 / 2
    assert (row["lowest"], row["highest"]) == (3.0, 25.0)
    assert row["met"] is None


@pytest.mark.parametrize(
    ("target", "met"), [({"at_least": 2.0}, True), ({"at_least": 2.1}, False), ({"at_most": 2.0}, True)]
)
def test_target_is_met_on_its_side_and_exactly_on_it(target: dict[str, float], met: bool) -> None:
    assert Comparison("a / b", "a", "b", **target).of({"a": [2.0], "b": [1.0]})["met"] is met


def test_columns_line_up() -> None:
    lines = table(("name", "figure"), [("a", "1"), ("longer name", "1,000")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith(":|")
