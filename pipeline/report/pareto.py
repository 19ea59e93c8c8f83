"""The Pareto plot: top-1 over latency, with file size as area."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from pipeline.report.figure import INK, LINE, STYLE, TEACHER, new_figure, to_svg
from pipeline.report.formatting import runtime, significant, size
from pipeline.report.labels import Anchor, Box, place

Row = Mapping[str, Any]

RUNTIME_COLOURS = {"torch": "#5b6470", "onnxruntime": "#0072b2", "openvino": "#c4500a", "tensorrt": "#00805f"}
PRECISION_MARKERS = {"fp32": "o", "fp16": "s", "int8": "D"}
_LARGEST_AREA, _SMALLEST_AREA = 620.0, 34.0  # markers, points squared


def pareto_plot(rows: Sequence[Row], recommended: Row | None) -> str | None:
    """Top-1 over median latency (log), area growing with file size; None if no row has both.

    Whiskers are the 95 % interval of the difference to the torch student, and that of the median latency. The front
    joins the student files that no other one beats in both accuracy and latency.
    """
    shown = [row for row in rows if row["top1"] is not None and row["latency_p50_ms"] is not None]
    if not shown:
        return None
    # Large markers first, so that small ones stay visible on top of them.
    shown.sort(key=lambda row: (-row["size_bytes"], row["name"], row["runtime"]))
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(5.2, 1)
        _draw_front(axes, [row for row in shown if row["role"] == "student"])
        largest = max(row["size_bytes"] for row in shown)
        areas = [max(_LARGEST_AREA * row["size_bytes"] / largest, _SMALLEST_AREA) for row in shown]
        for row, area in zip(shown, areas, strict=True):
            _draw_row(axes, row, area, chosen=recommended is not None and _key(row) == _key(recommended))
        _scale_axes(axes, shown)
        axes.set_xlabel("median latency per call in ms (logarithmic)")
        axes.set_ylabel("top-1 accuracy in %")
        _draw_legend(axes, shown)
        _label_rows(figure, axes, shown, areas, recommended)
        return to_svg(figure, "pareto")


def _key(row: Row) -> tuple[str, str]:
    return row["name"], row["runtime"]


def _draw_front(axes: Axes, rows: Sequence[Row]) -> None:
    front = pareto_front(rows)
    if len(front) < 2:
        return
    x = [row["latency_p50_ms"] for row in front]
    y = [100 * row["top1"] for row in front]
    axes.plot(x, y, drawstyle="steps-post", color=LINE, linewidth=1.2, zorder=1.5)


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other row beats in one of accuracy and latency without losing in the other, fastest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["latency_p50_ms"], -row["top1"])):
        if not front or row["top1"] > front[-1]["top1"]:
            front.append(row)
    return front


def _draw_row(axes: Axes, row: Row, area: float, *, chosen: bool) -> None:
    colour = RUNTIME_COLOURS.get(row["runtime"], INK)
    teacher = row["role"] == "teacher"
    x, y = row["latency_p50_ms"], 100 * row["top1"]
    if teacher:
        axes.axhline(y, color=TEACHER, linewidth=0.9, linestyle=(0, (4, 4)), zorder=1.2)
    axes.errorbar(
        x,
        y,
        xerr=_whiskers(x, row["latency_ci_low_ms"], row["latency_ci_high_ms"]),
        yerr=_whiskers(y, *(_shifted(row, key) for key in ("delta_ci_low", "delta_ci_high"))),
        ecolor=colour,
        elinewidth=1.0,
        capsize=2,
        alpha=0.45,
        fmt="none",
        zorder=2,
    )
    marker = PRECISION_MARKERS.get(row["precision"], "o")
    face = "white" if teacher else colour
    axes.scatter(
        [x],
        [y],
        s=area,
        marker=marker,
        facecolor=face,
        edgecolor=colour if teacher else "white",
        linewidth=1.4 if teacher else 0.8,
        zorder=3,
    )
    if chosen:
        ring = (math.sqrt(area) + 9) ** 2
        axes.scatter([x], [y], s=ring, marker=marker, facecolor="none", edgecolor=INK, linewidth=1.3, zorder=3)


def _shifted(row: Row, key: str) -> float | None:
    """A bound of the difference to the torch student as an accuracy in %."""
    if row[key] is None or row["delta_top1"] is None:
        return None
    return 100 * min(max(float(row["top1"] - row["delta_top1"] + row[key]), 0.0), 1.0)


def _whiskers(value: float, low: float | None, high: float | None) -> list[list[float]] | None:
    if low is None or high is None:
        return None
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _scale_axes(axes: Axes, rows: Sequence[Row]) -> None:
    values = [row[key] for row in rows for key in ("latency_p50_ms", "latency_ci_low_ms", "latency_ci_high_ms")]
    known = [value for value in values if value]
    low, high = min(known), max(known)
    margin = max((high / low) ** 0.11, 1.15)
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(FixedLocator(_log_ticks(low / margin, high * margin)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    bottom, top = axes.get_ylim()
    pad = 0.1 * (top - bottom)
    axes.set_ylim(bottom - pad, top + pad)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers in [low, high]: the coarsest of three ladders that has at least four."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 10), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ladder = sorted({float(f"{step * 10.0**exponent:.3g}") for exponent in exponents for step in steps})
        ticks = [tick for tick in ladder if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    return ticks if len(ticks) > 1 else [float(significant(value, 2).replace(",", "")) for value in (low, high)]


def _draw_legend(axes: Axes, rows: Sequence[Row]) -> None:
    runtimes = [name for name in RUNTIME_COLOURS if any(row["runtime"] == name for row in rows)]
    precisions = [name for name in PRECISION_MARKERS if any(row["precision"] == name for row in rows)]
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=6, color=RUNTIME_COLOURS[name], label=runtime(name))
        for name in runtimes
    ]
    handles += [
        Line2D(
            [],
            [],
            linestyle="",
            marker=PRECISION_MARKERS[name],
            markersize=5.5,
            markerfacecolor="white",
            markeredgecolor=INK,
            label=name,
        )
        for name in precisions
    ]
    handles.append(Line2D([], [], color=LINE, linewidth=1.2, label="Pareto front"))
    if any(row["role"] == "teacher" for row in rows):
        handles.append(Line2D([], [], color=TEACHER, linewidth=0.9, linestyle=(0, (4, 4)), label="teacher"))
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=len(handles),
        handletextpad=0.4,
        columnspacing=1.5,
        borderaxespad=0.2,
        handlelength=1.6,
    )


def _label_rows(
    figure: Figure, axes: Axes, rows: Sequence[Row], areas: Sequence[float], recommended: Row | None
) -> None:
    figure.draw_without_rendering()  # fixes where the axes lie, so that positions in points are final
    figure.set_layout_engine("none")
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    texts, anchors, obstacles = [], [], []
    for row, area in zip(rows, areas, strict=True):
        chosen = recommended is not None and _key(row) == _key(recommended)
        text = axes.text(
            0,
            0,
            _label(row, chosen=chosen),
            color=RUNTIME_COLOURS.get(row["runtime"], INK),
            fontsize=8.5,
            fontweight="bold" if chosen else "normal",
            ha="left",
            va="bottom",
            zorder=4,
        )
        extent = text.get_window_extent(renderer)
        x, y = axes.transData.transform((row["latency_p50_ms"], 100 * row["top1"]))
        radius = math.sqrt(area) / 2 + (5 if chosen else 1)
        anchors.append(Anchor(float(x), float(y), radius, extent.width, extent.height))
        low, high = _shifted(row, "delta_ci_low"), _shifted(row, "delta_ci_high")
        if low is not None and high is not None:
            bottom, top = (axes.transData.transform((row["latency_p50_ms"], value))[1] for value in (low, high))
            obstacles.append(Box(float(x) - 1.5, float(bottom), float(x) + 1.5, float(top)))
        fast, slow = row["latency_ci_low_ms"], row["latency_ci_high_ms"]
        if fast and slow:
            left, right = (axes.transData.transform((value, 100 * row["top1"]))[0] for value in (fast, slow))
            obstacles.append(Box(float(left), float(y) - 2.5, float(right), float(y) + 2.5))
        texts.append(text)
    frame = axes.get_window_extent(renderer)
    lines = [float(anchor.y) for row, anchor in zip(rows, anchors, strict=True) if row["role"] == "teacher"]
    obstacles += [Box(frame.x0, y - 2, frame.x1, y + 2) for y in lines]
    boxes = place(anchors, Box(frame.x0, frame.y0, frame.x1, frame.y1), obstacles)
    to_data = axes.transData.inverted()
    for text, anchor, box in zip(texts, anchors, boxes, strict=True):
        text.set_position(tuple(to_data.transform((box.left, box.bottom))))
        end = box.nearest(anchor.x, anchor.y)
        if math.dist(end, (anchor.x, anchor.y)) > anchor.radius + 6:
            line = to_data.transform([(anchor.x, anchor.y), end])
            axes.plot(line[:, 0], line[:, 1], color=LINE, linewidth=0.7, zorder=2.5)


def _label(row: Row, *, chosen: bool) -> str:
    name = f"teacher {row['precision']}" if row["role"] == "teacher" else row["precision"]
    text = f"{name} {runtime(row['runtime'])}, {size(row['size_bytes'])}"
    return f"{text} (recommended)" if chosen else text
