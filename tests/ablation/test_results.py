"""The table and the figures of a study, from results that were made up."""

from __future__ import annotations

import pytest

from pipeline.ablation.results import StudyResult, markdown, plot, write_results
from pipeline.report.formatting import NOT_MEASURED
from tests.conftest import ROOT


def with_rows(result: StudyResult, last=None, **changes) -> StudyResult:
    """The result with changes to every row, and to its last epoch."""
    changed = [row.model_copy(update=changes | {"last": row.last.model_copy(update=last or {})}) for row in result.rows]
    return result.model_copy(update={"rows": changed})


def rows(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_the_table_has_mean_deviation_and_difference_of_every_arm(result):
    header, _, reference, other = rows(markdown(result, "figure.svg"))
    assert header[:3] == ["arm", "test top-1, last epoch", "Δ to KD"]
    assert reference[:5] == ["KD", "71.00 ± 1.41", NOT_MEASURED, NOT_MEASURED, "71.10 ± 1.41"]
    assert other[:3] == ["random subset", "75.05 ± 1.48", r"+4.05\*"]
    assert other[-1] == "1.5"


def test_the_table_names_teacher_students_seeds_code_and_figure(result):
    text = markdown(result, "figure.svg")
    for part in ("resnet8, 2 epochs, test top-1 87.65 %", "2 epochs, 2 seeds", "cpu with 1 thread", "code abc"):
        assert part in text
    assert "(figure.svg)" in text


def test_named_comparisons_have_a_table_of_their_own(result):
    assert "| comparison" not in markdown(result, "f.svg")
    named = result.model_copy(update={"comparisons": [("KD", "random subset")]})
    header, _, line = rows(markdown(named, "f.svg"))[-3:]
    assert header[0] == "comparison"
    assert line[:2] == ["KD \N{MINUS SIGN} random subset", "\N{MINUS SIGN}4.05\\*"]


def test_where_all_train_equally_long_the_table_has_the_epochs_of_each_arm(result):
    page = markdown(result.model_copy(update={"seconds": 12.5}), "f.svg")
    header, _, line, *_ = rows(page)
    assert header[-2:] == ["high-energy", "epochs"]
    assert line[-1] == "2"
    assert "Student: resnet8, 12.5 s with the storing of soft labels, 2 seeds." in page
    assert "showed to fit into 12.5 s, validation aside" in page and "Seconds per epoch" not in page


def test_shots_are_shown_for_a_long_tail_only(result):
    assert "few-shot" not in markdown(result, "f.svg")
    shots = {"top1_medium_shot": 0.4, "top1_few_shot": 0.1}
    tailed = with_rows(result, long_tail=True, last=shots)
    header = rows(markdown(tailed, "f.svg"))[0]
    assert header[-4:-1] == ["many-shot", "medium-shot", "few-shot"]


def test_results_of_different_code_are_all_named(result):
    first, *others = result.rows
    other = result.model_copy(update={"rows": [first.model_copy(update={"code": "def"}), *others]})
    assert "code abc, def" in markdown(other, "f.svg")


def test_the_plot_is_the_same_every_time(result):
    assert plot(result, "s") == plot(result, "s")
    assert plot(result, "s").startswith("<?xml")


def test_the_files_are_written_from_what_the_json_holds(result, tmp_path):
    paths = write_results(tmp_path, "s", result, "<svg/>")
    assert [path.name for path in paths] == ["s.json", "s.md", "s.svg", "s_energy.svg"]
    read = StudyResult.read(paths[0])
    assert read == result
    assert [markdown(read, "s.svg"), plot(read, "s"), "<svg/>"] == [path.read_text() for path in paths[1:]]


def test_the_json_has_a_line_for_each_trial_and_each_arm(result, tmp_path):
    result.write(tmp_path / "s.json")
    lines = (tmp_path / "s.json").read_text().splitlines()
    for row in result.rows:
        assert (
            sum(line.startswith(f'    {{"seed": {row.seed},') and f'"arm": "{row.arm}"' in line for line in lines) == 1
        )
    assert len(lines) < 30


def test_an_arm_of_equal_top1_and_balanced_accuracy_has_no_column_of_the_second(result):
    assert "balanced" not in rows(markdown(result, "f.svg"))[0]
    assert "balanced" in rows(markdown(with_rows(result, last={"balanced_accuracy": 0.5}), "f.svg"))[0]


@pytest.mark.parametrize("path", sorted((ROOT / "docs/results").glob("cifar10*.json")), ids=lambda path: path.stem)
def test_the_table_of_a_study_as_shipped_is_that_of_its_figures(path):
    table = markdown(StudyResult.read(path), f"{path.stem}.svg")
    # these were run when the first epoch still counted
    older = table.replace("median of those after the first, without", "median, without")
    assert path.with_suffix(".md").read_text(encoding="utf-8") in (table, older)
