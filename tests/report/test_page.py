from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.portable.documents import Power
from pipeline.report import page
from pipeline.report.build import build_report
from pipeline.report.inputs import Inputs
from pipeline.report.page import render_page, step_sentences
from pipeline.report.recommend import recommend
from pipeline.store.documents import Measurement, SeedDifference, ShotAccuracy, StudentSpread
from tests.report.conftest import (
    TEACHER,
    budget,
    build_inputs,
    changed,
    device,
    device_result,
    row_of,
    sha,
    subset_table,
    with_rows,
    without,
)

THREE = ("student", "wide", "slim")
MINUS = "\N{MINUS SIGN}"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Structure(HTMLParser):
    """Checks nesting, and collects tags, attributes, text, and of each table the class and the cells' attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.tables: list[tuple[str, list[list[dict[str, str | None]]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append((dict(attrs).get("class") or "", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][1][-1].append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


def read(html: str) -> Structure:
    structure = Structure()
    structure.feed(html)
    structure.close()
    assert structure.open == []
    return structure


def html_of(inputs: Inputs) -> str:
    return render_page(build_report(inputs))


def text_of(inputs: Inputs) -> str:
    return words_of(html_of(inputs))


def words_of(html: str) -> str:
    return " ".join(" ".join(read(html).text).split())


@pytest.fixture(scope="module")
def html() -> str:
    """The page of one student."""
    return html_of(build_inputs())


@pytest.fixture(scope="module")
def html_of_three() -> str:
    """The page of three students with a device that ran the ONNX files of all."""
    measured = device_result(*THREE, TEACHER)
    return html_of(build_inputs(*THREE, devices=[device("pi5", measured, reference="teacher", max_latency_p50_ms=5)]))


@pytest.fixture(params=["html", "html_of_three"])
def each_html(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a page; a test of its words does without."""
    for name in ("pareto_plot", "energy_plot", "confidence_plot", "routing_plot", "learning_plot"):
        monkeypatch.setattr(page, name, lambda shown, *_, **__: "<svg></svg>" if shown else None)
    monkeypatch.setattr(page, "sustained_plot", lambda *_: None)


def test_page_is_the_same_for_the_same_input(inputs: Inputs, html: str) -> None:
    assert html_of(inputs) == html


def test_page_loads_nothing_and_runs_its_own_script_alone(html: str) -> None:
    found = read(html)
    assert not re.search(r"https?://|//cdn|@import", html)
    assert not {tag for tag, _ in found.tags} & {"link", "img", "iframe", "object", "embed"}
    for _, attributes in found.tags:
        for key in ("href", "src", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'\"" in html
    assert not any(key.startswith("on") for _, attributes in found.tags for key in attributes)


def test_ids_are_unique_and_links_resolve(each_html: str) -> None:
    attributes = [found for _, found in read(each_html).tags]
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    assert {str(found["href"])[1:] for found in attributes if "href" in found} <= set(ids)
    assert {found["aria-labelledby"] for found in attributes if "aria-labelledby" in found} <= set(ids)


def test_plots_have_a_text_and_tables_have_headers(each_html: str) -> None:
    tags = read(each_html).tags
    plots = [attributes for _, attributes in tags if attributes.get("role") == "img"]
    assert len(plots) >= 5
    assert all(attributes["aria-label"] for attributes in plots)
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in tags if tag == "th")


def test_tables_that_can_be_sorted_have_a_cell_under_each_heading(each_html: str) -> None:
    sortable = [rows for kind, rows in read(each_html).tables if "sortable" in kind.split()]
    assert sortable
    for head, *rows in sortable:
        assert rows
        assert {len(row) for row in rows} == {len(head)}
        for column, heading in enumerate(head):
            is_text = "text" in str(heading.get("class"))
            assert all(is_text == ("text" in str(row[column].get("class"))) for row in rows)


def test_several_students_have_a_table_and_are_named_where_files_are_compared(html_of_three: str) -> None:
    text = words_of(html_of_three)
    assert "Deploy the student student as student_fp16.xml with OpenVINO: 5.3" in text
    cheaper = "One step cheaper: student_int8.onnx with ONNX Runtime, 111 kB smaller and 0.0760 ms faster, at"
    assert f"{cheaper} {MINUS}0.3 points of top-1 accuracy (95 % interval {MINUS}1.0 to +0.5); it loses 1.11" in text
    assert "One step better: wide_int8.onnx with ONNX Runtime, 94.0 kB larger and 0.282 ms slower" in text
    assert "it is within the budget too." in text
    assert f"slim wrn_16_1 175 k 25.2 M 30 97.2 95.6 {MINUS}2.8 {MINUS}5.0 to {MINUS}0.5 none is within it" in text
    dash = "\N{EN DASH}"
    assert f"wide resnet8x4 1.21 M 178 M 60 99.3 98.3 {dash} {dash} " in text, "the others are compared with it"
    assert "trained with one seed each" in text
    assert "Drops are against the student wide. Of the student files that keep all limits, the smallest" in text
    assert "Drops are against the teacher." in text, "that is the budget of the device"
    assert "Deploy the student slim as slim_int8.onnx with ONNX Runtime" in text
    assert "while the students were trained" in text


def test_what_students_have_in_common_is_said_once(html_of_three: str) -> None:
    text = words_of(html_of_three)
    assert text.count("distill.loss.name kd") == 1
    assert "Student slim network wrn_16_1" in text
    for name in THREE:
        assert re.search(rf"student {name} artifacts/students/{name}/network/card.json {sha(name)[:16]}", text)


def test_one_student_has_no_table_of_students(html: str) -> None:
    text = words_of(html)
    assert 'id="students"' not in html
    assert "One step cheaper: there is none." in text
    assert "One step better: student_fp16.xml with OpenVINO, 111 kB larger and 0.0760 ms slower, at +0.3" in text
    assert "difference to the student in PyTorch in percentage points" in text


@pytest.mark.usefixtures("no_plots")
def test_a_recommended_cascade_is_described_by_both_of_its_files() -> None:
    limits = budget(max_top1_drop=0.01, choose="most_accurate", cascades=True)
    text = text_of(build_inputs(budget=limits))
    assert (
        "Deploy the cascade of student_int8.onnx and teacher_fp32.onnx with ONNX Runtime, in which the latter answers "
        "the 2.2 % of the images that the former is least certain of: 1.1\N{MULTIPLICATION SIGN} larger"
    ) in text
    assert "Top-1 accuracy 98.3 % teacher 98.6 % its first file alone 97.2 %" in text
    assert "Top-1 on high-energy images 93.1 % teacher 94.4 % its first file alone 90.3 %" in text
    assert "Size of both files 1.20 MB teacher 1.10 MB networks of 78,042 and 272,474 parameters" in text
    assert "Of the student files and cascades that keep all limits" in text
    both_students = text_of(build_inputs("student", "wide", budget=limits))
    assert "networks of 78,042 and 1,214,954 parameters" in both_students


@pytest.mark.usefixtures("no_plots")
def test_a_cascade_that_is_recommended_for_a_device_without_a_teacher_has_its_mean_latency() -> None:
    cascades = {"choose": "most_accurate", "cascades": True}
    inputs = build_inputs("slim", "wide", devices=[device("pi5", device_result("slim", "wide"), **cascades)])
    found = re.search(
        r"Deploy the cascade of slim_\w+.onnx and wide_\w+.onnx [^:]*: [0-9.]+ ms on average", text_of(inputs)
    )
    assert found


@pytest.mark.usefixtures("no_plots")
def test_a_study_of_seeds_adds_the_spread_of_each_student() -> None:
    difference = SeedDifference(reference="student", value=0.01, half_width=0.004)
    wide = StudentSpread(
        seeds=5, mean=0.981, deviation=0.003, difference=difference, distill={}, initial_weights=None, soft_labels=None
    )
    text = words_of(render_page(build_report(build_inputs(*THREE, spread={"wide": wide}))))
    assert "98.1 \N{PLUS-MINUS SIGN} 0.3 (5)" in text
    assert "+1.0 (+0.6 to +1.4) to student" in text
    assert "mean, standard deviation and number of seeds" in text


@pytest.mark.parametrize(
    ("choose", "words"), [("fastest", "the fastest is"), ("most_accurate", "the one of the best validation top-1 is")]
)
@pytest.mark.usefixtures("no_plots")
def test_page_says_what_the_budget_chooses_by(inputs: Inputs, choose: str, words: str) -> None:
    assert words in text_of(changed(inputs, budget=changed(inputs.budget, choose=choose)))


def test_page_says_which_file_to_deploy_and_what_was_not_measured(html: str) -> None:
    text = words_of(html)
    assert "Deploy student_int8.onnx with ONNX Runtime" in text
    assert "not measured on this machine: tensorrt is not installed" in text
    assert "student_fp32.onnx (TensorRT), student_fp16.onnx (TensorRT)" in text
    assert "p99 not measured: 540 samples, 662 needed" in text


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "$x^{$"]
)
@pytest.mark.usefixtures("no_plots")
def test_class_names_are_text_and_never_markup(inputs: Inputs, name: str) -> None:
    inputs.run.data.class_names[3] = name
    inputs.run.benchmark.machine["cpu"] = name
    found = read(html_of(inputs))
    assert [tag for tag, _ in found.tags if tag in ("script", "img")] == ["script"]
    assert name in "".join(found.text)


@pytest.mark.usefixtures("no_plots")
def test_page_without_a_deployable_file_says_why(inputs: Inputs) -> None:
    text = text_of(changed(inputs, budget=changed(inputs.budget, max_latency_p50_ms=0.1)))
    assert "No file can be recommended" in text
    assert "student_int8.onnx : its p50 is 0.298 ms, 0.100 allowed (max_latency_p50_ms)" in text
    assert "Deploy student" not in text


@pytest.mark.usefixtures("no_plots")
def test_page_of_a_foreign_teacher_that_was_not_exported() -> None:
    inputs = build_inputs(curves={})
    unknown = dict.fromkeys(("epochs", "seed", "precision", "kept_epoch", "best_val_top1", "best_val_epoch"))
    teacher = inputs.run.network(TEACHER)
    teacher.card = changed(teacher.card, source="checkpoint", **unknown)
    without(inputs.run, "teacher_fp32.onnx")
    text = text_of(inputs)
    assert "no file of the teacher was exported" in text
    assert "learning curves of teacher not measured: it came from a checkpoint" in text


@pytest.mark.usefixtures("no_plots")
def test_page_with_nothing_but_the_files(inputs: Inputs) -> None:
    for network in inputs.run.networks:
        network.evaluation.rows.clear()
    inputs.run.benchmark.rows.clear()
    text = text_of(inputs)
    assert "nothing to plot" in text
    assert "No file can be recommended" in text


def test_table_marks_the_recommended_row(html: str) -> None:
    chosen = re.findall(r'<tr class="chosen">\s*<th[^>]*>([^<]+)', html)
    assert chosen == ["student_int8.onnx", "student_int8.onnx"]


@pytest.mark.usefixtures("no_plots")
def test_long_tail_section_is_there_for_a_long_tail_only(inputs: Inputs) -> None:
    assert "long-tail" not in html_of(inputs)
    shots = ShotAccuracy(top1_many_shot=0.917, top1_medium_shot=0.625, top1_few_shot=None)
    for network in inputs.run.networks:
        evaluation = with_rows(network.evaluation, lambda row: changed(row, shots=shots))
        network.evaluation = changed(evaluation, shot_classes={"many": 6, "medium": 4, "few": 0})
    text = text_of(inputs)
    assert "Long tail: frequent and rare classes" in text
    assert "130 in the largest class and 129 in the smallest" in text
    assert "91.7 62.5 \N{EN DASH}" in text
    assert "accuracy on few-shot classes not measured: there is none" in text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("high_energy", "High-energy subset for data augmentation 517 training images, those of the highest energy"),
        (
            "low_energy",
            "Low-energy subset for data augmentation 517 training images, those of the lowest energy",
        ),
        ("random", "Random subset for data augmentation 517 training images, drawn at random (a control)"),
    ],
)
@pytest.mark.usefixtures("no_plots")
def test_the_subset_is_named_as_what_it_is(inputs: Inputs, kind: str, words: str) -> None:
    inputs.run.subset = subset_table(inputs.run.energy, kind)
    assert words in text_of(inputs)


def test_devices_have_a_table_side_by_side_and_a_section_each() -> None:
    html = html_of(build_inputs(devices=[device("pi5"), device("orin", max_latency_p50_ms=0.5)]))
    attributes = [found for _, found in read(html).tags]
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    assert {str(found["href"])[1:] for found in attributes if "href" in found} <= set(ids)
    assert {"device-pi5", "device-orin"} <= set(ids)
    assert sum(found.get("role") == "img" for found in attributes) == 9, "a Pareto plot and a sustained curve of each"
    text = words_of(html)
    assert "File Runtime this machine pi5 orin" in text
    assert "student_int8.onnx ONNX Runtime 0.298 2.98 2.98" in text
    assert "Deploy student_int8.onnx with ONNX Runtime: 11\N{MULTIPLICATION SIGN} smaller than the teacher" in text
    assert "at \N{MINUS SIGN}2.0 points of top-1 accuracy" in text
    assert "no speed-up is claimed, because the latency of the teacher is throttled" in text
    assert "latency throttled: the CPU clock fell from 2400 to 1500 MHz" in text
    start = "student_int8.onnx ONNX Runtime 412 31.0 9.70 dropped 83.2 MB 5.24 MB"
    assert f"{start} 3.58 plateau 839 (8, 4)" in text
    assert "mJ per" not in text, "no device has a meter"
    assert (
        "this machine; energy per inference not measured: RAPL is not available; the board shows no INA sensor. Top-1"
        in text
    )
    high = "0.0 \N{MINUS SIGN}3.7 to +3.7"
    assert f"student_int8.onnx ONNX Runtime 100.0 98.0 90.2 {high} 5.1e\N{MINUS SIGN}06 100.0" in text
    assert "No file is recommended for it: each file breaks a limit of its budget." in text
    assert "student_int8.onnx : its p50 is 2.98 ms, 0.500 allowed (max_latency_p50_ms)" in text


@pytest.mark.usefixtures("no_plots")
def test_an_emulated_device_is_marked(measured: Measurement) -> None:
    measured.machine["emulated"] = True
    text = text_of(build_inputs(devices=[device("arm", measured)]))
    assert "arm: Example Board (emulated)" in text
    assert "No file is recommended for it: it is emulated" in text


@pytest.mark.usefixtures("no_plots")
def test_energy_is_shown_with_its_meter_where_there_is_one(measured: Measurement) -> None:
    power = Power(meter="ina3221 VDD_IN (whole board)", idle_watts=3.0, watts=5.0, seconds=60.0, inferences=9756)
    measured.rows[0] = changed(measured.rows[0], joules_per_inference=0.0123, power=power)
    text = text_of(build_inputs(devices=[device("orin", measured)]))
    assert "83.2 MB 5.24 MB 12.3 ina3221 VDD_IN (whole board) 4.94 plateau" in text


@pytest.mark.usefixtures("no_plots")
def test_a_device_without_a_result_of_these_files_names_the_command(measured: Measurement) -> None:
    older = with_rows(measured, lambda row: changed(row, sha256="0" * 64))
    text = text_of(build_inputs(devices=[device("pi5", older)]))
    assert "Results of pi5 belong to older files and are left out" in text
    assert "run `dvc repro targets/pi5/dvc.yaml`" in text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
@pytest.mark.usefixtures("no_plots")
def test_what_a_device_says_is_text_and_never_markup(measured: Measurement, name: str) -> None:
    power = Power(meter=name, idle_watts=3.0, watts=5.0, seconds=60.0, inferences=9756)
    told = {"device_name": name, "verdict": "noisy", "reasons": [name], "precision_executed": name, "power": power}
    odd = with_rows(measured, lambda row: changed(row, sustained=changed(row.sustained, ended_by=name), **told))
    odd.machine["board"] = name
    odd = changed(odd, device=name, settings={"images": name}, tuning={"changed": name})
    found = read(html_of(build_inputs(devices=[device("pi5", odd)])))
    assert [tag for tag, _ in found.tags if tag in ("script", "img")] == ["script"]
    assert name in "".join(found.text)


@pytest.mark.usefixtures("no_plots")
def test_a_note_of_all_rows_is_said_once(inputs: Inputs) -> None:
    note = "energy per inference not measured: no meter."
    inputs.run.benchmark = with_rows(inputs.run.benchmark, lambda row: changed(row, notes=[*row.notes, note]))
    assert text_of(inputs).count("All rows: energy per inference not measured: no meter.") == 1


def test_settings_say_where_there_is_no_limit_and_leave_out_what_a_machine_does_not_tell(html: str) -> None:
    text = words_of(html)
    assert "max_top1_drop 0.01" in text
    assert "max_size_mb no limit" in text
    assert "affinity 0, 1" in text
    assert "board" not in text
    assert "Computed in fp32 in the int8 files, for want of an integer kernel: /conv1/Conv." in text


def test_lineage_names_what_each_step_was_made_from(html: str) -> None:
    text = words_of(html)
    for step, path, of in (
        ("data", "artifacts/data/data.json", "pixels, labels, class names, normalisation \N{EN DASH}"),
        ("energy", "artifacts/energy.parquet", "scores, temperature 4 data 3a6eb079 , teacher"),
        ("file", "artifacts/students/student/export/student_int8.xml", ".xml and .bin student"),
    ):
        assert re.search(rf"{step} {re.escape(path)} [0-9a-f]{{16}} {re.escape(of)}", text), step


def test_a_file_that_is_cheaper_and_better_is_one_step_and_says_why_it_is_not_recommended() -> None:
    rows = list(build_report(build_inputs("student", "wide")).rows)
    small, wide = (row_of(rows, f"{name}_int8.onnx", "onnxruntime") for name in ("student", "wide"))
    small.correct, small.top1 = np.ones_like(wide.correct), 1.0
    ((caption, sentence),) = step_sentences(recommend([small, wide], budget(choose="most_accurate")))
    assert caption == "One step cheaper and better"
    assert sentence.startswith("student_int8.onnx with ONNX Runtime, 206 kB smaller and 0.358 ms faster, at +")
    assert sentence.endswith(
        "it is within the budget too, but not more accurate on the validation images, by which the budget chooses."
    )
    small.correct, small.top1 = wide.correct, wide.top1
    (caption, sentence), _ = step_sentences(recommend([small, wide], budget(choose="most_accurate")))
    assert caption == "One step cheaper"
    assert "at 0.0 points of top-1 accuracy" in sentence
    assert sentence.endswith("but not more accurate on the validation images, by which the budget chooses.")
