from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.report import plots
from pipeline.report.build import build_report
from pipeline.report.inputs import Curve, Inputs
from pipeline.report.page import figure_element
from pipeline.report.pareto import marks_of, pareto_front, pareto_plot
from pipeline.report.plots import confidence_plot, energy_plot, learning_plot, routing_plot, sustained_plot
from pipeline.report.rows import Row
from pipeline.store.tables import Table
from tests.report.conftest import build_inputs, changed, device_result


def parsed(svg: str | None) -> ET.Element:
    assert svg is not None
    return ET.fromstring(svg)  # noqa: S314  our own SVG


@pytest.fixture(scope="module")
def svgs() -> list[str | None]:
    """All plots of the default inputs; that they are the same at every call is tested with the page."""
    report = build_report(build_inputs())
    run = report.inputs.run
    return [
        pareto_plot(report.rows, report.recommendation.row),
        energy_plot(run.energy, run.energy_test),
        confidence_plot(run.energy),
        routing_plot(run.evaluation.rows[0].routing),
        learning_plot(report.inputs.curves),
        sustained_plot(device_result().rows, "board"),
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in place of SVG."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "to_svg", lambda figure, _: figures.append(figure) or "")
    return figures


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
        element = str(figure_element(svg))
        assert element.startswith("<svg")
        assert "://" not in element


def test_front_joins_files_that_none_beats(rows: list[Row]) -> None:
    front = pareto_front([mark for mark in marks_of(rows) if mark.row.role == "student"])
    assert [mark.row.name for mark in front] == ["student_int8.xml", "student_fp32.xml"]


def test_numbers_of_marks_that_cover_each_other_do_not_and_stay_inside(rows: list[Row], drawn: list[Figure]) -> None:
    for row in rows:
        if row.role == "student" and row.is_measured:
            row.top1, row.latency_p50_ms, row.latency_ci_low_ms, row.latency_ci_high_ms = 0.98, 0.3, 0.29, 0.31
    pareto_plot(rows, None)
    (axes,) = drawn[0].axes
    renderer = FigureCanvasAgg(drawn[0]).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [str(number) for number in range(1, 9)]
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[i + 1 :])
    frame = axes.get_window_extent(renderer)
    assert all(frame.containsy(box.y1) and frame.containsx(box.x0) for box in boxes)


def test_legend_says_what_each_number_is(rows: list[Row], drawn: list[Figure]) -> None:
    pareto_plot(rows, next(row for row in rows if row.name == "student_int8.onnx"))
    legend = drawn[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "1  int8 OpenVINO, 171 kB",
        "2  int8 ONNX Runtime, 97.9 kB (recommended)",
        "3  fp32 OpenVINO, 362 kB",
        "4  fp16 OpenVINO, 209 kB",
        "5  fp32 ONNX Runtime, 318 kB",
        "6  fp16 ONNX Runtime, 163 kB",
        "7  teacher fp32 ONNX Runtime, 1.10 MB",
        "8  fp32 PyTorch, 403 kB",
        "Pareto front",
        "teacher",
    ]


def test_nothing_measured_gives_no_plot(rows: list[Row]) -> None:
    assert pareto_plot([], None) is None
    rows[0].latency_p50_ms = 0.0
    assert pareto_plot(rows[:1], None) is None, "the axis is logarithmic"
    assert learning_plot({}) is None
    assert sustained_plot([changed(row, sustained=None) for row in device_result().rows], "board") is None


def test_single_row_without_intervals_can_be_drawn(rows: list[Row]) -> None:
    row = rows[0]
    row.delta_ci_low = row.delta_ci_high = row.latency_ci_low_ms = row.latency_ci_high_ms = None
    parsed(pareto_plot([row], row))


def test_one_curve_of_one_epoch_can_be_drawn() -> None:
    parsed(learning_plot({"student": {"val_top1": Curve([0], [0.5])}}))


def test_energy_of_one_value_or_without_test_images_can_be_drawn(inputs: Inputs) -> None:
    train, test = inputs.run.energy, inputs.run.energy_test
    flat = dict(train.columns) | {"energy": np.full(len(train.columns["energy"]), -3.0, np.float32)}
    empty = {key: column[:0] for key, column in test.columns.items()}
    parsed(energy_plot(Table(flat, train.lineage), Table(empty, test.lineage)))
