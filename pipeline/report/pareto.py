"""The Pareto plot: top-1 over latency, with file size as area."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from pipeline.report import plots
from pipeline.report.formatting import runtime, size
from pipeline.report.rows import Row

_LARGEST_AREA, _SMALLEST_AREA = 620.0, 34.0  # markers, points squared
_RING = 3.5  # points between the recommended marker and the ring around it
_DIGIT = 5.0  # points from the middle of a number to its edge


@dataclass(frozen=True)
class Mark:
    """A row with an accuracy and a latency: x in ms, y in %, area in points squared."""

    row: Row
    x: float
    y: float
    area: float
    chosen: bool

    @property
    def colour(self) -> str:
        return plots.RUNTIME_COLOURS.get(self.row.runtime, plots.INK)

    @property
    def shape(self) -> str:
        return plots.PRECISION_MARKERS.get(self.row.precision, "o")

    @property
    def face(self) -> str:
        return "white" if self.row.role == "teacher" else self.colour

    @property
    def radius(self) -> float:
        """Radius in points, with the ring of the recommended mark."""
        return math.sqrt(self.area) / 2 + (_RING if self.chosen else 0)

    @property
    def x_interval(self) -> tuple[float, float] | None:
        low, high = self.row.latency_ci_low_ms, self.row.latency_ci_high_ms
        return None if low is None or high is None else (low, high)

    @property
    def y_interval(self) -> tuple[float, float] | None:
        """Interval of the difference to the torch student, shifted to the accuracy of the file."""
        row = self.row
        if row.delta_top1 is None or row.delta_ci_low is None or row.delta_ci_high is None:
            return None
        low, high = (self.y + 100 * (bound - row.delta_top1) for bound in (row.delta_ci_low, row.delta_ci_high))
        return max(low, 0.0), min(high, 100.0)


def marks_of(rows: Sequence[Row], recommended: Row | None = None) -> list[Mark]:
    """Marks of all rows with accuracy and latency, fastest first."""
    largest = max((row.size_bytes for row in rows), default=1)
    marks = [
        Mark(
            row=row,
            x=row.latency_p50_ms,
            y=100 * row.top1,
            area=max(_LARGEST_AREA * row.size_bytes / largest, _SMALLEST_AREA),
            chosen=row is recommended,
        )
        for row in rows
        if row.top1 is not None and row.latency_p50_ms  # the axis is logarithmic
    ]
    return sorted(marks, key=lambda mark: (mark.x, mark.row.key))


def pareto_plot(rows: Sequence[Row], recommended: Row | None) -> str | None:
    """Plot top-1 over median latency (log), with the file size as area; None if no row has both.

    The legend explains the numbers. Whiskers are the 95 % intervals of the difference to the torch student and of the
    median latency. The front joins the Pareto-optimal student files.
    """
    marks = marks_of(rows, recommended)
    if not marks:
        return None
    with mpl.rc_context(fname=plots.STYLE):
        figure, (axes,) = plots.new_figure(5.2, 1)
        front = pareto_front([mark for mark in marks if mark.row.role == "student"])
        if len(front) > 1:
            x, y = [mark.x for mark in front], [mark.y for mark in front]
            axes.plot(x, y, drawstyle="steps-post", color=plots.LINE, linewidth=1.2, zorder=1.5, label="Pareto front")
        for mark in sorted(marks, key=lambda mark: -mark.area):  # small ones stay visible on top of large ones
            _draw(axes, mark)
        _scale_axes(axes, marks)
        axes.set_xlabel("median latency per call in ms (logarithmic)")
        axes.set_ylabel("top-1 accuracy in %")
        _draw_legend(axes, marks)
        figure.draw_without_rendering()  # fixes the position of the axes
        figure.set_layout_engine("none")
        _number(axes, marks)
        return plots.to_svg(figure, "pareto")


def pareto_front(marks: Sequence[Mark]) -> list[Mark]:
    """Pareto-optimal marks, fastest first: no other mark is at least as fast and as accurate; equal ones count once."""
    front: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, -mark.y)):
        if not front or mark.y > front[-1].y:
            front.append(mark)
    return front


def _draw(axes: Axes, mark: Mark) -> None:
    teacher = mark.row.role == "teacher"
    if teacher:
        axes.axhline(mark.y, color=plots.TEACHER, linewidth=0.9, linestyle=(0, (4, 4)), zorder=1.2, label="teacher")
    axes.errorbar(
        mark.x,
        mark.y,
        xerr=_whiskers(mark.x, mark.x_interval),
        yerr=_whiskers(mark.y, mark.y_interval),
        ecolor=mark.colour,
        elinewidth=1.0,
        capsize=2,
        alpha=0.45,
        fmt="none",
        zorder=2,
    )
    axes.scatter(
        [mark.x],
        [mark.y],
        s=mark.area,
        marker=mark.shape,
        facecolor=mark.face,
        edgecolor=mark.colour if teacher else "white",
        linewidth=1.4 if teacher else 0.8,
        zorder=3,
    )
    if mark.chosen:
        ring: dict[str, Any] = {
            "s": (2 * mark.radius) ** 2,
            "facecolor": "none",
            "edgecolor": plots.INK,
            "linewidth": 1.3,
        }
        axes.scatter([mark.x], [mark.y], marker=mark.shape, zorder=3, **ring)


def _whiskers(value: float, bounds: tuple[float, float] | None) -> list[list[float]] | None:
    return None if bounds is None else [[max(value - bounds[0], 0.0)], [max(bounds[1] - value, 0.0)]]


def _scale_axes(axes: Axes, marks: Sequence[Mark]) -> None:
    known = [value for mark in marks for value in (mark.x, *(mark.x_interval or ())) if value > 0]
    low, high = min(known), max(known)
    margin = max((high / low) ** 0.11, 1.15)
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    bottom, top = axes.get_ylim()
    pad = 0.1 * (top - bottom)
    axes.set_ylim(bottom - pad, top + pad)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


def _draw_legend(axes: Axes, marks: Sequence[Mark]) -> None:
    """Legend of the numbered markers and of the lines."""
    handles = []
    for number, mark in enumerate(marks, 1):
        row = mark.row
        teacher, recommended = "teacher " * (row.role == "teacher"), " (recommended)" * mark.chosen
        name = f"{teacher}{row.precision} {runtime(row.runtime)}, {size(row.size_bytes)}{recommended}"
        look: dict[str, Any] = {
            "marker": mark.shape,
            "markersize": 6,
            "markerfacecolor": mark.face,
            "color": mark.colour,
        }
        handles.append(Line2D([], [], linestyle="", label=f"{number}  {name}", **look))
    lines = {str(line.get_label()): line for line in axes.lines}
    handles += [line for label, line in lines.items() if not label.startswith("_")]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), labelspacing=0.7, handlelength=1.6)


def _number(axes: Axes, marks: Sequence[Mark]) -> None:
    """Draw a number above each mark, raised until it overlaps no other number or mark.

    The layout must be final, because the overlap is computed in page coordinates.
    """
    taken = []
    for mark in marks:
        x, y = axes.transData.transform((mark.x, mark.y))
        taken.append((x, y, mark.radius + _DIGIT))
    for number, mark in enumerate(marks, 1):
        x, y = axes.transData.transform((mark.x, mark.y))
        height = y + mark.radius + _DIGIT
        while any(math.hypot(x - other_x, height - other_y) < reach - 0.1 for other_x, other_y, reach in taken):
            height += 1
        taken.append((x, height, 2 * _DIGIT))
        axes.annotate(
            str(number),
            (mark.x, mark.y),
            xytext=(0, height - y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold",
            color=mark.colour,
            bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            zorder=4,
        )
