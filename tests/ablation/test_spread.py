"""The spread of the students of params.yaml, from a study of made-up numbers."""

from __future__ import annotations

import pytest

from pipeline.ablation.spread import spread_of
from pipeline.store.documents import StudentsSpread


@pytest.fixture
def spread(result):
    """Of the accuracies 0.70 and 0.72 of the small student, 0.74 and 0.761 of the large one."""
    names = dict(zip(result.settings, ("small", "large"), strict=True))
    rows = [row.model_copy(update={"arm": names[row.arm]}) for row in result.rows]
    settings = {names[arm]: blocks for arm, blocks in result.settings.items()}
    return spread_of(result.model_copy(update={"rows": rows, "settings": settings, "reference": "small"}))


def test_each_student_has_its_mean_deviation_and_difference_to_the_reference(spread):
    small, large = spread.students["small"], spread.students["large"]
    assert list(spread.students) == ["small", "large"]
    assert (small.seeds, small.mean, small.difference) == (2, pytest.approx(0.71), None)
    assert large.deviation == pytest.approx(0.0148, abs=1e-4)
    assert large.difference.reference == "small"
    assert large.difference.value == pytest.approx(0.0405)
    # residuals of arm and seed are 0.00025 each, so the error is sqrt(2 * 4 * 0.00025 ** 2 / 1 / 2); t(1) is 12.706
    assert large.difference.half_width == pytest.approx(12.706 * 0.0005, rel=1e-3)


def test_the_document_names_all_that_decides_a_student_but_the_seed(spread, result, tmp_path):
    shared = result.settings["KD"]
    assert {"data": spread.data, "teacher": spread.teacher, "energy": spread.energy} == result.rows[0].lineage
    assert (spread.heda, spread.augmentation) == (shared["heda"], shared["data"]["augmentation"])
    assert (spread.students["small"].distill, spread.students["small"].soft_labels) == (shared["distill"], None)
    assert StudentsSpread.read(spread.write(tmp_path / "spread.json") and tmp_path / "spread.json") == spread
