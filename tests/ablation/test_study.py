from __future__ import annotations

import pytest

from pipeline.ablation.study import load_study
from pipeline.config import Params
from pipeline.errors import ParamsError
from tests.conftest import ROOT


@pytest.fixture
def two_students(monkeypatch):
    """Stands for the block ``students`` of params.yaml, with two of them."""

    def of_student(params: Params, name: str) -> Params:
        return params.model_copy(update={"distill": params.students[name]})

    def students(params: Params):
        return {"small": params.distill, "large": params.distill.model_copy(update={"network": "resnet20"})}

    monkeypatch.setattr(Params, "students", property(students), raising=False)
    monkeypatch.setattr(Params, "of_student", of_student, raising=False)


def test_an_arm_changes_the_parameters_block_by_block(make_study, params):
    arms = make_study().arms
    assert arms["KD"].heda.mix == "none"
    assert arms["random subset"].heda.mix == "cutmix"
    assert arms["random subset"].heda.fraction == params.heda.fraction
    assert arms["KD"].distill.training.learning_rate == params.distill.training.learning_rate


def test_an_arm_replaces_the_whole_block_of_another_crop_and_only_a_key_of_the_same_one(make_study):
    resized = {"name": "resized", "scale": [0.5, 1.0], "ratio": [0.75, 1.333]}
    arms = {
        "KD": {"data": {"augmentation": {"crop": {"padding": 2}}}},
        "r": {"data": {"augmentation": {"crop": resized}}},
    }
    crops = [arm.data.augmentation.crop for arm in make_study(arms=arms).arms.values()]
    assert [crop.name for crop in crops] == ["pad", "resized"]
    assert crops[0].padding == 2


def test_the_students_of_the_parameters_are_arms_and_the_first_is_the_reference(two_students, make_study):
    study = make_study(arms="students", reference=None)
    assert study.of_students
    assert {name: arm.distill.network for name, arm in study.arms.items()} == {"small": "resnet8", "large": "resnet20"}
    assert study.arms["large"].teacher.network == "resnet8", "the study's own parameters hold for all"
    assert study.reference == "small"
    assert make_study(arms="students", reference="large").reference == "large"
    with pytest.raises(ParamsError, match="reference names 'KD', which is not one of the arms; use small, large"):
        make_study(arms="students")


def test_trials_go_seed_by_seed(make_study):
    assert [(trial.seed, trial.arm) for trial in make_study().trials()] == [
        (0, "KD"),
        (0, "random subset"),
        (1, "KD"),
        (1, "random subset"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arms": {"KD": {"heda": {"fracton": 0.3}}}},
            r"arm 'KD': heda\.fracton is not a known key; did you mean",
        ),
        ({"arms": {"KD": {"heda": {"fraction": 3}}}}, r"arm 'KD': heda\.fraction is 3"),
        ({"reference": "other"}, "reference names 'other', which is not one of the arms; use KD, random subset"),
        (
            {"comparisons": [["KD", "other"]]},
            "comparisons name 'other', which is not one of the arms; use KD",
        ),
        ({"reference": None}, "reference is missing; name one of KD, random subset"),
        ({"arms": "pupils"}, r"arms(\.students)? is 'pupils'"),
        ({"seeds": [1, 1]}, "name each seed once"),
        ({"seeds": []}, "seeds is "),
        ({"sedes": [1]}, "sedes is not a known key; did you mean seeds"),
    ],
)
def test_a_study_that_does_not_fit_is_refused_in_one_sentence(make_study, changes, message):
    with pytest.raises(ParamsError, match=message) as caught:
        make_study(**changes)
    assert "\n" not in str(caught.value)


def test_a_missing_study_is_named(tmp_path):
    with pytest.raises(ParamsError, match=r"none\.yaml does not exist"):
        load_study(tmp_path / "none.yaml", ROOT / "params.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "ablations").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_as_shipped_fit(path, two_students):
    assert load_study(path, ROOT / "params.yaml").trials()
