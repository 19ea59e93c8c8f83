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
from pipeline.report.plots import (
    confidence_plot,
    energy_plot,
    learning_plot,
    network_colours,
    routing_plot,
    sustained_plot,
)
from pipeline.report.rows import Row
from pipeline.store.tables import Table
from tests.report.conftest import NETWORKS, STUDENTS, TEACHER, build_inputs, changed, device_result, learning_curves

COLOURS = network_colours(STUDENTS)
OF_FILES = {file[0]: COLOURS[made.name] for made in NETWORKS.values() for file in made.files}


def parsed(svg: str | None) -> ET.Element:
    assert svg is not None
    return ET.fromstring(svg)  # noqa: S314  our own SVG


@pytest.fixture(scope="module")
def svgs() -> list[str | None]:
    """All plots of the default inputs; that they are the same at every call is tested with the page."""
    report = build_report(build_inputs())
    run = report.inputs.run
    return [
        pareto_plot(report.rows, report.recommendation.row, OF_FILES),
        energy_plot(run.energy, run.energy_test),
        confidence_plot(run.energy),
        routing_plot(report.student.evaluation.rows[0].routing),
        learning_plot(report.inputs.curves, COLOURS),
        sustained_plot(device_result().rows, "board", OF_FILES),
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in place of SVG."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "to_svg", lambda figure, _: figures.append(figure) or "")
    return figures


def assert_numbers_are_apart(figure: Figure) -> None:
    """No number overlaps another one, and all are inside the axes."""
    (axes,) = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[i + 1 :])
    frame = axes.get_window_extent(renderer)
    assert all(frame.containsy(box.y1) and frame.containsx(box.x0) for box in boxes)


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
    front = pareto_front([mark for mark in marks_of(rows, OF_FILES) if mark.row.role == "student"])
    assert [mark.row.name for mark in front] == ["student_int8.xml", "student_fp32.xml"]


def test_numbers_of_marks_that_cover_each_other_do_not_and_stay_inside(rows: list[Row], drawn: list[Figure]) -> None:
    for row in rows:
        if row.role == "student" and row.is_measured:
            row.top1, row.latency_p50_ms, row.latency_ci_low_ms, row.latency_ci_high_ms = 0.98, 0.3, 0.29, 0.31
    pareto_plot(rows, None, OF_FILES)
    assert [text.get_text() for text in drawn[0].axes[0].texts] == [str(number) for number in range(1, 9)]
    assert_numbers_are_apart(drawn[0])


def test_legend_says_what_each_number_is(rows: list[Row], drawn: list[Figure]) -> None:
    pareto_plot(rows, next(row for row in rows if row.name == "student_int8.onnx"), OF_FILES)
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
        "top-1 of the teacher",
    ]


def test_of_many_marks_those_that_matter_are_numbered_and_a_key_tells_the_others(drawn: list[Figure]) -> None:
    report = build_report(build_inputs(*STUDENTS))
    pareto_plot(report.rows, report.recommendation.row, OF_FILES)
    (axes,) = drawn[0].axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    front = pareto_front([mark for mark in marks_of(report.rows, OF_FILES) if mark.row.role == "student"])
    numbered = [label for label in labels if label[:1].isdigit()]
    assert len(numbered) == len(front) + 2 == len(axes.texts), "the recommended file is not on this front"
    assert "8  deep int8 ONNX Runtime, 137 kB (recommended)" in numbered
    assert "11  teacher fp32 ONNX Runtime, 1.10 MB" in numbered
    key = [*STUDENTS, "teacher", "fp32", "fp16", "int8", "ONNX Runtime", "OpenVINO", "PyTorch"]
    assert [label for label in labels if label in key] == key
    assert_numbers_are_apart(drawn[0])


def test_networks_differ_in_colour_precisions_in_shape_and_runtimes_in_fill() -> None:
    assert len({COLOURS[name] for name in [*STUDENTS, TEACHER]}) == 9
    marks = marks_of(build_report(build_inputs("student", "wide")).rows, OF_FILES)
    looks = {(mark.row.student, mark.row.precision, mark.row.runtime): str(mark.look) for mark in marks}
    assert len(set(looks.values())) == len(looks)


def test_a_cascade_has_a_shape_of_its_own_and_its_curve(rows: list[Row], drawn: list[Figure]) -> None:
    pair = changed(rows[0], name="student_int8.onnx + teacher_fp32.onnx", student=None, precision="int8 + fp32")
    (mark,) = marks_of([pair], OF_FILES)
    assert mark.look["marker"] not in {each.look["marker"] for each in marks_of(rows, OF_FILES)}
    pareto_plot([*rows, pair], None, OF_FILES, curves=[[(0.3, 0.97), (0.6, 0.98), (1.3, 0.985)]])
    (curve,) = [line for line in drawn[0].axes[0].lines if len(line.get_xdata()) == 3 and line.get_linewidth() < 1]
    assert list(curve.get_ydata()) == pytest.approx([97, 98, 98.5])


def test_nothing_measured_gives_no_plot(rows: list[Row]) -> None:
    assert pareto_plot([], None, OF_FILES) is None
    rows[0].latency_p50_ms = 0.0
    assert pareto_plot(rows[:1], None, OF_FILES) is None, "the axis is logarithmic"
    assert learning_plot({}, COLOURS) is None
    assert sustained_plot([changed(row, sustained=None) for row in device_result().rows], "board", OF_FILES) is None


def test_single_row_without_intervals_can_be_drawn(rows: list[Row]) -> None:
    row = rows[0]
    row.delta_reference_ci_low = row.latency_ci_low_ms = None
    parsed(pareto_plot([row], row, OF_FILES))


def test_one_curve_of_one_epoch_can_be_drawn() -> None:
    parsed(learning_plot({"student": {"val_top1": Curve([0], [0.5])}}, COLOURS))


def test_learning_curves_of_all_networks_are_in_one_chart_in_their_colours(drawn: list[Figure]) -> None:
    learning_plot(learning_curves(*STUDENTS, TEACHER), COLOURS)
    for axes in drawn[0].axes:
        assert {line.get_label(): line.get_color() for line in axes.lines} == COLOURS
        assert [line.get_label() for line in axes.lines if line.get_linestyle() == "--"] == [TEACHER]
    assert drawn[0].axes[1].get_ylim()[0] > 70, "the worst ends at 94 %"


def test_energy_of_one_value_or_without_test_images_can_be_drawn(inputs: Inputs) -> None:
    train, test = inputs.run.energy, inputs.run.energy_test
    flat = dict(train.columns) | {"energy": np.full(len(train.columns["energy"]), -3.0, np.float32)}
    empty = {key: column[:0] for key, column in test.columns.items()}
    parsed(energy_plot(Table(flat, train.lineage), Table(empty, test.lineage)))
