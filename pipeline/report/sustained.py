"""The plot of latency under load that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from pipeline.report.figure import INK, STYLE, new_figure, to_svg
from pipeline.report.formatting import runtime
from pipeline.report.pareto import PRECISION_MARKERS, RUNTIME_COLOURS


def sustained_plot(rows: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """Median latency of each minute, in ms, a line per file and runtime; None if no row has a minute.

    Args:
        rows: of a measurement, with ``sustained``.
        name: of the device, for the ids.
    """
    measured = [(row, _medians(row)) for row in rows]
    measured = [(row, medians) for row, medians in measured if medians]
    if not measured:
        return None
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(3.6, 1)
        for row, medians in measured:
            axes.plot(
                range(1, len(medians) + 1),
                medians,
                marker=PRECISION_MARKERS.get(row["precision"], "o"),
                color=RUNTIME_COLOURS.get(row["runtime"], INK),
                linestyle="--" if row["role"] == "teacher" else "-",
                linewidth=1.5,
                markersize=4.5,
                label=f"{row['name']}, {runtime(row['runtime'])}",
            )
        axes.set_title("Latency under load that goes on")
        axes.set_xlabel("minute")
        axes.set_ylabel("median latency in ms")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return to_svg(figure, f"sustained-{name}")


def _medians(row: Mapping[str, Any]) -> list[float]:
    minutes = (row.get("sustained") or {}).get("minutes") or []
    return [minute["p50_ms"] for minute in minutes if minute["p50_ms"] is not None]
