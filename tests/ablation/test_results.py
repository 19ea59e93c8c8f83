from __future__ import annotations

import copy

import pytest

from pipeline.ablation.results import document, markdown, plot, write_results
from pipeline.report.formatting import NOT_MEASURED
from pipeline.store.tables import read_json

MEASURED = {
    "epoch": 1,
    "val_top1": 0.8,
    "balanced_accuracy": 0.5,
    "top1_low_energy": 0.9,
    "top1_mid_energy": 0.7,
    "top1_high_energy": 0.4,
    "top1_many_shot": 0.8,
    "top1_medium_shot": None,
    "top1_few_shot": None,
}
TEACHER = {"network": "resnet8", "epochs": 2, "val_top1": 0.9, "test_top1": 0.8765}


@pytest.fixture
def content(make_study):
    study = make_study()
    results = []
    for run, top1 in zip(study.runs(), (0.70, 0.74, 0.72, 0.761), strict=True):
        last = MEASURED | {"top1": top1, "balanced_accuracy": top1}
        result = {
            "seed": run.seed,
            "last": last,
            "best_validation": last | {"top1": top1 + 0.001},
            "seconds_per_epoch": 1.5,
            "device": "cpu",
            "threads": 1,
            "code": "abc",
            "long_tail": False,
        }
        results.append((run, result))
    return document(study, [TEACHER], results)


def rows(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_the_table_has_mean_deviation_and_difference_of_every_arm(content):
    header, _, reference, other = rows(markdown(content, "figure.svg"))
    assert header[:3] == ["arm", "test top-1, last epoch", "Δ to KD"]
    assert reference[:5] == ["KD", "71.00 ± 1.41", NOT_MEASURED, NOT_MEASURED, "71.10 ± 1.41"]
    assert other[:3] == ["random subset", "75.05 ± 1.48", r"+4.05\*"]
    assert other[-1] == "1.5"


def test_the_table_names_teacher_students_seeds_code_and_figure(content):
    text = markdown(content, "figure.svg")
    for part in ("resnet8, 2 epochs, test top-1 87.65 %", "2 epochs, 2 seeds", "cpu with 1 thread", "code abc"):
        assert part in text
    assert "(figure.svg)" in text


def test_named_comparisons_have_a_table_of_their_own(content):
    assert "| comparison" not in markdown(content, "f.svg")
    content["comparisons"] = [["KD", "random subset"]]
    header, _, line = rows(markdown(content, "f.svg"))[-3:]
    assert header[0] == "comparison"
    assert line[:2] == ["KD \N{MINUS SIGN} random subset", "\N{MINUS SIGN}4.05\\*"]


def test_shots_are_shown_for_a_long_tail_only(content):
    assert "few-shot" not in markdown(content, "f.svg")
    tailed = copy.deepcopy(content)
    for row in tailed["rows"]:
        row["long_tail"] = True
        row["last"] |= {"top1_medium_shot": 0.4, "top1_few_shot": 0.1}
    header = rows(markdown(tailed, "f.svg"))[0]
    assert header[-4:-1] == ["many-shot", "medium-shot", "few-shot"]


def test_results_of_different_code_are_all_named(content):
    content["rows"][0]["code"] = "def"
    assert "code abc, def" in markdown(content, "f.svg")


def test_the_plot_is_the_same_every_time(content):
    assert plot(content, "s") == plot(content, "s")
    assert plot(content, "s").startswith("<?xml")


def test_the_files_are_written_from_what_the_json_holds(content, tmp_path):
    paths = write_results(tmp_path, "s", content, "<svg/>")
    assert [path.name for path in paths] == ["s.json", "s.md", "s.svg", "s_energy.svg"]
    assert markdown(read_json(paths[0]), "s.svg") == paths[1].read_text()
