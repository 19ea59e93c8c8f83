"""Render the report as one HTML file with embedded styles and plots, readable offline."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.config import TEACHER, BudgetParams
from pipeline.portable.documents import MeasuredRow
from pipeline.report import formatting
from pipeline.report.build import Report
from pipeline.report.cascades import CascadeRow, beaten_by
from pipeline.report.compare import compare, deploy_words, verdict_sentence, wilson_interval
from pipeline.report.devices import OnDevice
from pipeline.report.pareto import pareto_plot
from pipeline.report.plots import (
    confidence_plot,
    energy_plot,
    learning_plot,
    network_colours,
    routing_plot,
    sustained_plot,
)
from pipeline.report.recommend import Recommendation, Step, budget_sentence
from pipeline.report.rows import Row, best_student
from pipeline.store import paths

_CLASSES_SHOWN = 12
_DEVICE_PLOT_INCHES = 3.4
_PLAIN_FILTERS = (
    *("count", "executed", "flatten", "known", "logit_error", "milliseconds", "number", "plain", "runtime", "size"),
    *("throughput", "verdict"),
)
_CARD_FACTS = ("network", "source", "epochs", "kept_epoch", "seed", "parameters", "macs", "distill", "heda")
_BY_DECIMALS = ("interval", "percent", "points")


@dataclass(frozen=True)
class Notes:
    """Notes under a table: notes of all rows appear once, the other notes are numbered.

    Attributes:
        common: notes that all rows have; empty for a single row.
        numbered: the other notes, in the order of the rows.
    """

    common: Sequence[str]
    numbered: Sequence[str]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Notes:
        notes = list(dict.fromkeys(note for row in rows for note in row.notes))
        common = [note for note in notes if all(note in row.notes for row in rows)] if len(rows) > 1 else []
        return cls(common, [note for note in notes if note not in common])

    def numbers_of(self, row: Row) -> list[int]:
        """Numbers of the notes of a row, from 1."""
        return [self.numbered.index(note) + 1 for note in dict.fromkeys(row.notes) if note not in self.common]


def render_page(report: Report) -> str:
    """Render reports/report.html."""
    inputs, run, chosen = report.inputs, report.inputs.run, report.recommendation.row
    evaluation = report.student.evaluation
    decimals = formatting.accuracy_decimals(evaluation.test_images)
    shown = [row for row in report.rows if row.is_measured]
    routing = next((row.routing for row in evaluation.rows if chosen and (row.name, row.runtime) == chosen.key), None)
    kept = routing.energy if routing else None
    colours = network_colours(list(report.students))
    colour_of_file = {file.name: colours[network.name] for network in run.networks for file in network.exported.files}
    script = resources.files("pipeline.report").joinpath("sort.js").read_text(encoding="utf-8")
    return (
        _environment(report, decimals, colour_of_file)
        .get_template("report.html")
        .render(
            report=report,
            run=run,
            data=run.data,
            evaluation=evaluation,
            paths=paths,
            chosen=chosen,
            verdict=_verdict(report, decimals),
            rows=shown,
            beside=side_by_side(shown, report.devices),
            pareto=figure_element(_pareto(report, chosen, colour_of_file)),
            colours=colours,
            energy=figure_element(energy_plot(run.energy, run.energy_test)),
            energy_groups=np.bincount(run.energy.columns["group"], minlength=3).tolist(),
            confidence=figure_element(confidence_plot(run.energy)),
            routing=routing,
            routing_figure=figure_element(routing_plot(routing)) if routing else None,
            routing_interval=wilson_interval(kept.top1, kept.kept) if kept and kept.top1 is not None else None,
            subset=_subset(report),
            curves=figure_element(learning_plot(inputs.curves, colours)),
            network_settings=network_settings(report),
            runtimes={
                formatting.runtime(row.runtime): f"{row.runtime_version}, {row.provider}" for row in evaluation.rows
            },
            missing=_missing(report),
            script=Markup(script),  # noqa: S704  our own
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _pareto(where: Report | OnDevice, chosen: Row | None, colours: Mapping[str, str], **options: Any) -> str | None:
    """The plot of the files of a device and of their cascades, in the colour of the file that answers first."""
    rows = [*(row for row in where.rows if row.is_measured), *where.cascades]
    of_cascades = {row.name: colours[row.cascade.small.name] for row in where.cascades}
    curves = [[(point.latency_ms, point.top1) for point in row.cascade.curve] for row in where.cascades]
    return pareto_plot(rows, chosen, {**colours, **of_cascades}, curves=curves, **options)


def _environment(report: Report, decimals: int, colours: Mapping[str, str]) -> jinja2.Environment:
    """Args: colours: of the files, by name."""
    several = len(report.students) > 1
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(formatting, name) for name in _PLAIN_FILTERS}
    environment.filters |= {
        name: functools.partial(getattr(formatting, name), decimals=decimals) for name in _BY_DECIMALS
    }
    environment.globals |= {
        "several": several,
        "notes_of": Notes.of,
        "apart": lambda budget: several or budget.reference == TEACHER,
        "reference": functools.partial(_reference, report),
        "reference_name": functools.partial(_reference_name, report),
        "device_sentence": functools.partial(device_sentence, several=several),
        "step_sentences": step_sentences,
        "has_passes": has_passes,
        "beaten_by": beaten_by,
        "device_pareto": lambda found: figure_element(
            _pareto(found, found.recommendation.row, colours, name=f"pareto-{found.name}", height=_DEVICE_PLOT_INCHES)
        ),
        "sustained_figure": lambda rows, name: figure_element(sustained_plot(rows, name, colours)),
    }
    return environment


def figure_element(svg: str | None) -> Markup | None:
    """Convert a plot from SVG to an HTML element: no prologue, metadata, namespaces and fixed size."""
    if svg is None:
        return None
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", head)
    return Markup(f'{head} aria-hidden="true" focusable="false">{rest}'.strip())  # noqa: S704  text in our plots is outlines


def _verdict(report: Report, decimals: int) -> str:
    row = report.recommendation.row
    if row is not None and report.comparison is not None:
        return verdict_sentence(row, report.comparison, decimals, several=len(report.students) > 1)
    if report.recommendation.broken:
        return "No file can be recommended: each one breaks a limit of the budget, as listed under the measurements."
    reason = budget_sentence(report.recommendation)
    return f"{reason[0].upper()}{reason[1:]}."


def device_sentence(device: OnDevice, *, several: bool) -> str:
    """Recommend a file for a device in one sentence, or give the reason for no recommendation."""
    row = device.recommendation.row
    if row is None:
        return f"No file is recommended for it: {device.not_recommended}."
    if not any(other.role == "teacher" for other in device.rows):
        latency = formatting.milliseconds(row.latency_p50_ms)
        average = "on average" if isinstance(row, CascadeRow) else "at the median"
        return f"{deploy_words(row, several=several)}: {latency} ms {average}."
    decimals = formatting.accuracy_decimals(row.images or 0)
    return verdict_sentence(row, compare(row, device.rows, device.measured), decimals, several=several)


def step_sentences(recommendation: Recommendation) -> list[tuple[str, str]]:
    """What the next cheaper and the next better file would change: a caption and a sentence for each."""
    if recommendation.row is None:
        return []
    cheaper, better = recommendation.cheaper, recommendation.better
    if cheaper and better and cheaper.row is better.row:
        return [("One step cheaper and better", _step_sentence(better))]
    steps = {"One step cheaper": cheaper, "One step better": better}
    return [(caption, _step_sentence(step) if step else "there is none.") for caption, step in steps.items()]


def _step_sentence(step: Step) -> str:
    row, difference = step.row, step.difference
    size, latency = formatting.size(abs(step.size_bytes)), formatting.milliseconds(abs(step.latency_ms))
    changes = [
        f"{size} {'smaller' if step.size_bytes < 0 else 'larger'}" if step.size_bytes else "of the same size",
        f"{latency} ms {'faster' if step.latency_ms < 0 else 'slower'}" if step.latency_ms else "as fast",
    ]
    sentence = f"{row.name} with {formatting.runtime(row.runtime)}, {' and '.join(changes)}"
    if difference is not None:
        decimals = formatting.accuracy_decimals(row.images or 0)
        bounds = formatting.interval(difference.low, difference.high, decimals)
        change = formatting.points(difference.value, decimals)
        sentence += f", at {change} points of top-1 accuracy (95 % interval {bounds})"
    if step.broken:
        return f"{sentence}; {', '.join(step.broken)}."
    chosen_by = ", but not more accurate on the validation images, by which the budget chooses" if step.behind else ""
    return f"{sentence}; it is within the budget too{chosen_by}."


def _reference_name(report: Report, budget: BudgetParams) -> str:
    """The network that the drops of a budget are against."""
    return TEACHER if budget.reference == TEACHER else best_student(report.inputs.run).name


def _reference(report: Report, budget: BudgetParams) -> str:
    name = _reference_name(report, budget)
    if name == TEACHER:
        return "the teacher"
    return f"the student {name}" if len(report.students) > 1 else "the student in PyTorch"


def network_settings(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Captions and settings of the networks; what several students have in common is said once."""
    run = report.inputs.run
    settings = {
        network.name: formatting.known(
            {key: getattr(network.card, key) for key in _CARD_FACTS}  # without those that did not apply
        )
        for network in run.networks
    }
    of_teacher = ("Teacher", settings.pop(TEACHER))
    if len(settings) == 1:
        return [of_teacher, *(("Student", pairs) for pairs in settings.values())]
    first = next(iter(settings.values()))
    common = [pair for pair in first if all(pair in pairs for pairs in settings.values())]
    own = [(name, [pair for pair in pairs if pair not in common]) for name, pairs in settings.items()]
    return [of_teacher, ("All students", common), *((f"Student {name}", pairs) for name, pairs in own)]


def has_passes(rows: Sequence[MeasuredRow]) -> bool:
    """True if any row has a measurement besides accuracy and latency."""
    return any(
        row.cold or row.memory or row.sustained or row.throughput or row.joules_per_inference is not None
        for row in rows
    )


def side_by_side(rows: Sequence[Row], devices: Sequence[OnDevice]) -> dict[tuple[str, str], list[Row | None]]:
    """Collect the timed rows per file and runtime: this machine, then each device; None if not timed."""
    columns = [
        {row.key: row for row in column if row.latency_p50_ms is not None}
        for column in (rows, *(device.rows for device in devices))
    ]
    return {key: [column.get(key) for column in columns] for column in columns for key in column}


def _subset(report: Report) -> dict[str, Any]:
    """Compare energy and class shares of the HE-DA subset with the training split."""
    run = report.inputs.run
    train, subset, names = run.energy.columns, run.subset.columns, run.data.class_names
    inside = np.isin(train["index"], subset["index"])
    of_train, of_subset = (
        np.bincount(table["label"], minlength=len(names)) / max(len(table["label"]), 1) for table in (train, subset)
    )
    factor = np.divide(of_subset, of_train, out=np.zeros_like(of_subset), where=of_train > 0)
    largest = max(float(factor.max(initial=0.0)), 1.0)
    hardest = np.argsort(-factor, kind="stable")[:_CLASSES_SHOWN]
    return {
        "kind": run.subset.lineage.subset.replace("_", "-"),
        "mix": (report.student.card.heda or {}).get("mix", "none"),
        "sides": [_images(train, inside), _images(train, ~inside)],
        "classes": [(names[k], float(of_train[k]), float(of_subset[k]), float(factor[k])) for k in hardest.tolist()],
        "largest": largest,
    }


def _images(train: Mapping[str, NDArray[Any]], members: NDArray[np.bool_]) -> dict[str, Any]:
    """Statistics of a part of the training images."""
    part = {name: column[members] for name, column in train.items()}
    energy, count = part["energy"], int(members.sum())
    return {
        "images": count,
        "top1": float(part["correct"].mean()) if count else None,
        "confidence": float(part["confidence"].mean()) if count else None,
        "energy": f"{energy.min():.2f} to {energy.max():.2f}".replace("-", formatting.MINUS) if count else None,
        "groups": " / ".join(f"{size:,}" for size in np.bincount(part["group"], minlength=3).tolist()),
    }


def _missing(report: Report) -> list[tuple[str, list[str]]]:
    """List the reasons for missing numbers, each with its files as ``file (runtime)``."""
    missing: dict[str, list[str]] = {}
    for row in report.rows:
        for note in row.notes:
            if "not measured" in note or "not unique" in note:
                missing.setdefault(note, []).append(f"{row.name} ({formatting.runtime(row.runtime)})")
    for network in report.inputs.run.networks:
        if network.name not in report.inputs.curves:
            source = "it came from a checkpoint" if network.card.source == "checkpoint" else "no curves were logged"
            missing[f"learning curves of {network.name} not measured: {source}"] = []
    return list(missing.items())
