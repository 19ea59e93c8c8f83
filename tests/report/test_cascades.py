"""Which cascades are found among the files of a device, and with what numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.cascade import SCORES, cascade_curve
from pipeline.portable.accuracy import paired_difference
from pipeline.report.cascades import Cascade, CascadeRow, cascade_rows, find_cascades
from pipeline.report.recommend import recommend
from pipeline.report.rows import Reference, Row
from pipeline.store.answers import FileAnswers, Key, SplitAnswers
from tests.report.conftest import budget

IMAGES = np.arange(200)
SIZES = {"small": 100_000, "middle": 400_000, "large": 1_000_000}
LATENCY = {"small": 1.0, "middle": 3.0, "large": 10.0}
ERRORS = {"small": 40, "middle": 20, "large": 4}  # of 200 images, those of the highest energy


def row(student: str, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "name": f"{student}_fp32.onnx",
        "role": "student",
        "student": student,
        "format": "onnx",
        "precision": "fp32",
        "runtime": "onnxruntime",
        "device": "Example CPU",
        "target": None,
        "batch": None,
        "size_bytes": SIZES[student],
        "sha256": "0" * 64,
        "precision_executed": "fp32",
        "top1": 1 - ERRORS[student] / 200,
        "val_top1": 1 - ERRORS[student] / 200,
        "correct": answers(ERRORS[student]).test.correct,
        "latency_p50_ms": LATENCY[student],
    }
    return Row(**(values | changes))


def answers(errors: int) -> FileAnswers:
    """Wrong where the energy is highest, and less neatly where the probability is lowest."""
    energy = (-20 + IMAGES / 20).astype(np.float32)
    uncertainty = ((IMAGES + 60 * (IMAGES % 3 == 0)) / 400).astype(np.float32)
    one = SplitAnswers(errors + IMAGES < 200, energy, uncertainty)
    return FileAnswers(one, one)


ANSWERS = {student: answers(errors) for student, errors in ERRORS.items()}


def by_file(rows: list[Row], of_students: Mapping[str, FileAnswers | None] = ANSWERS) -> dict[Key, FileAnswers]:
    found = {each.key: of_students[str(each.student)] for each in rows}
    return {key: each for key, each in found.items() if each is not None}


def found_among(rows: list[Row], of_students: Mapping[str, FileAnswers | None] = ANSWERS) -> list[Cascade]:
    return find_cascades(rows, by_file(rows, of_students))


def pairs(cascades: list[Cascade]) -> list[tuple[str, str]]:
    return [(cascade.small.name, cascade.large.name) for cascade in cascades]


def test_a_cascade_has_the_accuracy_of_the_larger_file_and_nearly_the_latency_of_the_small_one():
    small, large = row("small"), row("large")
    *cheaper, cascade = found_among([large, small])
    assert [each.val_sent for each in cheaper] == [0.01, 0.06]
    assert 0.8 < cheaper[0].top1 < cheaper[1].top1 < cascade.top1
    assert (cascade.small, cascade.large) == (small, large)
    # 20 % of the images, from energy -12 on, are those that the small file gets wrong
    assert (cascade.score, cascade.val_sent, cascade.sent) == ("energy", 0.2, 0.2)
    assert cascade.threshold == pytest.approx(-12.025)
    assert (cascade.val_top1, cascade.top1) == (0.98, 0.98)
    assert cascade.latency_ms == pytest.approx(1 + 0.2 * 10)
    assert cascade.size_bytes == 1_100_000
    assert cascade.correct.tolist() == (IMAGES < 196).tolist()
    assert cascade.delta == paired_difference(cascade.correct, ANSWERS["large"].test.correct)
    assert cascade.delta.value == 0
    assert list(cascade.curve) == cascade_curve(ANSWERS["small"], ANSWERS["large"], 1.0, 10.0, "energy")


def test_the_score_is_the_one_that_reaches_the_larger_file_with_fewer_validation_images():
    swapped = {
        student: FileAnswers(
            *(SplitAnswers(each.correct, each.uncertainty, (each.energy + 20) / 20) for each in (file.val, file.test))
        )
        for student, file in ANSWERS.items()
    }
    *_, cascade = found_among([row("small"), row("large")], swapped)
    assert (cascade.score, cascade.val_sent) == ("probability", 0.2)
    assert cascade.threshold == pytest.approx(1 - 7.975 / 20)
    assert all(point.score == "probability" for point in cascade.curve)
    curves = [cascade_curve(swapped["small"], swapped["large"], 1.0, 10.0, score) for score in SCORES]
    other, best = (min(point.val_sent for point in curve if point.val_top1 >= 0.98) for curve in curves)
    assert best < other


def test_a_cascade_that_a_single_file_beats_is_left_out():
    rows = [row("small"), row("large"), row("middle", latency_p50_ms=1.0, top1=0.98)]
    as_good = ANSWERS | {"middle": ANSWERS["large"]}
    assert found_among(rows, as_good) == []
    # the same file on another device beats nothing here
    elsewhere = [*rows[:2], dataclasses.replace(rows[2], device="Other CPU")]
    assert set(pairs(found_among(elsewhere, as_good))) == {("small_fp32.onnx", "large_fp32.onnx")}
    # in another runtime it does, although no program would run it with the others
    openvino = dataclasses.replace(rows[2], format="openvino", runtime="openvino", name="middle_fp32.xml")
    assert found_among([*rows[:2], openvino], as_good) == []


def test_a_cascade_that_another_cascade_beats_is_left_out_and_the_others_come_fastest_first():
    rows = [row("small"), row("middle"), row("large")]
    cascades = found_among(rows)
    # middle and large reach 98 % with 10 % sent on, but in 3 + 1 ms; small and large need 3 ms
    assert set(pairs(cascades)) == {("small_fp32.onnx", "middle_fp32.onnx"), ("small_fp32.onnx", "large_fp32.onnx")}
    latencies, accuracies = zip(*((each.latency_ms, each.val_top1) for each in cascades), strict=True)
    assert list(latencies) == sorted(latencies)
    assert list(accuracies) == sorted(accuracies)


def test_files_are_paired_in_one_runtime_on_one_device_only():
    small = row("small")
    for change in (
        {"runtime": "openvino", "format": "openvino", "name": "large_fp32.xml"},
        {"device": "Other CPU"},
        {"target": "board"},
        {"batch": 4},
    ):
        assert found_among([small, row("large", **change)]) == []
        assert found_among([row("small", **(change | {"name": "small"})), row("large", **change)])


def test_what_was_not_measured_or_cannot_be_deployed_is_not_paired():
    small, large = row("small"), row("large")
    assert found_among([small, row("large", latency_p50_ms=None)]) == []
    assert found_among([small, row("large", top1=None)]) == []
    assert found_among([small, large], ANSWERS | {"large": None}) == []
    assert found_among([small, row("large", format="torch", runtime="torch")]) == []
    of_gpu = {"runtime": "tensorrt", "device": "Example GPU"}
    assert found_among([row("small", **of_gpu), row("large", **of_gpu)]) == []
    assert found_among([]) == []


def test_the_small_file_must_be_faster_and_the_larger_one_more_accurate_on_the_validation_split():
    assert found_among([row("small", latency_p50_ms=10.0), row("large")]) == []
    correct = ANSWERS["large"].val
    swapped = {"small": FileAnswers(correct, ANSWERS["small"].test), "large": FileAnswers(correct, correct)}
    assert found_among([row("small"), row("large")], swapped) == []


def test_the_larger_file_may_be_the_teachers():
    teacher = dataclasses.replace(row("large"), role="teacher", student=None, name="teacher_fp32.onnx")
    answers_of = {row("small").key: ANSWERS["small"], teacher.key: ANSWERS["large"]}
    cascades = find_cascades([row("small"), teacher], answers_of)
    assert set(pairs(cascades)) == {("small_fp32.onnx", "teacher_fp32.onnx")}


def test_the_teacher_never_answers_first():
    teacher = dataclasses.replace(row("small"), role="teacher", student=None, name="teacher_fp32.onnx")
    answers_of = {teacher.key: ANSWERS["small"], row("large").key: ANSWERS["large"]}
    assert find_cascades([teacher, row("large")], answers_of) == []


def test_a_small_file_whose_scores_say_nothing_makes_no_cascade():
    useless = SplitAnswers(ANSWERS["small"].val.correct, np.zeros(200, np.float32), np.zeros(200, np.float32))
    assert found_among([row("small"), row("large")], ANSWERS | {"small": FileAnswers(useless, useless)}) == []


def test_every_cascade_that_is_left_out_is_beaten_and_none_that_is_kept():
    generator = np.random.default_rng(0)
    rows, of_files = [], {}
    for number in range(12):
        runtime, ending = (("onnxruntime", "onnx"), ("openvino", "xml"))[number % 2]
        top1 = 0.6 + 0.3 * generator.random()
        splits = []
        for _ in range(2):
            right = generator.random(300) < top1
            doubt = generator.normal(np.where(right, 0.2, 0.5), 0.15).clip(0, 1).astype(np.float32)
            splits.append(SplitAnswers(right, 6 * doubt - 12, doubt))
        form = "onnx" if ending == "onnx" else "openvino"
        rows.append(row("small", name=f"{number}.{ending}", runtime=runtime, format=form, latency_p50_ms=1 + top1 * 20))
        of_files[rows[-1].key] = FileAnswers(*splits)
    kept = find_cascades(rows, of_files)
    assert kept
    single = [(each.latency_p50_ms, of_files[each.key].val.correct.mean()) for each in rows]
    others = [*single, *((each.latency_ms, each.val_top1) for each in kept)]
    for cascade in kept:
        place = (cascade.latency_ms, cascade.val_top1)
        assert not any(ms <= place[0] and top1 >= place[1] for ms, top1 in others if (ms, top1) != place)
    points = []
    for small, large in permutations(rows, 2):
        answered = of_files[small.key], of_files[large.key]
        top1 = [each.val.correct.mean() for each in answered]
        if small.runtime == large.runtime and small.latency_p50_ms < large.latency_p50_ms and top1[0] < top1[1]:
            curves = [cascade_curve(*answered, small.latency_p50_ms, large.latency_p50_ms, score) for score in SCORES]
            points += [(point.latency_ms, point.val_top1) for curve in curves for point in curve[1:-1]]
    front = [
        (ms, top1)
        for ms, top1 in points
        if not any(a <= ms and b >= top1 and (a, b) != (ms, top1) for a, b in [*single, *points])
    ]
    assert {min(front), max(front)} <= {(each.latency_ms, each.val_top1) for each in kept}
    assert {(each.latency_ms, each.val_top1) for each in kept} <= set(front)
    assert max(map(pairs(kept).count, pairs(kept))) <= 3
    names = [CascadeRow.made_of(each, Reference("other", each.correct, np.zeros(300, np.int8))).name for each in kept]
    assert len(set(names)) == len(names)


GROUPS = np.repeat(np.array([0, 1, 2], np.int8), [60, 80, 60])
REFERENCE = Reference("large", ANSWERS["large"].test.correct, GROUPS)


def rows_with_cascades(*rows: Row) -> list[Row]:
    for each in rows:
        each.set_reference(REFERENCE)
    return [*rows, *cascade_rows(rows, by_file(list(rows)), REFERENCE)]


def with_percentiles(student: str, **changes: Any) -> Row:
    latency = LATENCY[student]
    percentiles = {"latency_p90_ms": 1.1 * latency, "latency_p99_ms": 1.5 * latency}
    return row(
        student, **(percentiles | {"latency_ci_low_ms": 0.9 * latency, "latency_ci_high_ms": 1.2 * latency} | changes)
    )


def test_the_row_of_a_cascade_has_the_size_of_both_files_and_the_mean_latency_of_an_image():
    small, large, *_, cascade = rows_with_cascades(
        with_percentiles("small", verdict="stable"), with_percentiles("large", verdict="noisy")
    )
    assert isinstance(cascade, CascadeRow)
    assert cascade.name == "small_fp32.onnx + large_fp32.onnx (20% by energy)"
    assert cascade.size_bytes == small.size_bytes + large.size_bytes
    assert cascade.latency_p50_ms == pytest.approx(1 + 0.2 * 10)
    assert cascade.latency_p90_ms == pytest.approx(1.1 + 11)
    assert (cascade.latency_ci_low_ms, cascade.latency_ci_high_ms) == pytest.approx((0.9 + 0.2 * 9, 1.2 + 0.2 * 12))
    assert cascade.verdict == "noisy"
    assert cascade.delta_reference == 0
    assert cascade.top1_low_energy == 1.0
    assert cascade.top1_high_energy == pytest.approx(56 / 60)
    assert "mean over the test images" in cascade.notes[0]


def test_the_name_of_a_cascade_identifies_it_where_shares_round_to_the_same_percent_or_scores_differ():
    small, large = row("small"), row("large")
    of_energy = found_among([small, large])[-1]
    variants = [
        of_energy,
        dataclasses.replace(of_energy, score="probability"),
        dataclasses.replace(of_energy, val_sent=0.0069),
        dataclasses.replace(of_energy, val_sent=0.0139),
    ]
    names = [CascadeRow.made_of(each, REFERENCE).name for each in variants]
    assert len(set(names)) == len(names)
    assert names[1] == "small_fp32.onnx + large_fp32.onnx (20% by probability)"


def test_what_was_not_measured_of_one_file_is_not_known_of_the_cascade():
    *_, cascade = rows_with_cascades(with_percentiles("small"), with_percentiles("large", latency_p99_ms=None))
    assert cascade.latency_p90_ms is not None
    assert cascade.latency_p99_ms is None


def test_a_cascade_is_recommended_where_it_is_the_fastest_within_the_budget():
    rows = rows_with_cascades(with_percentiles("small"), with_percentiles("large"))
    chosen = recommend(rows, budget(choose="fastest", max_top1_drop=0.01)).row
    assert isinstance(chosen, CascadeRow)
    # the smallest file that is accurate enough is the large one alone
    assert recommend(rows, budget(choose="smallest", max_top1_drop=0.01)).row is rows[1]


def test_the_latency_limit_of_a_cascade_is_on_its_mean_and_those_of_percentiles_on_the_sums():
    rows = rows_with_cascades(with_percentiles("small"), with_percentiles("large"))
    limits = {"choose": "fastest", "max_top1_drop": 0.01}
    assert isinstance(recommend(rows, budget(max_latency_p50_ms=3.1, **limits)).row, CascadeRow)
    assert recommend(rows, budget(max_latency_p50_ms=2.9, **limits)).row is None
    found = recommend(rows, budget(max_latency_p90_ms=11.5, **limits))
    assert found.row is rows[1]
    assert found.broken["small_fp32.onnx + large_fp32.onnx (20% by energy)"] == [
        "its p90 is 12.1 ms, 11.5 allowed (max_latency_p90_ms)"
    ]


def test_the_entry_of_a_cascade_names_both_files_and_the_threshold():
    entry = rows_with_cascades(row("small"), row("large"))[-1].entry()
    assert entry["cascade"]["small"] == "small_fp32.onnx"
    assert entry["cascade"]["large"] == "large_fp32.onnx"
    assert entry["cascade"]["score"] == "energy"
    assert entry["cascade"]["threshold"] == pytest.approx(-12.025)
    assert "correct" not in entry
