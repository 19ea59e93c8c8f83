"""The tables of our own programs in docs/results come out of the JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from bench import __main__ as speed
from bench import agreement, int8, scale, tensorrt_plans
from tests.conftest import ROOT
from tests.fuzz import __main__ as fuzz
from tests.torture import __main__ as torture

RESULTS = ROOT / "docs/results"
REPORTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "agreement": agreement.report,
    "bench": speed.report,
    "bench_heda": speed.report,
    "bench_stored": speed.report,
    **{path.stem: speed.report for path in sorted(RESULTS.glob("bench_photos_*.json"))},
    "scale": scale.report,
    "tensorrt_plans": tensorrt_plans.report,
    "torture": torture.report,
    **{f"int8/{path.stem}": int8.report for path in sorted((RESULTS / "int8").glob("*.json"))},
}


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_that_of_its_figures(name: str) -> None:
    assert REPORTS[name](result(name)) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def test_the_table_of_damaged_files_is_that_of_its_figures() -> None:
    assert fuzz.tally_table(result("fuzz")["targets"]) in (RESULTS / "fuzz.md").read_text(encoding="utf-8")
