"""Common style of all plots, and all plots except the Pareto plot.

Equal inputs give equal SVG files. Text is drawn as outlines, so no font is needed. A network has one colour in all
plots, a precision one shape, a runtime one fill. The colours are those of Okabe and Ito and two of Tol, which stay
distinct with common colour vision deficiencies; labels or legends repeat the meaning of each.
"""

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from pipeline.config import TEACHER as TEACHER_NAME
from pipeline.portable.documents import MeasuredRow
from pipeline.report.compare import wilson_interval
from pipeline.report.formatting import runtime
from pipeline.report.inputs import Curve
from pipeline.store.documents import Routing
from pipeline.store.tables import EnergyLineage, Table

TEACHER, STUDENT = "#5b6470", "#0072b2"
INK, FAINT, LINE, GRID = "#22262b", "#6a727c", "#9aa2ac", "#e7e9ec"  # as in report.mplstyle
DASHED = (0, (4, 3))
STUDENT_COLOURS = (STUDENT, "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#882255", "#332288")
PRECISION_MARKERS = {"fp32": "o", "fp16": "s", "int8": "D"}
OTHER_MARKER = "P"
RUNTIME_FILLS = {
    **{"onnxruntime": "full", "openvino": "none", "torch": "bottom"},
    **{"tensorrt": "left", "tensorrt_rtx": "right"},
}
GROUP_COLOURS = {"low": "#56b4e9", "middle": "#b8bec6", "high": "#d55e00"}

LEGEND_LINE = 0.2  # inches
_WIDTH_INCHES = 10.0
_CONFIDENCE_BINS = 40
STYLE = Path(__file__).with_name("report.mplstyle")


def new_figure(height: float, columns: int, ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """Make a figure of page width with axes side by side; make and save it inside the style ``STYLE``."""
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    grid = figure.subplots(1, columns, squeeze=False, gridspec_kw={"width_ratios": ratios or [1] * columns})
    return figure, list(grid[0])


def network_colours(students: Sequence[str]) -> dict[str, str]:
    """Colour of the teacher and of each student; those of students repeat from the ninth on."""
    colours = itertools.cycle(STUDENT_COLOURS)
    return {TEACHER_NAME: TEACHER} | dict(zip(students, colours, strict=False))


def marker(precision: str, runtime_name: str, colour: str) -> dict[str, Any]:
    """Keywords for a line of matplotlib: the shape is the precision, the fill is the runtime."""
    fill = RUNTIME_FILLS.get(runtime_name, "full")
    return {
        "marker": PRECISION_MARKERS.get(precision, OTHER_MARKER),
        "fillstyle": "full" if fill == "none" else fill,
        "markerfacecolor": "white" if fill == "none" else colour,
        "markerfacecoloralt": "white",
        "markeredgecolor": "white" if fill == "full" else colour,
    }


def to_svg(figure: Figure, name: str) -> str:
    """Convert a figure to SVG; all ids start with ``name``, so that they are unique on the page."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r'\bid="', f'id="{name}-', buffer.getvalue())
    text = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', text)
    return re.sub(r"url\(#", f"url(#{name}-", text)


def energy_plot(train: Table[EnergyLineage], test: Table[EnergyLineage]) -> str:
    """Plot a histogram of the training energies by group, and beside it the teacher's test error over energy.

    Args:
        train, test: energy tables of both splits; the lineage of ``train`` has the thresholds.
    """
    with mpl.rc_context(fname=STYLE):
        figure, (left, right) = new_figure(3.7, 2, ratios=(1.25, 1))
        _draw_histogram(left, train)
        _draw_errors(right, test)
        return to_svg(figure, "energy")


def confidence_plot(train: Table[EnergyLineage]) -> str:
    """Plot the teacher's confidence over energy, and its error among the hardest images by energy and confidence."""
    with mpl.rc_context(fname=STYLE):
        figure, (left, right) = new_figure(3.7, 2, ratios=(1.25, 1))
        _draw_confidence(left, train)
        _draw_ranked_errors(right, train)
        return to_svg(figure, "confidence")


def routing_plot(routing: Routing) -> str:
    """Plot top-1 of the kept answers over their share, by energy and by the largest softmax probability."""
    with mpl.rc_context(fname=STYLE):
        figure, (axes,) = new_figure(3.3, 1)
        for router, name, style in (
            (routing.energy, "by energy", "-"),
            (routing.max_softmax, "by largest probability", "--"),
        ):
            shares = 100 * np.arange(1, len(router.curve) + 1) / len(router.curve)
            axes.plot(shares, 100 * np.asarray(router.curve), style, color=STUDENT, linewidth=1.8, label=name)
        axes.axhline(100 * routing.wanted_top1, color=INK, linewidth=1.0, linestyle=DASHED, label="target")
        kept = routing.energy
        if kept.top1 is not None:
            axes.plot(100 * kept.coverage, 100 * kept.top1, "o", color=STUDENT, markersize=7, label="at the threshold")
        axes.set_title("Top-1 of the answers kept on the device")
        axes.set_xlabel("most certain answers kept, in % of the test images")
        axes.set_ylabel("top-1 in %")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return to_svg(figure, "routing")


def learning_plot(curves: Mapping[str, Mapping[str, Curve]], colours: Mapping[str, str]) -> str | None:
    """Plot training loss and validation top-1 of all networks; None if none was trained in this run.

    Args:
        curves: name of a network -> metric ("train_loss", "val_top1") -> curve.
        colours: of the networks.
    """
    lines = {
        metric: [(name, found[metric]) for name, found in curves.items() if metric in found and found[metric].steps]
        for metric in ("train_loss", "val_top1")
    }
    if not any(lines.values()):
        return None
    with mpl.rc_context(fname=STYLE):
        figure, (left, right) = new_figure(3.3, 2)
        for axes, metric, title, scale in (
            (left, "train_loss", "Training loss (logarithmic)", 1.0),
            (right, "val_top1", "Validation top-1 in %", 100.0),
        ):
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for name, curve in lines[metric]:
                marker = "o" if len(curve.steps) == 1 else ""
                style = "--" if name == TEACHER_NAME else "-"
                # DVCLive counts from 0, and its first value is from the end of epoch 1.
                epochs, values = np.asarray(curve.steps) + 1, scale * np.asarray(curve.values)
                axes.plot(epochs, values, style, color=colours[name], linewidth=1.8, marker=marker, label=name)
        _scale_losses(left, [value for _, curve in lines["train_loss"] for value in curve.values])
        _leave_out_first_epochs(right, [100 * curve.values[-1] for _, curve in lines["val_top1"]])
        named = right if lines["val_top1"] else left
        named.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return to_svg(figure, "curves")


def sustained_plot(rows: Sequence[MeasuredRow], name: str, colours: Mapping[str, str]) -> str | None:
    """Plot the median latency per minute of sustained load, one line per file and runtime; None without data.

    Args:
        rows: rows of one measurement.
        name: name of the device, for the ids.
        colours: of the files, by name.
    """
    measured = [
        (row, [minute.p50_ms for minute in row.sustained.minutes if minute.p50_ms is not None])
        for row in rows
        if row.sustained
    ]
    measured = [(row, medians) for row, medians in measured if medians]
    if not measured:
        return None
    with mpl.rc_context(fname=STYLE):
        figure, (axes,) = new_figure(max(3.6, LEGEND_LINE * len(measured)), 1)
        for row, medians in measured:
            colour = colours.get(row.name, INK)
            axes.plot(
                range(1, len(medians) + 1),
                medians,
                color=colour,
                linestyle="--" if row.role == "teacher" else "-",
                linewidth=1.5,
                markersize=6,
                label=f"{row.name}, {runtime(row.runtime)}",
                **marker(row.precision, row.runtime, colour),
            )
        axes.set_title("Latency under sustained load")
        axes.set_xlabel("minute")
        axes.set_ylabel("median latency in ms")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return to_svg(figure, f"sustained-{name}")


def _leave_out_first_epochs(axes: Axes, last: Sequence[float]) -> None:
    """Begin the axis of top-1 four times as far below 100 % as the worst last value, so that last values stay apart."""
    if last:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 100 - 4 * (100 - min(last)) - 1))


def _scale_losses(axes: Axes, losses: Sequence[float]) -> None:
    """Use a log scale, because a distillation loss is several times a cross-entropy; linear if a loss is <= 0."""
    if not losses or min(losses) <= 0:
        axes.set_title("Training loss")
        return
    axes.set_yscale("log")
    subs = (1.0, 2.0, 5.0) if max(losses) / min(losses) < 100 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_histogram(axes: Axes, table: Table[EnergyLineage]) -> None:
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
    for threshold in (table.lineage.low_threshold, table.lineage.high_threshold):
        if edges[0] <= threshold <= edges[-1]:
            axes.axvline(threshold, color=INK, linewidth=1.0, linestyle=DASHED)
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


def _draw_errors(axes: Axes, table: Table[EnergyLineage]) -> None:
    """Plot the teacher's error in ten equal parts of the test split by energy, five parts if the split is small."""
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
    x = np.arange(1, len(parts) + 1)
    errors = np.array([1 - part.mean() for part in parts])
    low, high = np.transpose([wilson_interval(error, len(part)) for error, part in zip(errors, parts, strict=True)])
    axes.errorbar(
        x,
        100 * errors,
        yerr=100 * np.maximum([errors - low, high - errors], 0),
        fmt="o-",
        color=TEACHER,
        ecolor="#aab1ba",
        capsize=2.5,
        elinewidth=1.0,
        linewidth=1.4,
        markersize=4.5,
    )
    axes.set_ylim(bottom=-0.025 * axes.get_ylim()[1])
    axes.xaxis.set_major_locator(FixedLocator(x.tolist()))
    axes.grid(visible=False, axis="x")


def _draw_confidence(axes: Axes, table: Table[EnergyLineage]) -> None:
    """Plot median and middle 80 % of the confidence in energy bins of equal size."""
    energy = np.asarray(table.columns["energy"], dtype=np.float64)
    confidence = 100 * np.asarray(table.columns["confidence"], dtype=np.float64)
    parts = [part for part in np.array_split(np.argsort(energy, kind="stable"), _CONFIDENCE_BINS) if len(part)]
    x = [float(np.median(energy[part])) for part in parts]
    low, middle, high = ([float(np.quantile(confidence[part], share)) for part in parts] for share in (0.1, 0.5, 0.9))
    axes.fill_between(x, low, high, color=STUDENT, alpha=0.2, linewidth=0, label="middle 80 % of the images")
    axes.plot(x, middle, color=STUDENT, linewidth=1.8, label="median")
    for threshold in (table.lineage.low_threshold, table.lineage.high_threshold):
        axes.axvline(threshold, color=INK, linewidth=1.0, linestyle=DASHED)
    axes.set_title("Teacher's confidence over energy")
    axes.set_xlabel("energy (dashed: thresholds of the groups)")
    axes.set_ylabel("largest probability in %")
    axes.legend(loc="lower left")


def _draw_ranked_errors(axes: Axes, table: Table[EnergyLineage]) -> None:
    """Plot the teacher's error among the hardest images by each score, over the share of images taken."""
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
