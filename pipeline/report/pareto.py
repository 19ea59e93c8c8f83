"""The Pareto plot: top-1 over latency, with file size as area."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from pipeline.report import plots
from pipeline.report.formatting import runtime, size
from pipeline.report.rows import Row

_FEW = 12  # marks that are all numbered and named; of more, only those that matter are
_SMALLEST_AREA = 34.0  # of a marker, points squared
_LARGEST_AREA = {True: 620.0, False: 260.0}  # of few markers, and of many
_FAINT = 0.55  # opacity of what is not numbered
_RING = 3.5  # points between the recommended marker and the ring around it
_DIGIT = 5.0  # points from the middle of a number to its edge
_DIRECTIONS = (90, 45, 135, 0, 180, -45, -135, -90)  # degrees from a mark to its number, the best first


@dataclass(frozen=True)
class Mark:
    """A row with an accuracy and a latency: x in ms, y in %, area in points squared."""

    row: Row
    x: float
    y: float
    area: float
    colour: str
    chosen: bool

    @property
    def look(self) -> dict[str, Any]:
        return plots.marker(self.row.precision, self.row.runtime, self.colour)

    @property
    def diameter(self) -> float:
        """Diameter in points, without the ring of the recommended mark."""
        return math.sqrt(self.area)

    @property
    def radius(self) -> float:
        """Radius in points, with the ring of the recommended mark."""
        return self.diameter / 2 + (_RING if self.chosen else 0)

    @property
    def x_interval(self) -> tuple[float, float] | None:
        low, high = self.row.latency_ci_low_ms, self.row.latency_ci_high_ms
        return None if low is None or high is None else (low, high)

    @property
    def y_interval(self) -> tuple[float, float] | None:
        """Interval of the difference to the reference of the budget, shifted to the accuracy of the file."""
        value, low, high = self.row.delta_reference, self.row.delta_reference_ci_low, self.row.delta_reference_ci_high
        if value is None or low is None or high is None:
            return None
        return max(self.y + 100 * (low - value), 0.0), min(self.y + 100 * (high - value), 100.0)


def marks_of(rows: Sequence[Row], colours: Mapping[str, str], recommended: Row | None = None) -> list[Mark]:
    """Marks of all rows with accuracy and latency, fastest first.

    Args:
        colours: of the files, by name.
    """
    shown = [row for row in rows if row.top1 is not None and row.latency_p50_ms]  # the axis is logarithmic
    unit = _LARGEST_AREA[len(shown) <= _FEW] / max((row.size_bytes for row in shown), default=1)
    marks = [
        Mark(
            row=row,
            x=row.latency_p50_ms or 0.0,
            y=100 * (row.top1 or 0.0),
            area=max(unit * row.size_bytes, _SMALLEST_AREA),
            colour=colours.get(row.name, plots.INK),
            chosen=row is recommended,
        )
        for row in shown
    ]
    return sorted(marks, key=lambda mark: (mark.x, mark.row.key))


def pareto_front(marks: Sequence[Mark]) -> list[Mark]:
    """Pareto-optimal marks, fastest first: no other mark is at least as fast and as accurate; equal ones count once."""
    front: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, -mark.y)):
        if not front or mark.y > front[-1].y:
            front.append(mark)
    return front


def pareto_plot(
    rows: Sequence[Row],
    recommended: Row | None,
    colours: Mapping[str, str],
    *,
    curves: Sequence[Sequence[tuple[float, float]]] = (),
    name: str = "pareto",
    height: float = 5.2,
) -> str | None:
    """Plot top-1 over median latency (log), with the file size as area; None if no row has both.

    The legend explains the numbers: all marks if they are few, else the front, the recommended file and the teacher,
    with a key to colours, shapes and fills. Whiskers of the numbered marks are the 95 % intervals of the difference to
    the reference of the budget and of the median latency. The front joins the Pareto-optimal student files.

    Args:
        colours: of the files, by name.
        curves: thin lines, each of points (latency in ms, top-1 as a share), for what has a threshold to choose.
        name: of the plot, for the ids.
        height: at least so many inches; more if the legend needs them.
    """
    marks = marks_of(rows, colours, recommended)
    if not marks:
        return None
    front = pareto_front([mark for mark in marks if mark.row.role == "student"])
    few = len(marks) <= _FEW
    numbered = [mark for mark in marks if few or mark in front or mark.chosen or mark.row.role == "teacher"]
    with mpl.rc_context(fname=plots.STYLE):
        entries = _numbers(numbered) + ([] if few else _key([row for row in rows if row.latency_p50_ms], colours))
        figure, (axes,) = plots.new_figure(max(height, plots.LEGEND_LINE * (len(entries) + 3)), 1)
        for mark in sorted(marks, key=lambda mark: (mark in numbered, -mark.area)):  # small ones on top of large ones
            _draw(axes, mark, numbered=mark in numbered)
        for curve in curves:
            shares = [100 * top1 for _, top1 in curve]
            axes.plot([latency for latency, _ in curve], shares, color=plots.FAINT, linewidth=0.7, zorder=1.4)
        if len(front) > 1:
            x, y = [mark.x for mark in front], [mark.y for mark in front]
            axes.plot(x, y, drawstyle="steps-post", color=plots.LINE, linewidth=1.2, zorder=1.5, label="Pareto front")
        for teacher in [mark for mark in marks if mark.row.role == "teacher"][:1]:
            look: dict[str, Any] = {"color": plots.TEACHER, "linewidth": 0.9, "linestyle": (0, (4, 4))}
            axes.axhline(teacher.y, zorder=1.2, label="top-1 of the teacher", **look)
        _scale_axes(axes, marks, numbered)
        axes.set_xlabel("median latency per call in ms (logarithmic)")
        axes.set_ylabel("top-1 accuracy in %")
        lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
        axes.legend(
            handles=[*entries, *lines],
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            labelspacing=0.7 if few else 0.35,
            handlelength=1.6,
        )
        figure.draw_without_rendering()  # fixes the position of the axes
        figure.set_layout_engine("none")
        _draw_numbers(axes, marks, numbered)
        return plots.to_svg(figure, name)


def _draw(axes: Axes, mark: Mark, *, numbered: bool) -> None:
    if numbered:
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
    axes.plot(mark.x, mark.y, markersize=mark.diameter, alpha=1 if numbered else _FAINT, zorder=3, **mark.look)
    if mark.chosen:
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": plots.INK, "markeredgewidth": 1.3}
        axes.plot(mark.x, mark.y, marker=mark.look["marker"], markersize=2 * mark.radius, zorder=3, **ring)


def _whiskers(value: float, bounds: tuple[float, float] | None) -> list[list[float]] | None:
    return None if bounds is None else [[max(value - bounds[0], 0.0)], [max(bounds[1] - value, 0.0)]]


def _scale_axes(axes: Axes, marks: Sequence[Mark], numbered: Sequence[Mark]) -> None:
    whiskers = [value for mark in numbered for value in mark.x_interval or () if value > 0]
    known = [mark.x for mark in marks] + whiskers
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


def _numbers(numbered: Sequence[Mark]) -> list[Line2D]:
    """Legend entries of the numbered marks."""
    several = len({mark.row.student for mark in numbered if mark.row.role == "student"}) > 1
    entries = []
    for number, mark in enumerate(numbered, 1):
        row = mark.row
        network = "teacher " if row.role == "teacher" else f"{row.student} " * (several and row.student is not None)
        name = f"{network}{row.precision} {runtime(row.runtime)}, {size(row.size_bytes)}"
        label = f"{number}  {name}{' (recommended)' * mark.chosen}"
        entries.append(Line2D([], [], linestyle="", markersize=7, label=label, **mark.look))
    return entries


def _key(rows: Sequence[Row], colours: Mapping[str, str]) -> list[Line2D]:
    """Legend entries for the colours of the networks, the shapes of the precisions and the fills of the runtimes."""
    networks = {row.student or row.role: colours[row.name] for row in rows if row.name in colours}
    precisions = dict.fromkeys(row.precision for row in rows)
    runtimes = dict.fromkeys(row.runtime for row in rows)
    empty = Line2D([], [], linestyle="", label=" ")
    shape: dict[str, Any] = {"linestyle": "", "markersize": 7}
    return [
        empty,
        *(Line2D([], [], color=colour, linewidth=5, label=name) for name, colour in networks.items()),
        empty,
        *(Line2D([], [], label=name, **shape, **plots.marker(name, "onnxruntime", plots.FAINT)) for name in precisions),
        empty,
        *(Line2D([], [], label=runtime(name), **shape, **plots.marker("fp32", name, plots.FAINT)) for name in runtimes),
        empty,
    ]


def _draw_numbers(axes: Axes, marks: Sequence[Mark], numbered: Sequence[Mark]) -> None:
    """Draw a number beside each mark, at the nearest place that is inside the axes and overlaps no number or mark.

    The layout must be final, because the overlap is computed in page coordinates.
    """
    at = {mark.row.key: axes.transData.transform((mark.x, mark.y)) for mark in marks}
    taken = [(*at[mark.row.key], mark.radius + _DIGIT) for mark in marks]
    frame = axes.get_window_extent().padded(-_DIGIT)
    for number, mark in enumerate(numbered, 1):
        x, y = at[mark.row.key]
        places = (
            (x + reach * math.cos(math.radians(angle)), y + reach * math.sin(math.radians(angle)))
            for reach in (mark.radius + _DIGIT + 1 + step for step in range(400))
            for angle in _DIRECTIONS
        )
        found_x, found_y = next(
            (place_x, place_y)
            for place_x, place_y in places
            if frame.contains(place_x, place_y)
            and all(math.hypot(place_x - a, place_y - b) >= reach - 0.1 for a, b, reach in taken)
        )
        taken.append((found_x, found_y, 2 * _DIGIT + 2))
        far = math.hypot(found_x - x, found_y - y) > mark.radius + 4 * _DIGIT
        axes.annotate(
            str(number),
            (mark.x, mark.y),
            xytext=(found_x - x, found_y - y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold",
            color=mark.colour,
            arrowprops={"arrowstyle": "-", "color": mark.colour, "linewidth": 0.7, "shrinkB": mark.radius}
            if far
            else None,
            bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            zorder=4,
        )
