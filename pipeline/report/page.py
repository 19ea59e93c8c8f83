"""The page: one HTML file with styles and plots inside, readable without a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from pipeline.report import formatting
from pipeline.report.compare import Comparison, verdict_sentence, wilson_interval
from pipeline.report.devices import OnDevice
from pipeline.report.figure import inline
from pipeline.report.formatting import flatten, plain, runtime
from pipeline.report.inputs import DATA_CARD, STUDENT_CARD, TEACHER_CARD, Inputs, Json
from pipeline.report.notes import Notes
from pipeline.report.page_devices import device_sections, has_passes, passes, side_by_side, sustained_figure
from pipeline.report.pareto import pareto_plot
from pipeline.report.plots import confidence_plot, energy_plot, learning_plot, routing_plot
from pipeline.report.recommend import Recommendation, budget_sentence
from pipeline.store.paths import ENERGY, EXPORT, SUBSET

Row = Mapping[str, Any]

_CLASSES_SHOWN = 12
_LONG_TEXT = 160  # characters; longer settings are folded


def render_page(
    inputs: Inputs,
    summary: Json,
    recommendation: Recommendation,
    comparison: Comparison | None,
    devices: Sequence[OnDevice] = (),
) -> str:
    """The content of reports/report.html.

    Args:
        summary: of :func:`pipeline.report.summary.build_summary`.
        comparison: of the recommended row with the teacher; None if no file is within the budget.
        devices: of targets/.
    """
    decimals = formatting.accuracy_decimals(inputs.evaluation["test_images"])
    rows: list[Row] = [row for row in summary["rows"] if row["target"] is None]
    shown = [row for row in rows if _has_numbers(row)]
    chosen = recommendation.row
    if chosen is not None and comparison is not None:
        verdict = verdict_sentence(chosen, comparison, decimals)
    else:
        verdict = "No file can be recommended: each one breaks a limit of the budget, as listed under the measurements."
        if not recommendation.broken:
            reason = budget_sentence(recommendation)
            verdict = f"{reason[0].upper()}{reason[1:]}."
    here = [passes(row) for row in inputs.benchmark["rows"]]
    curves = learning_plot(inputs.curves)
    plot = pareto_plot(shown, chosen)
    return (
        _environment(decimals)
        .get_template("report.html")
        .render(
            title=f"{inputs.data['name']}: {inputs.teacher['network']} to {inputs.student['network']}",
            verdict=verdict,
            data=inputs.data,
            evaluation=inputs.evaluation,
            device=inputs.benchmark["device"],
            student=summary["student"],
            teacher=summary["teacher"],
            chosen=chosen,
            comparison=comparison,
            broken=recommendation.broken,
            unprofitable=recommendation.unprofitable,
            limits=[pair for pair in flatten(inputs.budget.model_dump()) if pair[1] != formatting.NOT_MEASURED],
            rows=shown,
            is_chosen=lambda row: chosen is not None and _key(row) == _key(chosen),
            notes=Notes.of(shown),
            passes=here if has_passes(here) else None,
            sustained=sustained_figure(inputs.benchmark["rows"], "here"),
            devices=device_sections(devices),
            beside=side_by_side(shown, devices),
            pareto=None if plot is None else Markup(inline(plot)),  # noqa: S704  our own SVG, its text is outlines
            pareto_text=_describe(shown, decimals),
            energy=Markup(inline(energy_plot(inputs.energy, inputs.energy_test))),  # noqa: S704
            energy_text=_describe_energy(inputs),
            confidence=Markup(inline(confidence_plot(inputs.energy))),  # noqa: S704
            routing=None if chosen is None else _routing(chosen, inputs),
            subset=_subset_facts(inputs),
            curves=None if curves is None else Markup(inline(curves)),  # noqa: S704
            trained=" and ".join(role for role in ("teacher", "student") if role in inputs.curves),
            proofs=[file for file in inputs.export["files"] if file.get("parity")],
            unproven=[file["name"] for file in inputs.export["files"] if not file.get("parity")],
            float_nodes=list(dict.fromkeys(n for file in inputs.export["files"] for n in file.get("float_nodes", ()))),
            opset=inputs.export.get("opset"),
            lineage=_lineage(inputs),
            settings=_settings(inputs),
            long_text=_LONG_TEXT,
            missing=_missing(inputs, rows),
        )
    )


def _environment(decimals: int) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": functools.partial(formatting.percent, decimals=decimals),
        "points": functools.partial(formatting.points, decimals=decimals),
        "interval": lambda pair: formatting.interval(pair[0], pair[1], decimals),
        "executed": _executed,
        "milliseconds": formatting.milliseconds,
        "filesize": formatting.size,
        "number": formatting.count,
        "throughput": formatting.throughput,
        "logit_error": formatting.logit_error,
        "ratio": formatting.ratio,
        "runtime": runtime,
        "verdict": lambda verdict: str(verdict).replace("_", " "),
    }
    environment.filters.update(filters)
    return environment


def _key(row: Row) -> tuple[str, str]:
    return row["name"], row["runtime"]


def _executed(precision: str | None) -> str:
    """``mixed:int8=20,fp32=1`` as ``int8 20, fp32 1``: how many layers ran in which precision."""
    if precision is None:
        return formatting.NOT_MEASURED
    return precision.removeprefix("mixed:").replace("=", " ").replace(",", ", ")


def _has_numbers(row: Row) -> bool:
    return row["top1"] is not None or row["latency_p50_ms"] is not None


def _describe(rows: Sequence[Row], decimals: int) -> str:
    """The Pareto plot in words."""
    points = [
        f"{row['name']} in {runtime(row['runtime'])}: {formatting.percent(row['top1'], decimals)} % at "
        f"{formatting.milliseconds(row['latency_p50_ms'])} ms, {formatting.size(row['size_bytes'])}"
        for row in rows
        if row["top1"] is not None and row["latency_p50_ms"] is not None
    ]
    return f"Top-1 accuracy over median latency. {'; '.join(points)}."


def _describe_energy(inputs: Inputs) -> str:
    groups = np.bincount(inputs.energy.columns["group"], minlength=3)
    return (
        f"Histogram of the energies of {groups.sum():,} training images: {groups[0]:,} low, {groups[1]:,} middle, "
        f"{groups[2]:,} high; beside it the teacher's test error, in equal parts by rising energy."
    )


def _routing(chosen: Row, inputs: Inputs) -> dict[str, Any] | None:
    """What the recommended file's energies are worth on the device; None if its accuracy was not measured."""
    rows = [row for row in inputs.evaluation["rows"] if _key(row) == _key(chosen)]
    if not rows:
        return None
    routing = rows[0]["routing"]
    kept = routing["energy"]
    return {
        **routing,
        "interval": None if kept["top1"] is None else wilson_interval(kept["top1"], kept["kept"]),
        "plot": Markup(inline(routing_plot(routing))),  # noqa: S704  our own SVG
    }


def _subset_facts(inputs: Inputs) -> dict[str, Any]:
    """What the HE-DA subset holds, against the training split it was taken from."""
    train, subset = inputs.energy.columns, inputs.subset.columns
    inside = np.isin(train["index"], subset["index"])
    names = inputs.data["class_names"]
    of_train = np.bincount(train["label"], minlength=len(names)) / max(len(train["label"]), 1)
    of_subset = np.bincount(subset["label"], minlength=len(names)) / max(len(subset["label"]), 1)
    factor = np.divide(of_subset, of_train, out=np.zeros_like(of_subset), where=of_train > 0)
    order = np.argsort(-factor, kind="stable")
    largest = max(float(factor.max(initial=0.0)), 1.0)
    return {
        "kind": str(inputs.subset.lineage.get("subset", "high_energy")).replace("_", "-"),
        "mix": inputs.student.get("heda", {}).get("mix", "none"),
        "images": len(subset["index"]),
        "of": len(train["index"]),
        "energy_inside": _range(train["energy"][inside]),
        "energy_outside": _range(train["energy"][~inside]),
        "teacher_inside": _mean(train["correct"][inside]),
        "teacher_outside": _mean(train["correct"][~inside]),
        "confidence_inside": _mean(train["confidence"][inside]),
        "confidence_outside": _mean(train["confidence"][~inside]),
        "groups_inside": _counts(train["group"][inside]),
        "groups_outside": _counts(train["group"][~inside]),
        "all_classes": len(names),
        "classes": [
            {
                "name": names[k],
                "of_train": float(of_train[k]),
                "of_subset": float(of_subset[k]),
                "factor": float(factor[k]),
                "width": round(100 * float(factor[k]) / largest, 1),
            }
            for k in order[:_CLASSES_SHOWN].tolist()
        ],
        "par": round(100 / largest, 1),
    }


def _counts(groups: Any) -> str:
    return " / ".join(f"{count:,}" for count in np.bincount(groups, minlength=3).tolist())


def _range(values: Any) -> str:
    return f"{values.min():.2f} to {values.max():.2f}".replace("-", formatting.MINUS) if len(values) else plain(None)


def _mean(values: Any) -> float | None:
    return float(values.mean()) if len(values) else None


def _lineage(inputs: Inputs) -> list[dict[str, Any]]:
    """The chain of hashes from the images to the files, each with what it was made from."""
    data, teacher, student = inputs.data, inputs.teacher, inputs.student
    score = inputs.energy.lineage
    links: list[tuple[str, str, str, Json, str]] = [
        ("data", str(DATA_CARD), data["fingerprint"], {}, "pixels, labels, class names, normalisation"),
        (
            "teacher",
            str(TEACHER_CARD),
            teacher["weights_sha256"],
            teacher["lineage"],
            f"weights of {teacher['network']}",
        ),
        (
            "energy",
            str(ENERGY),
            inputs.energy_sha256,
            {key: score[key] for key in ("data", "teacher")},
            f"scores, temperature {plain(score.get('temperature'))}",
        ),
        (
            "subset",
            str(SUBSET),
            inputs.subset_sha256,
            {key: inputs.subset.lineage[key] for key in ("data", "energy")},
            f"indices, fraction {plain(inputs.subset.lineage.get('fraction'))}",
        ),
        (
            "student",
            str(STUDENT_CARD),
            student["weights_sha256"],
            student["lineage"],
            f"weights of {student['network']}",
        ),
    ]
    links += [
        (
            "file",
            f"{EXPORT}/{file['name']}",
            file["sha256"],
            {file["role"]: inputs.export["lineage"][file["role"]]},
            ".xml and .bin" if file["format"] == "openvino" else "the file",
        )
        for file in inputs.export["files"]
    ]
    return [
        {"step": step, "path": path, "sha256": sha, "of": of, "made_from": [(k, v) for k, v in origin.items() if v]}
        for step, path, sha, origin, of in links
    ]


def _settings(inputs: Inputs) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tables of (key, value) with their captions."""
    training = {key: inputs.teacher[key] for key in ("network", "source", "epochs", "seed", "parameters", "macs")}
    distillation = {key: inputs.student[key] for key in ("network", "epochs", "seed", "parameters", "macs")}
    normalisation = {key: inputs.data[key] for key in ("image_size", "mean", "std")}
    images = {key: inputs.data[key] for key in ("name", "source", "licence", "counts")}
    budget = inputs.budget.model_dump()
    versions = {
        runtime(row["runtime"]): f"{row['runtime_version']}, {row['provider']}" for row in inputs.evaluation["rows"]
    }
    return [
        ("Machine, as far as it tells", _known({"device": inputs.benchmark["device"], **inputs.benchmark["machine"]})),
        ("Benchmark", flatten(inputs.benchmark["settings"])),
        ("Runtimes of the evaluation", flatten(versions)),
        ("Images", flatten({**images, "classes": len(inputs.data["class_names"]), **normalisation})),
        ("Teacher", flatten(training)),
        ("Student", flatten({**distillation, **{key: inputs.student.get(key, {}) for key in ("distill", "heda")}})),
        ("Budget", flatten({key: "no limit" if limit is None else limit for key, limit in budget.items()})),
    ]


def _known(machine: Json) -> list[tuple[str, str]]:
    """What a machine tells about itself; most leave out the larger part of the probe's questions."""
    return [pair for pair in flatten(machine) if pair[1] != formatting.NOT_MEASURED and pair[0] != "state.time"]


def _missing(inputs: Inputs, rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """What was not measured: reason and the files it concerns, as ``file (runtime)``."""
    missing: dict[str, list[str]] = {}
    for row in rows:
        for note in row["notes"]:
            if "not measured" in note or "not one" in note:
                missing.setdefault(note, []).append(f"{row['name']} ({runtime(row['runtime'])})")
    for role, card in (("teacher", inputs.teacher), ("student", inputs.student)):
        if role not in inputs.curves:
            source = "it came from a checkpoint" if card["source"] == "checkpoint" else "no curves were logged"
            missing[f"learning curves of the {role} not measured: {source}"] = []
    return list(missing.items())
