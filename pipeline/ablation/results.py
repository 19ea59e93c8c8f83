"""What a study leaves behind: every figure as JSON, and a Markdown table and a plot made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from pipeline.ablation.statistics import Difference, differences, mean_and_deviation
from pipeline.ablation.study import Run, Study
from pipeline.ablation.upstream import fit_groups, read_scores
from pipeline.config import Params
from pipeline.report.figure import FAINT, INK, LINE, STUDENT, STYLE, new_figure, to_svg
from pipeline.report.formatting import MINUS, NOT_MEASURED, percent, points
from pipeline.report.inputs import Table
from pipeline.report.plots import confidence_plot
from pipeline.store.atomic import atomic_file
from pipeline.store.tables import write_json

Document = Mapping[str, Any]
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
DELTA = "\N{GREEK CAPITAL LETTER DELTA}"
# column -> key of a result; shown where at least one arm has it
_PARTS = {
    "high-energy": "top1_high_energy",
    "balanced": "balanced_accuracy",
    "many-shot": "top1_many_shot",
    "medium-shot": "top1_medium_shot",
    "few-shot": "top1_few_shot",
}


def document(
    study: Study, teachers: Sequence[Mapping[str, Any]], results: Sequence[tuple[Run, Mapping[str, Any]]]
) -> dict[str, Any]:
    """The content of <study>.json: what was asked for and every result."""
    return {
        "schema": 1,
        "title": study.title,
        "note": study.note,
        "reference": study.reference,
        "comparisons": [list(pair) for pair in study.comparisons],
        "seeds": list(study.seeds),
        "teachers": [dict(teacher) for teacher in teachers],
        "settings": {
            name: params.model_dump(mode="json", include={"data", "teacher", "energy", "heda", "distill"})
            for name, params in study.arms.items()
        },
        "rows": [{"arm": run.arm, **result} for run, result in results],
    }


def write_results(folder: Path, name: str, content: Document, energy: str) -> list[Path]:
    """Write <name>.json, <name>.md, <name>.svg and <name>_energy.svg into ``folder`` and return their paths.

    Args:
        energy: of :func:`energy_picture`.
    """
    figures = folder / f"{name}.json"
    write_json(figures, content)
    texts = {
        f"{name}.md": markdown(content, f"{name}.svg"),
        f"{name}.svg": plot(content, name),
        f"{name}_energy.svg": energy,
    }
    for file, text in texts.items():
        with atomic_file(folder / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [figures, *(folder / file for file in texts)]


def energy_picture(params: Params, root: Path) -> str:
    """Energy against confidence of the training images of a study, as an SVG document."""
    columns = read_scores(params, root, "train")
    groups = fit_groups(params, columns["energy"])
    thresholds = {"low_threshold": groups.low_threshold, "high_threshold": groups.high_threshold}
    return confidence_plot(Table(columns | {"group": groups.codes.numpy()}, thresholds))


def markdown(content: Document, figure: str) -> str:
    """The table of a study with what it takes to read it.

    Args:
        figure: the plot's file name, relative to the Markdown file.
    """
    arms = _values(content, "last", "top1")
    selected = _values(content, "best_validation", "top1")
    reference, named = content["reference"], [(first, second) for first, second in content["comparisons"]]
    against = [(name, reference) for name in arms if name != reference]
    total = len(against) + len(named)
    apart = dict(zip([name for name, _ in against], differences(arms, against, total), strict=True))
    parts = {title: _values(content, "last", key) for title, key in _shown_parts(content).items()}
    header = [
        "arm",
        "test top-1, last epoch",
        f"{DELTA} to {reference}",
        "95 % interval",
        "test top-1, best validation epoch",
        *parts,
        "s / epoch",
    ]
    lines = [f"# {content['title']}", "", content["note"], "", _facts(content), ""]
    lines += [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for name, values in arms.items():
        difference = apart.get(name)
        cells = [
            name,
            _spread(values),
            *([NOT_MEASURED] * 2 if difference is None else _difference(difference)),
            _spread(selected[name]),
            *(_spread(part[name]) for part in parts.values()),
            f"{np.median([row['seconds_per_epoch'] for row in content['rows'] if row['arm'] == name]):.1f}",
        ]
        lines.append(_line(cells))
    if named:
        lines += ["", _line(["comparison", f"{DELTA} test top-1, last epoch", "95 % interval"])]
        lines += [_line(["---", "---:", "---:"])]
        for (first, second), difference in zip(named, differences(arms, named, total), strict=True):
            lines.append(_line([f"{first} {MINUS} {second}", *_difference(difference)]))
    lines += ["", _legend(total), "", f"![Test top-1 of every seed and arm]({figure})", ""]
    return "\n".join(lines)


def plot(content: Document, name: str) -> str:
    """Every seed of every arm as a dot, the mean as a bar, as an SVG document."""
    arms = _values(content, "last", "top1")
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(0.9 + 0.3 * len(arms), 1)
        reference = 100 * float(np.mean(arms[content["reference"]]))
        axes.axvline(reference, color=LINE, linewidth=1.0, linestyle=(0, (4, 3)))
        for place, values in enumerate(arms.values()):
            shares = 100 * np.asarray(values)
            axes.plot(shares, [place] * len(shares), "o", color=STUDENT, markersize=5, alpha=0.55, markeredgewidth=0)
            axes.plot([shares.mean()] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=2)
        axes.set_yticks(range(len(arms)), list(arms))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"test top-1 in %, last epoch; bar: mean, dashed: mean of {content['reference']}", color=FAINT)
        return to_svg(figure, name)


def _values(content: Document, moment: str, key: str) -> dict[str, list[float]]:
    """Arm -> one value per seed, in the order of the seeds."""
    found: dict[str, dict[int, float]] = {}
    for row in content["rows"]:
        found.setdefault(row["arm"], {})[row["seed"]] = row[moment][key]
    return {arm: [by_seed[seed] for seed in content["seeds"]] for arm, by_seed in found.items()}


def _shown_parts(content: Document) -> dict[str, str]:
    long_tail = any(row["long_tail"] for row in content["rows"])
    keys = dict(_PARTS)
    if not long_tail:
        keys = {title: key for title, key in keys.items() if not title.endswith("-shot")}
    # on a balanced test split it repeats the top-1
    if all(abs(row["last"]["balanced_accuracy"] - row["last"]["top1"]) < 1e-9 for row in content["rows"]):
        del keys["balanced"]
    return {title: key for title, key in keys.items() if all(row["last"][key] is not None for row in content["rows"])}


def _facts(content: Document) -> str:
    teachers = "; ".join(
        f"{teacher['network']}, {_epochs(teacher)}test top-1 {percent(teacher['test_top1'], 2)} %"
        for teacher in content["teachers"]
    )
    students = sorted({settings["distill"]["network"] for settings in content["settings"].values()})
    epochs = sorted({settings["distill"]["training"]["epochs"] for settings in content["settings"].values()})
    where = sorted({f"{row['device']} with {row['threads']} thread(s)" for row in content["rows"]})
    code = sorted({row["code"] for row in content["rows"]})
    return (
        f"Teacher: {teachers}. Student: {', '.join(students)}, {', '.join(map(str, epochs))} epochs, "
        f"{len(content['seeds'])} seeds. Run on {', '.join(where)}; code {', '.join(code)}."
    )


def _epochs(teacher: Mapping[str, Any]) -> str:
    return f"{teacher['epochs']} epochs, " if teacher["epochs"] else ""


def _legend(comparisons: int) -> str:
    return (
        f"Top-1 in %, mean {PLUS_MINUS} standard deviation over the seeds; {DELTA} in points, seed by seed. The "
        "interval takes its noise from all arms together (residual of arm and seed, which assumes that all arms are "
        f"equally noisy) and is not widened for the number of comparisons: of {comparisons} intervals, one in twenty "
        rf"leaves out zero by chance. \* still clear of zero when widened for {comparisons} comparisons (Bonferroni). "
        "Last epoch: no selection. Best validation epoch: chosen on held-out training images, never on the test split. "
        "Seconds per epoch: median of those after the first, without validation, beside whatever else the machine did."
    )


def _spread(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    return percent(mean, 2) if deviation is None else f"{percent(mean, 2)} {PLUS_MINUS} {100 * deviation:.2f}"


def _difference(difference: Difference) -> list[str]:
    """Value, starred if it stands out, and interval."""
    value = points(difference.value, 2) + r"\*" * difference.stands_out
    return [value, _interval(difference.value, difference.half_width)]


def _interval(value: float, half_width: float | None) -> str:
    if half_width is None:
        return NOT_MEASURED
    return f"{points(value - half_width, 2)} to {points(value + half_width, 2)}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
