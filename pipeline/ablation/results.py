"""Results of a study: every number as JSON, and a Markdown table and plots made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from pipeline.ablation.statistics import Difference, differences, mean_and_deviation
from pipeline.ablation.study import Study, Trial
from pipeline.ablation.trial import TrialResult, places_of
from pipeline.compute.device import TrainingPrecision
from pipeline.config import Params
from pipeline.lineage import Run
from pipeline.portable.files import atomic_file
from pipeline.report.formatting import MINUS, NOT_MEASURED, percent, points
from pipeline.report.plots import DASHED, FAINT, INK, LINE, STUDENT, STYLE, confidence_plot, new_figure, to_svg
from pipeline.store.documents import Document, Part
from pipeline.store.json_files import write_json

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
DELTA = "\N{GREEK CAPITAL LETTER DELTA}"
# column -> field of EpochAccuracy; shown if every trial has it
_PARTS = {
    "high-energy": "top1_high_energy",
    "balanced": "balanced_accuracy",
    "many-shot": "top1_many_shot",
    "medium-shot": "top1_medium_shot",
    "few-shot": "top1_few_shot",
}


class TeacherResult(Part):
    """The teacher of a study; ``epochs`` is None for a given checkpoint."""

    network: str
    epochs: int | None
    val_top1: float
    test_top1: float


class Row(TrialResult):
    """The result of a trial, and its arm."""

    arm: str


class StudyResult(Document):
    """<study>.json: settings and every result.

    Attributes:
        seconds: that each training had; None: each has its number of epochs.
        settings: arm -> the blocks of params.yaml that decide it.
    """

    title: str
    note: str
    reference: str
    comparisons: list[tuple[str, str]]
    seeds: list[int]
    seconds: float | None = None
    teachers: list[TeacherResult]
    settings: dict[str, dict[str, Any]]
    rows: list[Row]

    @classmethod
    def of(
        cls, study: Study, root: Path, inputs: Sequence[Params], results: list[tuple[Trial, TrialResult]]
    ) -> StudyResult:
        """Collect the results of a finished study.

        Args:
            inputs: one arm's parameters for each different set of energies.
        """
        return cls(
            **study.file.model_dump(include={"title", "note", "comparisons", "seeds", "seconds"}),
            reference=study.reference,
            # arms with energies of their own may share a teacher
            teachers=list(dict.fromkeys(_teacher_result(Run(places_of(params, root))) for params in inputs)),
            settings={arm: settings_of(params) for arm, params in study.arms.items()},
            rows=[Row(arm=trial.arm, **dict(result)) for trial, result in results],
        )

    def write(self, path: Path) -> StudyResult:
        """Write the file atomically, one line per trial."""
        write_json(path, self.content(), one_line_each=True)
        return self

    def per_seed(self, epoch: str, key: str) -> dict[str, list[float]]:
        """Arm -> one value per seed, in the order of the seeds; ``epoch`` is "last" or "best_validation"."""
        return {
            arm: [
                getattr(getattr(row, epoch), key)
                for seed in self.seeds
                for row in self.rows
                if (row.arm, row.seed) == (arm, seed)
            ]
            for arm in self.settings
        }


def settings_of(params: Params) -> dict[str, Any]:
    """The blocks of params.yaml that decide an arm, as JSON."""
    return params.model_dump(mode="json", include={"data", "teacher", "energy", "heda", "soft_labels", "distill"})


def write_results(folder: Path, name: str, result: StudyResult, energy: str) -> list[Path]:
    """Write <name>.json, <name>.md, <name>.svg and <name>_energy.svg into ``folder`` and return their paths.

    Args:
        energy: SVG document of :func:`energy_picture`.
    """
    result.write(folder / f"{name}.json")
    texts = {
        f"{name}.md": markdown(result, f"{name}.svg"),
        f"{name}.svg": plot(result, name),
        f"{name}_energy.svg": energy,
    }
    for file, text in texts.items():
        with atomic_file(folder / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / f"{name}.json", *(folder / file for file in texts)]


def energy_picture(params: Params, root: Path) -> str:
    """Energy against confidence of the training images of a study, as an SVG document."""
    return confidence_plot(Run(places_of(params, root)).energy)


def markdown(result: StudyResult, figure: str) -> str:
    """Markdown page of a study: facts, tables, legend and plot.

    Args:
        figure: the plot's file name, relative to the Markdown file.
    """
    arms, selected = result.per_seed("last", "top1"), result.per_seed("best_validation", "top1")
    reference, named = result.reference, result.comparisons
    against = [(name, reference) for name in arms if name != reference]
    total = len(against) + len(named)
    to_reference = dict(zip([name for name, _ in against], differences(arms, against, total), strict=True))
    parts = {title: result.per_seed("last", key) for title, key in _shown_parts(result).items()}
    header = ["arm", "test top-1, last epoch", f"{DELTA} to {reference}", "95 % interval"]
    header += ["test top-1, best validation epoch", *parts, "epochs" if result.seconds else "s / epoch"]
    lines = [f"# {result.title}", "", result.note, "", _facts(result), ""]
    lines += [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for name, values in arms.items():
        cells = [name, _spread(values), *_difference(to_reference.get(name)), _spread(selected[name])]
        cells += [_spread(part[name]) for part in parts.values()]
        seconds = np.median([row.seconds_per_epoch for row in result.rows if row.arm == name])
        cells.append(str(_epochs(result.settings[name])) if result.seconds else f"{seconds:.1f}")
        lines.append(_line(cells))
    if named:
        lines += ["", _line(["comparison", f"{DELTA} test top-1, last epoch", "95 % interval"])]
        lines += [_line(["---", "---:", "---:"])]
        for (first, second), difference in zip(named, differences(arms, named, total), strict=True):
            lines.append(_line([f"{first} {MINUS} {second}", *_difference(difference)]))
    lines += ["", _legend(total, result.seconds), "", f"![Test top-1 of every seed and arm]({figure})", ""]
    return "\n".join(lines)


def plot(result: StudyResult, name: str) -> str:
    """Every seed of every arm as a dot, the mean as a bar, as an SVG document."""
    arms = result.per_seed("last", "top1")
    with mpl.rc_context(fname=STYLE):
        figure, (axes,) = new_figure(0.9 + 0.3 * len(arms), 1)
        reference = 100 * float(np.mean(arms[result.reference]))
        axes.axvline(reference, color=LINE, linewidth=1.0, linestyle=DASHED)
        for place, values in enumerate(arms.values()):
            shares = 100 * np.asarray(values)
            axes.plot(shares, [place] * len(shares), "o", color=STUDENT, markersize=5, alpha=0.55, markeredgewidth=0)
            axes.plot([shares.mean()] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=2)
        axes.set_yticks(range(len(arms)), list(arms))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"test top-1 in %, last epoch; bar: mean, dashed: mean of {result.reference}", color=FAINT)
        return to_svg(figure, name)


def _teacher_result(run: Run) -> TeacherResult:
    card, right = run.teacher, run.energy_test.columns["correct"]
    return TeacherResult(
        network=card.network, epochs=card.epochs, val_top1=card.val_top1, test_top1=float(right.mean())
    )


def _shown_parts(result: StudyResult) -> dict[str, str]:
    long_tail = any(row.long_tail for row in result.rows)
    # on a balanced test split, balanced accuracy repeats the top-1
    balanced = all(abs(row.last.balanced_accuracy - row.last.top1) < 1e-9 for row in result.rows)
    return {
        title: key
        for title, key in _PARTS.items()
        if not (title.endswith("-shot") and not long_tail)
        and not (title == "balanced" and balanced)
        and all(getattr(row.last, key) is not None for row in result.rows)
    }


def _facts(result: StudyResult) -> str:
    teachers = "; ".join(
        f"{teacher.network}, {f'{teacher.epochs} epochs, ' if teacher.epochs else ''}test top-1 "
        f"{percent(teacher.test_top1, 2)} %"
        for teacher in result.teachers
    )
    distill = [settings["distill"] for settings in result.settings.values()]
    students = sorted({settings["network"] for settings in distill})
    epochs = ", ".join(map(str, sorted({_epochs(settings) for settings in result.settings.values()})))
    length = f"{epochs} epochs" if result.seconds is None else f"{result.seconds:g} s with the storing of soft labels"
    where = sorted({f"{row.device} with {row.threads} thread(s){_in(row.precision)}" for row in result.rows})
    code = sorted({row.code for row in result.rows})
    return (
        f"Teacher: {teachers}. Student: {', '.join(students)}, {length}, "
        f"{len(result.seeds)} seeds. Run on {', '.join(where)}; code {', '.join(code)}."
    )


def _epochs(settings: Mapping[str, Any]) -> int:
    epochs: int = settings["distill"]["training"]["epochs"]
    return epochs


def _in(precision: TrainingPrecision | None) -> str:
    return "" if precision is None else f" in {precision}"


def _legend(comparisons: int, seconds: float | None) -> str:
    length = (
        "Seconds per epoch: median of those after the first, without validation, beside whatever else the machine did."
        if seconds is None
        else f"Epochs: what a pilot that had the machine to itself showed to fit into {seconds:g} s, validation aside."
    )
    return (
        f"Top-1 in %, mean {PLUS_MINUS} standard deviation over the seeds; {DELTA} in points, seed by seed. The "
        "interval takes its noise from all arms together (residual of arm and seed, which assumes that all arms are "
        f"equally noisy) and is not widened for the number of comparisons: of {comparisons} intervals, one in twenty "
        rf"leaves out zero by chance. \* still clear of zero when widened for {comparisons} comparisons (Bonferroni). "
        "Last epoch: no selection. Best validation epoch: chosen on held-out training images, never on the test split. "
        + length
    )


def _spread(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    return percent(mean, 2) if deviation is None else f"{percent(mean, 2)} {PLUS_MINUS} {100 * deviation:.2f}"


def _difference(difference: Difference | None) -> list[str]:
    """Cells of the table: the value, starred if it stands out, and the interval."""
    if difference is None:
        return [NOT_MEASURED] * 2
    value, half = difference.value, difference.half_width
    interval = NOT_MEASURED if half is None else f"{points(value - half, 2)} to {points(value + half, 2)}"
    return [points(value, 2) + r"\*" * difference.stands_out, interval]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
