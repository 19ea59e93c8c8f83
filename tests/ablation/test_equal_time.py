from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.ablation import equal_time
from pipeline.ablation.equal_time import in_equal_time
from pipeline.ablation.study import load_study
from pipeline.ablation.trial import StoringTime, execute, make_data, make_inputs, places_of, store_soft_labels
from pipeline.errors import ParamsError
from tests.ablation.conftest import QUICK, tiny_study
from tests.conftest import ROOT

STORED = {"distill": {"view": "stored"}, "soft_labels": {"views": 4}}
ARMS = {"KD": {}, "stored": STORED, "mixed": {"distill": {"view": "mixed"}}}


@pytest.fixture
def study(make_study, tmp_path):
    """Ten seconds for three arms, and the data of 400 digits."""
    made = make_study(seconds=10, arms=ARMS, params=_long(tiny_study()["params"]))
    make_data(made.arms["KD"], tmp_path)
    return made


def _long(params):
    params["distill"]["training"] = QUICK | {"epochs": 4}
    return params


@pytest.fixture
def pilots(monkeypatch, tmp_path):
    """Pilots that cost so many seconds an epoch, by arm; a stored view costs 5 ms."""
    seen = []

    def costing(**seconds):
        def run_study(pilot, root, jobs, *_):
            assert jobs == 1, "pilots have the machine to themselves"
            seen.extend(pilot.trials())
            for trial in pilot.trials():
                if trial.params.distill.view == "stored":
                    images = 280
                    path = places_of(trial.params, root, trial.seed).soft_labels.with_suffix(".json")
                    StoringTime(seconds=0.005 * images).write(path)
            return [(trial, SimpleNamespace(seconds_per_epoch=seconds[trial.arm])) for trial in pilot.trials()]

        monkeypatch.setattr(equal_time, "run_study", run_study)
        return seen

    return costing


def epochs(study) -> dict[str, int]:
    return {arm: params.distill.training.epochs for arm, params in study.arms.items()}


def test_each_arm_has_the_epochs_that_fit_into_the_seconds_with_its_soft_labels(study, pilots, tmp_path):
    seen = pilots(KD=0.5, stored=0.25, mixed=0.7)
    fitted = in_equal_time(study, tmp_path)
    labels = 4 * 0.005 * 280  # seconds for four views of each image
    assert epochs(fitted) == {"KD": 20, "stored": int((10 - labels) / 0.25), "mixed": 14}
    assert [trial.seed for trial in seen] == [0, 0, 0], "a pilot has one seed"
    assert {trial.params.distill.training.epochs for trial in seen} == {3}
    assert {trial.params.soft_labels.views for trial in seen} == {0, 1}
    assert fitted.file == study.file


def test_arms_of_equal_steps_share_the_median_of_their_pilots(make_study, pilots, tmp_path):
    arms = {
        "KD": {},
        "Energy KD": {"distill": {"temperatures": {"low_energy": 6.0, "high_energy": 2.0}}},
        "entropy": {"distill": {"sample_weight": "entropy"}},
        "mixed": {"distill": {"view": "mixed"}},
    }
    made = make_study(seconds=10, arms=arms, params=_long(tiny_study()["params"]))
    pilots(**{"KD": 0.5, "Energy KD": 1.0, "entropy": 2.0, "mixed": 0.1})
    assert epochs(in_equal_time(made, tmp_path)) == {"KD": 10, "Energy KD": 10, "entropy": 10, "mixed": 100}


def test_seconds_that_are_too_few_for_an_arm_are_named(study, pilots, tmp_path):
    pilots(KD=0.5, stored=3.0, mixed=0.7)
    with pytest.raises(
        ParamsError, match=r"seconds of the study are 10, of which arm 'stored' has 4\.4 left .* 3\.0 s"
    ):
        in_equal_time(study, tmp_path)


def test_more_views_than_epochs_that_fit_are_named(study, pilots, tmp_path):
    pilots(KD=0.5, stored=1.4, mixed=0.7)
    words = r"^arm 'stored', 3 epochs: .*soft_labels asks for 4 views .* not? student .* more than 3 epochs"
    with pytest.raises(ParamsError, match=words):
        in_equal_time(study, tmp_path)


def test_without_seconds_nothing_is_measured(make_study, tmp_path):
    plain = make_study()
    assert in_equal_time(plain, tmp_path) is plain
    assert not list(tmp_path.glob("pilots*"))


def test_a_trial_on_soft_labels_shares_them_with_the_other_seeds(make_study, tmp_path):
    made = make_study(arms={"KD": {}, "stored": {**STORED, "soft_labels": {"views": 2}}})
    first, second = (trial for trial in made.trials() if trial.arm == "stored")
    make_data(first.params, tmp_path)
    make_inputs(first.params, tmp_path)
    places = [places_of(trial.params, tmp_path, trial.seed) for trial in (first, second)]
    assert places[0].soft_labels == places[1].soft_labels
    store_soft_labels(first, tmp_path)
    assert StoringTime.read(places[0].soft_labels.with_suffix(".json")).seconds > 0
    for trial in (first, second):
        execute(trial, tmp_path)


def test_extra_views_of_a_random_subset_are_stored_for_each_seed(make_study, tmp_path):
    extra = {"soft_labels": {"views": 1, "extra_views": 1}, "heda": {"subset": "random"}}
    made = make_study(arms={"KD": {}, "extra": STORED | extra})
    first, second = (places_of(trial.params, tmp_path, trial.seed) for trial in made.trials() if trial.arm == "extra")
    assert first.soft_labels != second.soft_labels


def test_a_study_may_say_how_long_its_runs_take(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("title: t\nnote: n\nreference: a\nseeds: [0]\nseconds: -1\nparams: {}\narms: {a: {}}\n")
    with pytest.raises(ParamsError, match="seconds is -1"):
        load_study(path, ROOT / "params.yaml")
