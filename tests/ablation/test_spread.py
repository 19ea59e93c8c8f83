"""The spread of the students of params.yaml, from a study of made-up numbers."""

from __future__ import annotations

import pytest

from pipeline.ablation.results import StudyResult, settings_of
from pipeline.ablation.spread import read_spread
from pipeline.errors import LineageError

MADE_FROM = {"data": "0" * 64, "teacher": "1" * 64}


@pytest.fixture
def students(params):
    large = params.distill.model_copy(update={"network": "resnet20"})
    return {"small": params, "large": params.model_copy(update={"distill": large})}


@pytest.fixture
def path(result, students, tmp_path):
    """Of the accuracies 0.70 and 0.72 of the small student, 0.74 and 0.761 of the large one."""
    names = dict(zip(result.settings, students, strict=True))
    rows = [row.model_copy(update={"arm": names[row.arm]}) for row in result.rows]
    settings = {name: settings_of(chosen) for name, chosen in students.items()}
    changed = result.model_copy(update={"rows": rows, "settings": settings, "reference": "small"})
    changed.write(tmp_path / "students.json")
    return tmp_path / "students.json"


def test_each_student_has_its_mean_deviation_and_difference_to_the_reference(path, students):
    spread = read_spread(path, students, MADE_FROM)
    small, large = spread["small"], spread["large"]
    assert list(spread) == ["small", "large"]
    assert (small.seeds, small.mean, small.reference, small.difference) == (2, pytest.approx(0.71), "small", None)
    assert large.deviation == pytest.approx(0.0148, abs=1e-4)
    assert large.difference.value == pytest.approx(0.0405)
    # residuals of arm and seed are 0.00025 each, so the error is sqrt(2 * 4 * 0.00025 ** 2 / 1 / 2); t(1) is 12.706
    assert large.difference.half_width == pytest.approx(12.706 * 0.0005, rel=1e-3)


def test_students_that_the_study_does_not_know_have_no_spread_nor_has_anything_without_a_study(path, students):
    assert list(read_spread(path, {"small": students["small"], "newest": students["large"]}, MADE_FROM)) == ["small"]
    assert read_spread(path.with_name("none.json"), students, MADE_FROM) == {}


def test_the_spread_of_another_teacher_or_other_parameters_is_refused_with_the_reason(path, students):
    with pytest.raises(
        LineageError, match=r"made from teacher 1{12}, but the teacher in use is 2{12}; remove .* and run `make"
    ):
        read_spread(path, students, MADE_FROM | {"teacher": "2" * 64})
    with pytest.raises(LineageError, match="with other parameters of the student large; run `make ablation`"):
        read_spread(path, {"large": students["small"]}, MADE_FROM)


def test_the_study_that_is_read_can_be_read_as_any_other(path):
    assert StudyResult.read(path).reference == "small"
