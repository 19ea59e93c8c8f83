from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from pipeline.report import Device, Inputs, Table, build_report, page, page_devices

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


def text_of(html: str) -> str:
    return " ".join(" ".join(read(html).text).split())


@pytest.fixture(scope="module")
def html(make_inputs: Callable[..., Inputs]) -> str:
    return build_report(make_inputs()).html


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a page; a test of its words does without."""
    for name in ("pareto_plot", "energy_plot", "confidence_plot", "learning_plot"):
        monkeypatch.setattr(page, name, lambda shown, *_: "<svg></svg>" if shown else None)
    monkeypatch.setattr(page_devices, "sustained_plot", lambda *_: None)


def test_page_is_the_same_for_the_same_input(inputs: Inputs, html: str) -> None:
    assert build_report(inputs).html == html


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
    text = text_of(html)
    assert "Deploy student_int8.onnx with ONNX Runtime" in text
    assert "not measured on this machine: tensorrt is not installed" in text
    assert "student_fp32.onnx (TensorRT), student_fp16.onnx (TensorRT), student_int8.onnx (TensorRT)" in text
    assert "p99 not measured: 540 samples, 662 needed" in text


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "$x^{$"]
)
@pytest.mark.usefixtures("no_plots")
def test_class_names_are_text_and_never_markup(inputs: Inputs, name: str) -> None:
    inputs.data["class_names"][3] = name
    inputs.benchmark["machine"]["cpu"] = name
    found = read(build_report(inputs).html)
    assert not {tag for tag, _ in found.tags} & {"script", "img"}
    assert name in "".join(found.text)


@pytest.mark.usefixtures("no_plots")
def test_page_without_a_deployable_file_says_why(make_inputs: Callable[..., Inputs]) -> None:
    inputs = make_inputs()
    limits = inputs.budget.model_copy(update={"max_latency_p50_ms": 0.1})
    text = text_of(build_report(replace(inputs, budget=limits)).html)
    assert "No file can be recommended" in text
    assert "student_int8.onnx : its p50 is 0.298 ms of 0.100 (max_latency_p50_ms)" in text
    assert "Deploy student" not in text


@pytest.mark.usefixtures("no_plots")
def test_page_of_a_foreign_teacher_that_was_not_exported(make_inputs: Callable[..., Inputs]) -> None:
    inputs = make_inputs(curves={})
    inputs.teacher.update(source="checkpoint", epochs=None, seed=None, best_val_top1=None, best_val_epoch=None)
    for document, key in ((inputs.export, "files"), (inputs.evaluation, "rows"), (inputs.benchmark, "rows")):
        document[key].pop()
    text = text_of(build_report(inputs).html)
    assert "no file of the teacher was exported" in text
    assert "learning curves of the teacher not measured: it came from a checkpoint" in text


@pytest.mark.usefixtures("no_plots")
def test_page_with_nothing_but_the_files(inputs: Inputs) -> None:
    inputs.evaluation["rows"].clear()
    inputs.benchmark["rows"].clear()
    text = text_of(build_report(inputs).html)
    assert "nothing to plot" in text
    assert "No file can be recommended" in text


def test_table_marks_the_recommended_row(html: str) -> None:
    chosen = re.findall(r'<tr class="chosen">\s*<th[^>]*>([^<]+)', html)
    assert chosen == ["student_int8.onnx", "student_int8.onnx"]


@pytest.mark.usefixtures("no_plots")
def test_long_tail_section_is_there_for_a_long_tail_only(inputs: Inputs) -> None:
    assert "long-tail" not in build_report(inputs).html
    inputs.evaluation["shot_classes"] = {"many": 6, "medium": 4, "few": 0}
    for row in inputs.evaluation["rows"]:
        row |= {"top1_many_shot": 0.917, "top1_medium_shot": 0.625, "top1_few_shot": None}
    text = text_of(build_report(inputs).html)
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
def test_the_subset_is_named_as_what_it_is(make_inputs: Callable[..., Inputs], kind: str, words: str) -> None:
    subset = make_inputs().subset
    inputs = make_inputs(subset=Table(subset.columns, {**subset.lineage, "subset": kind}))
    assert words in text_of(build_report(inputs).html)


def test_devices_have_a_table_side_by_side_and_a_section_each(
    make_inputs: Callable[..., Inputs], make_device: Callable[..., Device]
) -> None:
    html = build_report(make_inputs(devices=[make_device("pi5"), make_device("orin", max_latency_p50_ms=0.5)])).html
    attributes = [found for _, found in read(html).tags]
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    assert {str(found["href"])[1:] for found in attributes if "href" in found} <= set(ids)
    assert {"device-pi5", "device-orin"} <= set(ids)
    assert sum(found.get("role") == "img" for found in attributes) == 7, "a sustained curve of each"
    text = text_of(html)
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
        "this machine; energy per inference not measured: RAPL is not here; the board shows no INA sensor. Top-1"
        in text
    )
    assert "student_int8.onnx ONNX Runtime 100.0 98.1 86.3 5.1e\N{MINUS SIGN}06 100.0" in text
    assert "No file is recommended for it: each file breaks a limit of its budget." in text
    assert "student_int8.onnx : its p50 is 2.98 ms of 0.500 (max_latency_p50_ms)" in text


@pytest.mark.usefixtures("no_plots")
def test_an_emulated_device_is_marked(
    make_inputs: Callable[..., Inputs], make_device: Callable[..., Device], measured: dict[str, Any]
) -> None:
    measured["machine"]["emulated"] = True
    text = text_of(build_report(make_inputs(devices=[make_device("arm", measured)])).html)
    assert "arm: Example Board (emulated)" in text
    assert "No file is recommended for it: it is emulated" in text


@pytest.mark.usefixtures("no_plots")
def test_energy_is_shown_with_its_meter_where_there_is_one(
    make_inputs: Callable[..., Inputs], make_device: Callable[..., Device], measured: dict[str, Any]
) -> None:
    measured["rows"][0].update(joules_per_inference=0.0123, meter="ina3221 VDD_IN (whole board)")
    text = text_of(build_report(make_inputs(devices=[make_device("orin", measured)])).html)
    assert "83.2 MB 5.24 MB 12.3 ina3221 VDD_IN (whole board) 4.94 plateau" in text


@pytest.mark.usefixtures("no_plots")
def test_a_device_without_a_result_of_these_files_names_the_command(
    make_inputs: Callable[..., Inputs], make_device: Callable[..., Device], measured: dict[str, Any]
) -> None:
    for row in measured["rows"]:
        row["sha256"] = "0" * 64
    text = text_of(build_report(make_inputs(devices=[make_device("pi5", measured)])).html)
    assert "Results of pi5 that belong to older files are left out" in text
    assert "run `dvc repro targets/pi5/dvc.yaml`" in text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
@pytest.mark.usefixtures("no_plots")
def test_what_a_device_says_is_text_and_never_markup(
    make_inputs: Callable[..., Inputs], make_device: Callable[..., Device], measured: dict[str, Any], name: str
) -> None:
    measured.update(device=name)
    measured["machine"]["board"] = name
    for row in measured["rows"]:
        row.update(meter=name, device_name=name, verdict="noisy", reasons=[name], precision_executed=name)
        row["sustained"]["ended_by"] = name
    found = read(build_report(make_inputs(devices=[make_device("pi5", measured)])).html)
    assert not {tag for tag, _ in found.tags} & {"script", "img"}
    assert name in "".join(found.text)


@pytest.mark.usefixtures("no_plots")
def test_a_note_of_all_rows_is_said_once(inputs: Inputs) -> None:
    for row in inputs.benchmark["rows"]:
        row["notes"] = [*row["notes"], "energy per inference not measured: no meter."]
    text = text_of(build_report(inputs).html)
    assert text.count("All rows: energy per inference not measured: no meter.") == 1
