from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.report import Curve, Inputs, Recommendation, Table
from pipeline.report.figure import inline
from pipeline.report.pareto import pareto_front, pareto_plot
from pipeline.report.plots import confidence_plot, energy_plot, learning_plot

Rows = list[dict[str, Any]]


def parsed(svg: str | None) -> ET.Element:
    assert svg is not None
    return ET.fromstring(svg)  # noqa: S314  our own SVG


@pytest.fixture(scope="module")
def svgs(
    make_inputs: Callable[..., Inputs], summarise: Callable[[Inputs], tuple[dict[str, Any], Recommendation]]
) -> list[str | None]:
    """All plots of the default inputs; that they are the same at every call is tested with the page."""
    inputs = make_inputs()
    summary, recommendation = summarise(inputs)
    return [
        pareto_plot(summary["rows"], recommendation.row),
        energy_plot(inputs.energy, inputs.energy_test),
        confidence_plot(inputs.energy),
        learning_plot(inputs.curves),
    ]


def test_ids_of_several_plots_in_one_page_do_not_meet(svgs: list[str]) -> None:
    ids = [element.attrib["id"] for svg in svgs for element in parsed(svg).iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))


def test_references_inside_a_plot_resolve(svgs: list[str]) -> None:
    for root in map(parsed, svgs):
        ids = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
        links = [value for element in root.iter() for key, value in element.attrib.items() if key.endswith("href")]
        clips = [
            value[4:-1] for element in root.iter() for value in element.attrib.values() if value.startswith("url(")
        ]
        assert links
        assert clips
        assert {reference.removeprefix("#") for reference in (*links, *clips)} <= ids


def test_inline_plot_names_no_address(svgs: list[str]) -> None:
    for svg in svgs:
        element = inline(svg)
        assert element.startswith("<svg")
        assert "://" not in element


def test_front_joins_files_that_none_beats(rows: Rows) -> None:
    shown = [row for row in rows if row["role"] == "student" and row["latency_p50_ms"] is not None]
    front = pareto_front(shown)
    assert [row["name"] for row in front] == ["student_int8.xml", "student_fp32.xml"]


def test_nothing_measured_gives_no_plot() -> None:
    assert pareto_plot([], None) is None
    assert learning_plot({}) is None


def test_single_row_without_intervals_can_be_drawn(rows: Rows) -> None:
    row = rows[0] | dict.fromkeys(("delta_ci_low", "delta_ci_high", "latency_ci_low_ms", "latency_ci_high_ms"))
    parsed(pareto_plot([row], row))


def test_one_curve_of_one_epoch_can_be_drawn() -> None:
    parsed(learning_plot({"student": {"val_top1": Curve([0], [0.5])}}))


def test_energy_of_one_value_or_without_test_images_can_be_drawn(make_inputs: Callable[..., Inputs]) -> None:
    inputs = make_inputs()
    flat = dict(inputs.energy.columns) | {"energy": np.full(len(inputs.energy.columns["energy"]), -3.0, np.float32)}
    empty = {key: column[:0] for key, column in inputs.energy_test.columns.items()}
    parsed(energy_plot(Table(flat, inputs.energy.lineage), Table(empty, inputs.energy_test.lineage)))
