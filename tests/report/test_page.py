from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from pipeline.portable.documents import Power
from pipeline.report import page
from pipeline.report.build import build_report
from pipeline.report.inputs import Inputs
from pipeline.report.page import render_page
from pipeline.store.documents import Measurement, ShotAccuracy
from tests.report.conftest import build_inputs, changed, device, subset_table, with_rows, without

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Structure(HTMLParser):
    """Checks nesting, and collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
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
    return html_of(build_inputs())


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a page; a test of its words does without."""
    for name in ("pareto_plot", "energy_plot", "confidence_plot", "routing_plot", "learning_plot"):
        monkeypatch.setattr(page, name, lambda shown, *_: "<svg></svg>" if shown else None)
    monkeypatch.setattr(page, "sustained_plot", lambda *_: None)


def test_page_is_the_same_for_the_same_input(inputs: Inputs, html: str) -> None:
    assert html_of(inputs) == html


def test_page_loads_nothing(html: str) -> None:
    found = read(html)
    assert not re.search(r"https?://|//cdn|@import", html)
    assert not {tag for tag, _ in found.tags} & {"script", "link", "img", "iframe", "object", "embed"}
    for _, attributes in found.tags:
        for key in ("href", "src", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#")


def test_ids_are_unique_and_links_resolve(html: str) -> None:
    attributes = [found for _, found in read(html).tags]
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    assert {str(found["href"])[1:] for found in attributes if "href" in found} <= set(ids)
    assert {found["aria-labelledby"] for found in attributes if "aria-labelledby" in found} <= set(ids)


def test_plots_have_a_text_and_tables_have_headers(html: str) -> None:
    tags = read(html).tags
    plots = [attributes for _, attributes in tags if attributes.get("role") == "img"]
    assert len(plots) == 5
    assert all(attributes["aria-label"] for attributes in plots)
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in tags if tag == "th")


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
    assert not {tag for tag, _ in found.tags} & {"script", "img"}
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
    inputs.run.teacher = changed(inputs.run.teacher, source="checkpoint", **unknown)
    without(inputs.run, "teacher_fp32.onnx")
    text = text_of(inputs)
    assert "no file of the teacher was exported" in text
    assert "learning curves of the teacher not measured: it came from a checkpoint" in text


@pytest.mark.usefixtures("no_plots")
def test_page_with_nothing_but_the_files(inputs: Inputs) -> None:
    inputs.run.evaluation.rows.clear()
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
    evaluation = with_rows(inputs.run.evaluation, lambda row: changed(row, shots=shots))
    inputs.run.evaluation = changed(evaluation, shot_classes={"many": 6, "medium": 4, "few": 0})
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
    assert sum(found.get("role") == "img" for found in attributes) == 7, "a sustained curve of each"
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
    high = "0.0 \N{MINUS SIGN}2.0 to +2.0"
    assert f"student_int8.onnx ONNX Runtime 100.0 98.1 86.3 {high} 5.1e\N{MINUS SIGN}06 100.0" in text
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
    assert not {tag for tag, _ in found.tags} & {"script", "img"}
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
        ("file", "artifacts/export/student_int8.xml", ".xml and .bin student"),
    ):
        assert re.search(rf"{step} {re.escape(path)} [0-9a-f]{{16}} {re.escape(of)}", text), step
