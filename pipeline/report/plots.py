"""The plots of energy and of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from pipeline.report.compare import wilson_interval
from pipeline.report.figure import FAINT, INK, STUDENT, STYLE, TEACHER, new_figure, to_svg
from pipeline.report.inputs import Curve, Table

_CONFIDENCE_BINS = 40
GROUP_COLOURS = {"low": "#56b4e9", "middle": "#b8bec6", "high": "#d55e00"}


def energy_plot(train: Table, test: Table) -> str:
    """Energies of the training images, stacked by group with the thresholds, beside the teacher's errors over energy.

    Args:
        train, test: energy tables of both splits; the lineage of ``train`` has the thresholds.
    """
    with mpl.rc_context(STYLE):
        figure, (left, right) = new_figure(3.7, 2, ratios=(1.25, 1))
        _draw_histogram(left, train)
        _draw_errors(right, test)
        return to_svg(figure, "energy")


def confidence_plot(train: Table) -> str:
    """What energy says beside confidence: the confidence of images over their energy, and the teacher's errors over
    the rank by each of the two.

    Args:
        train: energy table of the training split.
    """
    with mpl.rc_context(STYLE):
        figure, (left, right) = new_figure(3.7, 2, ratios=(1.25, 1))
        _draw_confidence(left, train)
        _draw_ranked_errors(right, train)
        return to_svg(figure, "confidence")


def routing_plot(routing: Mapping[str, Any]) -> str:
    """Top-1 of the answers that are kept over how many are, by energy and by the largest softmax probability.

    Args:
        routing: of a row of reports/evaluation.json.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(3.3, 1)
        for key, name, style in (("energy", "by energy", "-"), ("max_softmax", "by largest probability", "--")):
            curve = [100 * value for value in routing[key]["curve"]]
            shares = [100 * (place + 1) / len(curve) for place in range(len(curve))]
            axes.plot(shares, curve, style, color=STUDENT, linewidth=1.8, label=name)
        axes.axhline(100 * routing["wanted_top1"], color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="wanted")
        kept = routing["energy"]
        if kept["top1"] is not None:
            axes.plot(
                100 * kept["coverage"], 100 * kept["top1"], "o", color=STUDENT, markersize=7, label="at the threshold"
            )
        axes.set_title("Top-1 of the answers kept on the device")
        axes.set_xlabel("surest answers kept, in % of the test images")
        axes.set_ylabel("top-1 in %")
        axes.legend(loc="lower left")
        return to_svg(figure, "routing")


def learning_plot(curves: Mapping[str, Mapping[str, Curve]]) -> str | None:
    """Training loss and validation top-1 of teacher and student; None if neither was trained here.

    Args:
        curves: role -> metric ("train_loss", "val_top1") -> curve.
    """
    lines = {
        metric: [(role, found[metric]) for role, found in curves.items() if metric in found and found[metric].steps]
        for metric in ("train_loss", "val_top1")
    }
    if not any(lines.values()):
        return None
    with mpl.rc_context(STYLE):
        figure, (left, right) = new_figure(3.3, 2)
        for axes, metric, title, scale in (
            (left, "train_loss", "Training loss (logarithmic)", 1.0),
            (right, "val_top1", "Validation top-1 in %", 100.0),
        ):
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for role, curve in lines[metric]:
                colour = TEACHER if role == "teacher" else STUDENT
                style = "--" if role == "teacher" else "-"
                marker = "o" if len(curve.steps) == 1 else ""
                values = [scale * value for value in curve.values]
                # DVCLive counts from 0; the first value is that after one epoch.
                epochs = [step + 1 for step in curve.steps]
                axes.plot(epochs, values, style, color=colour, linewidth=1.8, marker=marker, label=role)
            if lines[metric]:
                axes.legend(loc="best")
        _scale_losses(left, [value for _, curve in lines["train_loss"] for value in curve.values])
        return to_svg(figure, "curves")


def _scale_losses(axes: Axes, losses: Sequence[float]) -> None:
    """Logarithmic, because a distillation objective is several times a cross-entropy; linear if a loss is 0 or less."""
    if not losses or min(losses) <= 0:
        axes.set_title("Training loss")
        return
    axes.set_yscale("log")
    subs = (1.0, 2.0, 5.0) if max(losses) / min(losses) < 100 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_histogram(axes: Axes, table: Table) -> None:
    values, group = np.asarray(table.columns["energy"], dtype=np.float64), table.columns["group"]
    edges = np.histogram_bin_edges(values, bins=min(60, max(10, round(math.sqrt(len(values))))))
    parts = [values[group == code] for code in range(len(GROUP_COLOURS))]
    axes.hist(
        parts,
        bins=edges.tolist(),
        stacked=True,
        color=list(GROUP_COLOURS.values()),
        label=[f"{name} energy ({len(part):,})" for name, part in zip(GROUP_COLOURS, parts, strict=True)],
    )
    for key in ("low_threshold", "high_threshold"):
        threshold = table.lineage.get(key)
        if threshold is not None and edges[0] <= threshold <= edges[-1]:
            axes.axvline(threshold, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_title("Training images by energy under the teacher", pad=24)
    axes.set_xlabel("energy (left: teacher confident, right: uncertain)")
    axes.set_ylabel("images")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.015, 0.985),
        ncols=3,
        columnspacing=1.4,
        handlelength=1.2,
        handletextpad=0.5,
    )


def _draw_errors(axes: Axes, table: Table) -> None:
    """Error of the teacher in equal parts of the test split, sorted by energy: ten, or five of a small split."""
    count = 10 if len(table.columns["correct"]) >= 2000 else 5
    axes.set_title("Teacher's test error by energy", pad=24)
    axes.set_xlabel(f"{'tenth' if count == 10 else 'fifth'} of the test images, by rising energy")
    axes.set_ylabel("error in %")
    correct = np.asarray(table.columns["correct"], dtype=bool)
    order = np.argsort(table.columns["energy"], kind="stable")
    parts: list[NDArray[np.bool_]] = [part for part in np.array_split(correct[order], count) if len(part)]
    if not parts:
        axes.text(0.5, 0.5, "no test images", transform=axes.transAxes, ha="center", color=FAINT)
        return
    x = list(range(1, len(parts) + 1))
    errors = [1 - float(part.mean()) for part in parts]
    bounds = [wilson_interval(error, len(part)) for error, part in zip(errors, parts, strict=True)]
    whiskers = [
        [100 * max(error - low, 0) for error, (low, _) in zip(errors, bounds, strict=True)],
        [100 * max(high - error, 0) for error, (_, high) in zip(errors, bounds, strict=True)],
    ]
    axes.errorbar(
        x,
        [100 * error for error in errors],
        yerr=whiskers,
        fmt="o-",
        color=TEACHER,
        ecolor="#aab1ba",
        capsize=2.5,
        elinewidth=1.0,
        linewidth=1.4,
        markersize=4.5,
    )
    axes.set_ylim(bottom=-0.025 * axes.get_ylim()[1])
    axes.xaxis.set_major_locator(FixedLocator(x))
    axes.grid(visible=False, axis="x")


def _draw_confidence(axes: Axes, table: Table) -> None:
    """Median and middle 80 % of the confidence in bins of equal size, sorted by energy."""
    energy = np.asarray(table.columns["energy"], dtype=np.float64)
    confidence = 100 * np.asarray(table.columns["confidence"], dtype=np.float64)
    parts = [part for part in np.array_split(np.argsort(energy, kind="stable"), _CONFIDENCE_BINS) if len(part)]
    x = [float(np.median(energy[part])) for part in parts]
    low, middle, high = ([float(np.quantile(confidence[part], share)) for part in parts] for share in (0.1, 0.5, 0.9))
    axes.fill_between(x, low, high, color=STUDENT, alpha=0.2, linewidth=0, label="middle 80 % of the images")
    axes.plot(x, middle, color=STUDENT, linewidth=1.8, label="median")
    for key in ("low_threshold", "high_threshold"):
        axes.axvline(table.lineage[key], color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_title("Teacher's confidence over energy")
    axes.set_xlabel("energy (dashed: thresholds of the groups)")
    axes.set_ylabel("largest probability in %")
    axes.legend(loc="lower left")


def _draw_ranked_errors(axes: Axes, table: Table) -> None:
    """Error among the images that the score calls hardest, over how many of them are taken."""
    wrong = ~np.asarray(table.columns["correct"], dtype=bool)
    shares = np.arange(1, 101)
    counts = np.maximum(1, len(wrong) * shares // 100)
    scores = {
        "by energy": -np.asarray(table.columns["energy"]),
        "by confidence": np.asarray(table.columns["confidence"]),
    }
    for (name, score), style in zip(scores.items(), ("-", "--"), strict=True):
        cumulated = np.cumsum(wrong[np.argsort(score, kind="stable")])
        axes.plot(shares, 100 * cumulated[counts - 1] / counts, style, color=TEACHER, linewidth=1.6, label=name)
    axes.set_title("Teacher's error among the hardest images")
    axes.set_xlabel("hardest images taken, in % of the split")
    axes.set_ylabel("error in %")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
